"""Launchers of the compiled kernels of `box_blend`."""

from fastmix.kernels.images import address, batch, tagged, weight, workspace
from fastmix.native import module

_C = module()


def box_blend(x, index, box, lam, scale, shift, out):
    images = (*tagged(x), index.data_ptr(), address(scale), address(shift))
    _C.box_blend(*batch(x, index), *images, box.data_ptr(), *weight(lam), *tagged(out))


def box_blend_grad_x(grad, inverse, box, lam, out):
    order, start = (part.data_ptr() for part in inverse)
    _C.box_blend_grad_x(*batch(grad), *tagged(grad), order, start, box.data_ptr(), *weight(lam), *tagged(out))


def box_paste(x, index, box, source, resize, lam, scale, shift, out):
    images = (*tagged(x), index.data_ptr(), address(scale), address(shift))
    paste = (box.data_ptr(), source.data_ptr(), resize)
    _C.box_paste(*batch(x, index), *images, *paste, *weight(lam), *tagged(out))


def box_paste_grad_x(grad, inverse, box, source, resize, lam, out):
    order, start = (part.data_ptr() for part in inverse)
    paste = (box.data_ptr(), source.data_ptr(), resize)
    _C.box_paste_grad_x(*batch(grad), *tagged(grad), order, start, *paste, *weight(lam), *tagged(out))


def box_blend_grad_lam(grad, x, index, box, lam, scale, out):
    shape, images = batch(x), (*tagged(x), index.data_ptr(), address(scale), 0)
    scratch = workspace("box_blend_grad_lam", shape, x, grad)
    results = (*weight(lam), *tagged(out), address(scratch))
    _C.box_blend_grad_lam(*shape, *images, *tagged(grad), box.data_ptr(), *results)
