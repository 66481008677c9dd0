from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..dispatch import kernels, raw_op, select
from . import common, loss_common

OP = "soft_cross_entropy"
_STATS = (
    5  # numbers a row: the reference of the exponentials, their sum, what either weight multiplies, mass of targets
)


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor | None = None,
    lam: Tensor | float | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross entropy with dense targets, mixed on the way: `lam * CE(target) + lam_b * CE(target_b)`.

    For a row z of K logits and its target t, with label smoothing e as in `F.cross_entropy`::

        CE(t) = (1 - e) * sum_c t[c] * (lse(z) - z[c]) + e * mean(lse(z) - z)

    Neither the mixed target nor the log-probabilities are stored.

    Args:
        logits: (N, K) float16, bfloat16, float32 or float64; rows may lie at any distance. Arithmetic is float32
            (float64 for float64).
        target, target_b: (N, K) floating; a row need not sum to 1. No gradient flows to them. Without `target_b`
            this is the plain cross entropy with `target`.
        lam: weight of `target`, a float or a tensor, () or (N,); given exactly when `target_b` is.
        smoothing: e, in [0, 1).
        reduction: "mean" over the rows, "sum" or "none".
        lam_b: weight of `target_b`, like `lam`; default `1 - lam`. The two need not sum to 1.
        backend: "triton", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        float32 (float64 for float64 logits), () or, with "none", (N,). Differentiable with respect to `logits`, `lam`
        and `lam_b`, any number of times and by `torch.func`, as `mix_cross_entropy`. A class of target 0 takes no part
        beyond the log-sum-exp, so that its logit may be -inf. Targets whose weight is exactly 0 add nothing to the loss
        or to a gradient where their cross entropy is not finite; they may be NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device.

    Example:
        >>> loss = fastmix.ops.soft_cross_entropy(model(x), teacher(x).softmax(1))
        >>> loss = fastmix.ops.soft_cross_entropy(model(mixed), y, y[index], lam)
    """
    loss_common.logits(OP, logits)
    target = loss_common.soft_targets(OP, "target", target, logits)
    if (target_b is None) is not (lam is None) or (target_b is None and lam_b is not None):
        raise ValueError(f"fastmix.{OP}: target_b must be given exactly when lam is")
    if target_b is not None:
        target_b = loss_common.soft_targets(OP, "target_b", target_b, logits).to(target.dtype)
        lam = loss_common.weight(OP, "lam", lam, logits)
        lam_b = None if lam_b is None else loss_common.weight(OP, "lam_b", lam_b, logits)
    smoothing = loss_common.fraction(OP, "smoothing", smoothing)
    reduced = loss_common.reduction(OP, reduction)
    chosen = select(OP, logits, backend)
    if chosen == "reference":
        return reference.soft_cross_entropy(logits, target, target_b, lam, smoothing, reduction, lam_b=lam_b)
    args = (loss_common.rows(logits), target, target_b, lam, lam_b, smoothing, reduced, chosen)
    if common.wants_grad(OP, logits, lam, lam_b):
        return SoftCrossEntropy.apply(*args)
    return _soft_cross_entropy(*args)[0]


def _fake(logits, target, target_b, lam, lam_b, smoothing, reduction, backend):
    return loss_common.results(logits, reduction, _STATS)


@raw_op(
    "soft_cross_entropy(Tensor logits, Tensor target, Tensor? target_b, Tensor? lam, Tensor? lam_b, float smoothing, "
    "int reduction, str backend) -> (Tensor, Tensor, Tensor)",
    _fake,
)
def _soft_cross_entropy(logits, target, target_b, lam, lam_b, smoothing, reduction, backend):
    out, stats, scale = loss_common.results(logits, reduction, _STATS)
    kernels(OP, backend).soft_cross_entropy(
        logits, target, target_b, lam, lam_b, smoothing, reduction, out, stats, scale
    )
    return out, stats, scale


def _fake_grad(grad, logits, target, target_b, lam, lam_b, smoothing, stats, scale, backend):
    return logits.new_empty(logits.shape)


@raw_op(
    "soft_cross_entropy_grad(Tensor grad, Tensor logits, Tensor target, Tensor? target_b, Tensor? lam, Tensor? lam_b, "
    "float smoothing, Tensor stats, Tensor scale, str backend) -> Tensor",
    _fake_grad,
)
def _soft_cross_entropy_grad(grad, logits, target, target_b, lam, lam_b, smoothing, stats, scale, backend):
    out = logits.new_empty(logits.shape)
    kernels(OP, backend).soft_cross_entropy_grad(
        grad, logits, target, target_b, lam, lam_b, smoothing, stats, scale, out
    )
    return out


class SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, target_b, lam, lam_b, smoothing, reduction, backend):
        out, stats, scale = _soft_cross_entropy(logits, target, target_b, lam, lam_b, smoothing, reduction, backend)
        ctx.save_for_backward(logits, target, target_b, lam, lam_b, stats, scale)
        ctx.smoothing, ctx.reduction, ctx.backend = smoothing, reduction, backend
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, stats, scale = ctx.saved_tensors
        if common.differentiated_again(grad):
            return *_gradients(ctx, grad, inputs), *[None] * 3
        grad_logits = grad_lam = grad_lam_b = None
        if ctx.needs_input_grad[0]:
            grad_logits = _soft_cross_entropy_grad(grad.contiguous(), *inputs, ctx.smoothing, stats, scale, ctx.backend)
        wanted = ctx.needs_input_grad[3:5]
        if any(wanted):
            grad_lam, grad_lam_b = loss_common.weight_gradients(grad, scale, stats[2:4], *inputs[3:], wanted)
        return grad_logits, None, None, grad_lam, grad_lam_b, None, None, None


def _gradients(ctx, grad, inputs):
    def function(logits, target, target_b, lam, lam_b):
        reduction = loss_common.REDUCTIONS[ctx.reduction]
        return reference.soft_cross_entropy(logits, target, target_b, lam, ctx.smoothing, reduction, lam_b=lam_b)

    return common.graphed(function, inputs, ctx.needs_input_grad[:5], (grad,), materialize=True)
