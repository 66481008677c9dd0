from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select
from ..reference.pixels import acc_dtype
from . import common

OP = "flip_blend"


def flip_blend(
    x: Tensor,
    lam: Tensor | float | None = None,
    box: Tensor | None = None,
    *,
    lam_b: Tensor | float | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix sample n with sample N - 1 - n, in place if `out=x`: the pairing of timm's `Mixup`.

    `out[n] = x[N-1-n]` inside the box of n, else `lam[n] * x[n] + lam_b[n] * x[N-1-n]`. It computes what `box_blend`
    does with `index = arange(N).flip(0)`, but reads both samples of a pair before it writes either. So the result may
    replace the images, and of a batch that is only cut (`lam` None) nothing but the boxes is touched.

    Args:
        x: (N, ...) uint8, float16, bfloat16, float32 or float64. Contiguous and channels_last layouts are kept;
            others are copied once. Written to if it is also `out`.
        lam: weight of the own sample, a float or a float32 tensor, () or (N,) (float64 is used in double precision when
            `x` is float64); None: 1. Without a gradient.
        box: (N, 4) or (4,) int32, half-open `(y0, x0, y1, x1)` in the last two dimensions, clipped to them; a reversed
            or empty box pastes nothing. None: no boxes.
        lam_b: weight of the other sample, like `lam`; default `1 - lam`. For weights that were rounded apart from each
            other, or do not sum to 1.
        out: `x` itself, or a tensor laid out like `x` that shares no memory with it; not under autograd.
        backend: "cpu", "triton" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, ...) mixed samples in the dtype of `x`. The middle sample of an odd batch, which is its own partner, stays
        as it is. Arithmetic is float32 (float64 for float64) with one rounding; for float32 the result is bit-equal to
        `x * lam + x.flip(0) * lam_b`. Copies (weights 1 and 0) are bit for bit. Differentiable with respect to `x`, any
        number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; a gradient asked for with `out`.

    Example:
        >>> lam = torch.distributions.Beta(0.2, 0.2).sample((len(x),))
        >>> fastmix.ops.flip_blend(x, lam, out=x)
    """
    _checks.images(OP, x)
    acc, lead = acc_dtype(x.dtype), x.shape[:1]
    lam, lam_b = _weights(lam, lam_b, lead, x, acc)
    if box is not None:
        box = _check_box(box, x)
    chosen = select(OP, x, backend)
    dense = common.dense(x)
    if out is not None:
        _checks.output(OP, out, lead, x if out is x else dense, x.dtype)
        if out is not x and common.writes_directly(out, x):
            _checks.separate(OP, out, {"x": x, "lam": lam, "lam_b": lam_b, "box": box})
    record = common.records(OP, out, x)
    if chosen == "reference":
        return common.into(reference.flip_blend(dense, lam, box, lam_b=lam_b), lead, out)
    if record:
        return FlipBlend.apply(dense, lam, lam_b, box, chosen)
    if (out is not x or dense is x) and common.writes_directly(out, dense, lam, lam_b, box):
        kernels(OP, chosen).flip_blend(dense, lam, lam_b, box, False, out)
        return common.written(out, lead)
    mixed = _flip_blend(dense, lam, lam_b, box, False, chosen)
    return common.into(mixed, lead, out)


def _weights(
    lam: Tensor | float | None, lam_b: Tensor | float | None, lead: torch.Size, x: Tensor, acc: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Checked, both () or both (N,)."""
    if lam_b is not None and lam is None:
        raise ValueError(f"fastmix.{OP}: lam_b must come with lam, got lam None")
    lam, lam_b = (None if w is None else _checks.lam(OP, w, lead, x, acc) for w in (lam, lam_b))
    if any(w is not None and w.requires_grad and torch.is_grad_enabled() for w in (lam, lam_b)):
        raise ValueError(f"fastmix.{OP}: lam must not require a gradient: none flows to it; see fastmix.ops.box_blend")
    if lam_b is not None and lam.dim() != lam_b.dim():
        lam, lam_b = lam.expand(lead).contiguous(), lam_b.expand(lead).contiguous()
    return lam, lam_b


def _check_box(box: Tensor, x: Tensor) -> Tensor:
    if not isinstance(box, Tensor) or box.dtype is not torch.int32:
        raise TypeError(f"fastmix.{OP}: box must be an int32 tensor, got {_checks.describe(box)}")
    _checks.strided(OP, "box", box)
    if x.dim() < 3:
        raise ValueError(f"fastmix.{OP}: x must have shape (N, ..., H, W) with a box, got {_checks.describe(x)}")
    if box.shape not in ((4,), (x.shape[0], 4)) or box.device != x.device:
        raise ValueError(
            f"fastmix.{OP}: box must have shape ({x.shape[0]}, 4) or (4,) on {x.device}, got {_checks.describe(box)}"
        )
    return box.expand(x.shape[0], 4).contiguous()


def _fake(x, lam, lam_b, box, adjoint, backend):
    return torch.empty_like(x)


@raw_op(
    "flip_blend(Tensor x, Tensor? lam, Tensor? lam_b, Tensor? box, bool adjoint, str backend) -> Tensor",
    _fake,
)
def _flip_blend(x, lam, lam_b, box, adjoint, backend):
    out = torch.empty_like(x)
    kernels(OP, backend).flip_blend(x, lam, lam_b, box, adjoint, out)
    return out


class FlipBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lam, lam_b, box, backend):
        ctx.save_for_backward(lam, lam_b, box)
        ctx.backend = backend
        return _flip_blend(x, lam, lam_b, box, False, backend)

    @staticmethod
    def backward(ctx, grad):
        lam, lam_b, box = ctx.saved_tensors
        if common.differentiated_again(grad):

            def mixed(x, lam):
                return reference.flip_blend(x, lam, box, lam_b=lam_b)

            return common.graphed_images(mixed, None, lam, grad.dtype, (True, False), (grad,), None)[0], *[None] * 4
        return _flip_blend(common.dense(grad), lam, lam_b, box, True, ctx.backend), None, None, None, None
