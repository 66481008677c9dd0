"""Launchers of the compiled kernels of `soft_cross_entropy`."""

from fastmix.kernels.losses import loss, reduction_of
from fastmix.native import module

_C = module()


def soft_cross_entropy(logits, target, target_b, lam, lam_b, smoothing, reduction, out, stats, scale):
    call = loss(logits, target, target_b, lam, lam_b, reduction, stats, scale, smoothing=smoothing)
    _C.soft_cross_entropy(*call, out.data_ptr())


def soft_cross_entropy_grad(grad, logits, target, target_b, lam, lam_b, smoothing, stats, scale, out):
    call = loss(logits, target, target_b, lam, lam_b, reduction_of(grad), stats, scale, smoothing=smoothing)
    _C.soft_cross_entropy_grad(*call, grad.data_ptr(), out.data_ptr())
