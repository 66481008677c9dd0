from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import reference
from ..dispatch import kernels, raw_op, select
from . import common, loss_common

OP = "mix_binary_cross_entropy"


def mix_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor | float,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
    ignore_index: int = -100,
    threshold: float | None = None,
    sum_classes: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Binary cross entropy of every class with the mixed target `t = lam * own + lam_b * partner`.

    For a row z of K logits::

        mean_c softplus(z[c]) - t[c] * z[c]      (sum_c with `sum_classes`)

    The loss of "ResNet strikes back" (Wightman et al., 2021), as timm's `BinaryCrossEntropy` on the targets of timm's
    `Mixup`: with label smoothing e, `own` is `e / K` and `1 - e + e / K` at the label. Dense targets y become
    `(1 - e) * y + e / 2`. No (N, K) tensor of targets is made.

    Args:
        logits: (N, K) float16, bfloat16, float32 or float64; rows may lie at any distance. Arithmetic is float32
            (float64 for float64).
        target, target_b: of the own image and of its partner, either (N,) int64 classes in [0, K) or `ignore_index`,
            or (N, K) floating multi-label targets, to which no gradient flows.
        lam: weight of the own image's label, a float or a tensor, () or (N,).
        smoothing: e, in [0, 1).
        reduction: "mean" over the rows that count, "sum" or "none".
        lam_b: weight of the partner's label, like `lam`; default `1 - lam`. The two need not sum to 1.
        ignore_index: a label of this value is left out with its weight. A row counts unless both of its labels are
            left out; it is then 0, with a gradient of 0, and takes no part in the mean.
        threshold: targets above it become 1, all others 0; no gradient flows to the weights then.
        sum_classes: sum the classes of a row instead of taking their mean.
        backend: "triton", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        float32 (float64 for float64 logits), () or, with "none", (N,). Differentiable with respect to `logits`, `lam`
        and `lam_b`, any number of times and by `torch.func`, as `mix_cross_entropy`. A class of target 0 may have a
        logit of -inf. A target whose weight is exactly 0 adds nothing where it or the logit is not finite.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; a label out of range on the CPU
            (on CUDA, where values are not read back, such a row is NaN).

    Example:
        >>> loss = fastmix.ops.mix_binary_cross_entropy(model(mixed), y, y[index], lam, threshold=0.2)
        >>> loss.backward()
    """
    loss_common.logits(OP, logits)
    if isinstance(target, Tensor) and target.dim() == 2:
        target = loss_common.soft_targets(OP, "target", target, logits)
        target_b = loss_common.soft_targets(OP, "target_b", target_b, logits).to(target.dtype)
    else:
        target = loss_common.labels(OP, "target", target, logits)
        target_b = loss_common.labels(OP, "target_b", target_b, logits)
    lam = loss_common.weight(OP, "lam", lam, logits)
    lam_b = None if lam_b is None else loss_common.weight(OP, "lam_b", lam_b, logits)
    smoothing = loss_common.fraction(OP, "smoothing", smoothing)
    reduced = loss_common.reduction(OP, reduction)
    ignore_index = loss_common.ignored_label(OP, ignore_index)
    limit = math.nan if threshold is None else loss_common.number(OP, "threshold", threshold)
    sum_classes = loss_common.switch(OP, "sum_classes", sum_classes)
    chosen = select(OP, logits, backend)
    if chosen == "reference":
        if target.dim() == 1:
            for name, labels in (("target", target), ("target_b", target_b)):
                loss_common.label_values(OP, name, labels, logits.shape[1], ignore_index)
        options = {"lam_b": lam_b, "ignore_index": ignore_index, "threshold": threshold, "sum_classes": sum_classes}
        return reference.mix_binary_cross_entropy(logits, target, target_b, lam, smoothing, reduction, **options)
    args = (loss_common.rows(logits), target, target_b, lam, lam_b, smoothing, limit, sum_classes, ignore_index)
    if common.wants_grad(OP, logits, lam, lam_b):
        return MixBinaryCrossEntropy.apply(*args, reduced, chosen)
    return _mix_binary_cross_entropy(*args, reduced, False, chosen)[0]


def _fake(
    logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, reduction, terms, backend
):
    return loss_common.results(logits, reduction, 2 if terms else 0)


@raw_op(
    "mix_binary_cross_entropy(Tensor logits, Tensor target, Tensor target_b, Tensor lam, Tensor? lam_b, "
    "float smoothing, float threshold, bool sum_classes, int ignore_index, int reduction, bool terms, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _fake,
)
def _mix_binary_cross_entropy(
    logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, reduction, terms, backend
):
    out, stats, scale = loss_common.results(logits, reduction, 2 if terms else 0)
    kernels(OP, backend).mix_binary_cross_entropy(
        logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index,
        reduction, out, stats if terms else None, scale,
    )  # fmt: skip
    return out, stats, scale


def _fake_grad(
    grad, logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, scale, backend
):
    return logits.new_empty(logits.shape)


@raw_op(
    "mix_binary_cross_entropy_grad(Tensor grad, Tensor logits, Tensor target, Tensor target_b, Tensor lam, "
    "Tensor? lam_b, float smoothing, float threshold, bool sum_classes, int ignore_index, Tensor scale, str backend) "
    "-> Tensor",
    _fake_grad,
)
def _mix_binary_cross_entropy_grad(
    grad, logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, scale, backend
):
    out = logits.new_empty(logits.shape)
    kernels(OP, backend).mix_binary_cross_entropy_grad(
        grad, logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, scale, out
    )
    return out


class MixBinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index, reduction, backend
    ):
        terms = any(ctx.needs_input_grad[3:5])
        options = smoothing, threshold, sum_classes, ignore_index
        out, stats, scale = _mix_binary_cross_entropy(
            logits, target, target_b, lam, lam_b, *options, reduction, terms, backend
        )
        ctx.save_for_backward(logits, target, target_b, lam, lam_b, stats, scale)
        ctx.options, ctx.reduction, ctx.backend = options, reduction, backend
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, stats, scale = ctx.saved_tensors
        if common.differentiated_again(grad):
            return *_gradients(ctx, grad, inputs), *[None] * 6
        grad_logits = grad_lam = grad_lam_b = None
        if ctx.needs_input_grad[0]:
            grad_logits = _mix_binary_cross_entropy_grad(grad.contiguous(), *inputs, *ctx.options, scale, ctx.backend)
        wanted = ctx.needs_input_grad[3:5]
        if any(wanted):
            grad_lam, grad_lam_b = loss_common.weight_gradients(grad, scale, stats, *inputs[3:], wanted)
        return grad_logits, None, None, grad_lam, grad_lam_b, *[None] * 6


def _gradients(ctx, grad, inputs):
    smoothing, limit, sum_classes, ignore_index = ctx.options
    threshold = None if math.isnan(limit) else limit

    def function(logits, target, target_b, lam, lam_b):
        options = {"lam_b": lam_b, "ignore_index": ignore_index, "threshold": threshold, "sum_classes": sum_classes}
        reduction = loss_common.REDUCTIONS[ctx.reduction]
        return reference.mix_binary_cross_entropy(logits, target, target_b, lam, smoothing, reduction, **options)

    return common.graphed(function, inputs, ctx.needs_input_grad[:5], (grad,), materialize=True)
