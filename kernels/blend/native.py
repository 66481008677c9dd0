"""Launchers of the compiled kernels of `blend`."""

from fastmix.kernels.images import address, batch, tagged, weight
from fastmix.native import module

_C = module()


def blend(x, index, lam, scale, shift, out):
    _C.blend(
        *batch(x), *tagged(x), index.data_ptr(), address(scale), address(shift), *weight(lam), *tagged(out)
    )  # fmt: skip


def blend_grad_x(grad, inverse, lam, out):
    order, start = inverse
    _C.blend_grad_x(*batch(grad), *tagged(grad), order.data_ptr(), start.data_ptr(), *weight(lam), *tagged(out))


def blend_grad_lam(grad, x, index, scale, out):
    _C.blend_grad_lam(
        *batch(x), *tagged(x), index.data_ptr(), address(scale), 0, *tagged(grad), *tagged(out)
    )  # fmt: skip
