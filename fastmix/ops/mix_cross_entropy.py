from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..dispatch import kernels, raw_op, select
from . import common, loss_common

OP = "mix_cross_entropy"
_STATS = 4  # numbers a row: the reference of the exponentials, their sum, and what either weight multiplies


def mix_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor | float,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
    ignore_index: int = -100,
    decouple: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Cross entropy of mixed samples, `lam * CE(target) + lam_b * CE(target_b)`, from one reading of the logits.

    For a row z of K logits, the labels a and b and label smoothing e, as timm and `F.cross_entropy` have it::

        CE(a) = (1 - e) * (lse(z) - z[a]) + e * mean(lse(z) - z)

    which is the mixup loss of Zhang et al. (2018), and the cross entropy with the two smoothed one-hot labels mixed;
    no (N, K) tensor of labels exists. `decouple` = h adds the regulariser of decoupled mixup (Liu et al., 2023): each
    label against all classes but the other label::

        h * (lse(z without b) - z[a]) + h * (lse(z without a) - z[b])

    for rows that really are mixed, with different labels of weights other than 0.

    Args:
        logits: (N, K) float16, bfloat16, float32 or float64; rows may lie at any distance. Arithmetic is float32
            (float64 for float64).
        target, target_b: (N,) int64 in [0, K) or `ignore_index`, classes of the own image and of its partner.
        lam: weight of the own image's label, a float or a tensor, () or (N,).
        smoothing: e, in [0, 1).
        reduction: "mean" over the rows that count, "sum" or "none".
        lam_b: weight of the partner's label, like `lam`; default `1 - lam`. The two need not sum to 1.
        ignore_index: a label of this value is left out with its weight. A row counts unless both of its labels are
            left out; it is then 0, with a gradient of 0, and takes no part in the mean.
        decouple: h >= 0, the weight of the decoupled part (0.1 for cutting and 0.01 for blending methods in the
            paper).
        backend: "triton", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        float32 (float64 for float64 logits), () or, with "none", (N,). Differentiable with respect to `logits`, `lam`
        and `lam_b`; what is kept for it is four numbers a row. A derivative that is differentiated again, a
        `torch.func` transform and forward-mode differentiation run plain PyTorch, on any backend. NaN for a row that
        holds NaN, and where `F.cross_entropy` is: for the mean of no rows, and for a row of -inf alone. Logits of -inf
        are classes of probability 0. A label whose weight is exactly 0 adds nothing to the loss or to a gradient where
        its cross entropy is not finite.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; a label out of range on the CPU
            (on CUDA, where values are not read back, such a row is NaN).

    Example:
        >>> loss = fastmix.ops.mix_cross_entropy(model(mixed), y, y[index], lam, smoothing=0.1)
        >>> loss.backward()
    """
    loss_common.logits(OP, logits)
    target = loss_common.labels(OP, "target", target, logits)
    target_b = loss_common.labels(OP, "target_b", target_b, logits)
    lam = loss_common.weight(OP, "lam", lam, logits)
    lam_b = None if lam_b is None else loss_common.weight(OP, "lam_b", lam_b, logits)
    smoothing = loss_common.fraction(OP, "smoothing", smoothing)
    reduced = loss_common.reduction(OP, reduction)
    ignore_index = loss_common.ignored_label(OP, ignore_index)
    decouple = loss_common.not_negative(OP, "decouple", decouple)
    chosen = select(OP, logits, backend)
    if chosen == "reference":
        for name, labels in (("target", target), ("target_b", target_b)):
            loss_common.label_values(OP, name, labels, logits.shape[1], ignore_index)
        options = {"lam_b": lam_b, "ignore_index": ignore_index, "decouple": decouple}
        return reference.mix_cross_entropy(logits, target, target_b, lam, smoothing, reduction, **options)
    args = (loss_common.rows(logits), target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduced)
    if common.wants_grad(OP, logits, lam, lam_b):
        return MixCrossEntropy.apply(*args, chosen)
    return _mix_cross_entropy(*args, chosen)[0]


def _fake(logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, backend):
    return loss_common.results(logits, reduction, _STATS)


@raw_op(
    "mix_cross_entropy(Tensor logits, Tensor target, Tensor target_b, Tensor lam, Tensor? lam_b, float smoothing, "
    "float decouple, int ignore_index, int reduction, str backend) -> (Tensor, Tensor, Tensor)",
    _fake,
)
def _mix_cross_entropy(logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, backend):
    out, stats, scale = loss_common.results(logits, reduction, _STATS)
    kernels(OP, backend).mix_cross_entropy(
        logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, out, stats, scale
    )
    return out, stats, scale


def _fake_grad(grad, logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, stats, scale, backend):
    return logits.new_empty(logits.shape)


@raw_op(
    "mix_cross_entropy_grad(Tensor grad, Tensor logits, Tensor target, Tensor target_b, Tensor lam, Tensor? lam_b, "
    "float smoothing, float decouple, int ignore_index, Tensor stats, Tensor scale, str backend) -> Tensor",
    _fake_grad,
)
def _mix_cross_entropy_grad(
    grad, logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, stats, scale, backend
):
    out = logits.new_empty(logits.shape)
    kernels(OP, backend).mix_cross_entropy_grad(
        grad, logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, stats, scale, out
    )
    return out


class MixCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, backend):
        out, stats, scale = _mix_cross_entropy(
            logits, target, target_b, lam, lam_b, smoothing, decouple, ignore_index, reduction, backend
        )
        ctx.save_for_backward(logits, target, target_b, lam, lam_b, stats, scale)
        ctx.options = smoothing, decouple, ignore_index
        ctx.reduction, ctx.backend = reduction, backend
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, stats, scale = ctx.saved_tensors
        if common.differentiated_again(grad):
            return *_gradients(ctx, grad, inputs), *[None] * 5
        grad_logits = grad_lam = grad_lam_b = None
        if ctx.needs_input_grad[0]:
            grad_logits = _mix_cross_entropy_grad(grad.contiguous(), *inputs, *ctx.options, stats, scale, ctx.backend)
        wanted = ctx.needs_input_grad[3:5]
        if any(wanted):
            grad_lam, grad_lam_b = loss_common.weight_gradients(grad, scale, stats[2:], *inputs[3:], wanted)
        return grad_logits, None, None, grad_lam, grad_lam_b, *[None] * 5


def _gradients(ctx, grad, inputs):
    smoothing, decouple, ignore_index = ctx.options

    def function(logits, target, target_b, lam, lam_b):
        options = {"lam_b": lam_b, "ignore_index": ignore_index, "decouple": decouple}
        reduction = loss_common.REDUCTIONS[ctx.reduction]
        return reference.mix_cross_entropy(logits, target, target_b, lam, smoothing, reduction, **options)

    return common.graphed(function, inputs, ctx.needs_input_grad[:5], (grad,), materialize=True)
