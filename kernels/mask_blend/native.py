"""Launchers of the compiled kernels of `mask_blend`."""

from fastmix.kernels.images import address, batch, tagged, workspace
from fastmix.native import module

_C = module()


def mask_blend(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, out, mean, plan=None, partner_plan=None):
    shape, images = batch(x, index), (*tagged(x), index.data_ptr(), address(scale), address(shift))
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    blocks = next((p.shape[1:] for p in (plan, partner_plan) if p is not None), (1, 1))
    plans = (address(plan), address(partner_plan), *blocks)
    scratch = workspace("mask_blend", shape, x, out, (*mask.shape[1:], mode))
    _C.mask_blend(*shape, *images, *options, *plans, *tagged(out), mean.data_ptr(), address(scratch))


def mask_blend_grad_x(grad, inverse, mask, mode, sigmoid, sigmoid_first, out):
    order, start = (part.data_ptr() for part in inverse)
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    _C.mask_blend_grad_x(*batch(grad), *tagged(grad), order, start, *options, *tagged(out))


def mask_blend_grad_mask(grad, grad_mean, x, index, mask, mode, sigmoid, sigmoid_first, scale, out):
    shape, images = batch(x), (*tagged(x), index.data_ptr(), address(scale), 0)
    options = (mask.data_ptr(), *mask.shape[1:], mode, sigmoid, sigmoid_first)
    scratch = workspace("mask_blend_grad_mask", shape, x, grad, (*mask.shape[1:], mode))
    results = (address(grad_mean), out.data_ptr(), address(scratch))
    _C.mask_blend_grad_mask(*shape, *images, *tagged(grad), *options, *results)
