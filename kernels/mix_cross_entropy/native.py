"""Launchers of the compiled kernels of `mix_cross_entropy`."""

from fastmix.kernels.losses import loss, reduction_of
from fastmix.native import module

_C = module()


def mix_cross_entropy(
    logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, out, stats, scale
):
    call = loss(logits, target, target_b, lam, lam_b, reduction, stats, scale, ignore_index, smoothing, decouple)
    _C.mix_cross_entropy(*call, out.data_ptr())


def mix_cross_entropy_grad(
    grad, logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, stats, scale, out
):
    options = (reduction_of(grad), stats, scale, ignore_index, smoothing, decouple)
    call = loss(logits, target, target_b, lam, lam_b, *options)
    _C.mix_cross_entropy_grad(*call, grad.data_ptr(), out.data_ptr())
