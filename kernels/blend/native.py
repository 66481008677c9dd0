"""Launchers of the compiled kernels of `blend`."""

from fastmix.kernels.images import address, batch, tagged, weight, workspace
from fastmix.native import module

_C = module()


def blend(x, index, lam, scale, shift, out):
    images = (*tagged(x), index.data_ptr(), address(scale), address(shift))
    _C.blend(*batch(x, index), *images, *weight(lam), *tagged(out))


def blend_grad_x(grad, inverse, lam, out):
    order, start = inverse
    _C.blend_grad_x(*batch(grad), *tagged(grad), order.data_ptr(), start.data_ptr(), *weight(lam), *tagged(out))


def blend_grad_lam(grad, x, index, lam, scale, out):
    shape, images = batch(x), (*tagged(x), index.data_ptr(), address(scale), 0)
    scratch = workspace("blend_grad_lam", shape, x, grad)
    _C.blend_grad_lam(*shape, *images, *tagged(grad), *weight(lam), *tagged(out), address(scratch))
