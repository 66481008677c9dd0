"""Launchers of the compiled kernels of `mix_binary_cross_entropy`."""

from fastmix.kernels.losses import loss, reduction_of
from fastmix.native import module

_C = module()


def mix_binary_cross_entropy(
    logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, reduction, out, stats, scale
):
    options = (ignore_index, smoothing, 0.0, threshold, sum_classes)
    call = loss(logits, target, target_b, lam, lam_b, reduction, stats, scale, *options)
    _C.mix_binary_cross_entropy(*call, out.data_ptr())


def mix_binary_cross_entropy_grad(
    grad, logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, scale, out
):
    options = (ignore_index, smoothing, 0.0, threshold, sum_classes)
    call = loss(logits, target, target_b, lam, lam_b, reduction_of(grad), None, scale, *options)
    _C.mix_binary_cross_entropy_grad(*call, grad.data_ptr(), out.data_ptr())
