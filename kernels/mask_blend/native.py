"""Launchers of the compiled kernels of `mask_blend`."""

from fastmix.kernels.images import address, batch, tagged
from fastmix.native import module

_C = module()


def mask_blend(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, out, mean):
    images = (*tagged(x), index.data_ptr(), address(scale), address(shift))
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    _C.mask_blend(*batch(x), *images, *options, *tagged(out), mean.data_ptr())


def mask_blend_grad_x(grad, inverse, mask, mode, sigmoid, sigmoid_first, out):
    order, start = (part.data_ptr() for part in inverse)
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    _C.mask_blend_grad_x(*batch(grad), *tagged(grad), order, start, *options, *tagged(out))


def mask_blend_grad_mask(grad, grad_mean, x, index, mask, mode, sigmoid, sigmoid_first, scale, out):
    images = (*tagged(x), index.data_ptr(), address(scale), 0)
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    _C.mask_blend_grad_mask(*batch(x), *images, *tagged(grad), *options, address(grad_mean), out.data_ptr())
