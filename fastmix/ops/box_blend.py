from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks, reference
from ..dispatch import kernels, raw_op
from . import common

OP = "box_blend"


def box_blend(
    x: Tensor,
    index: Tensor,
    box: Tensor,
    lam: Tensor | float | None = None,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Paste a box of the partner; outside it blend by `lam`.

    `out[n, :, y, x] = x[index[n], :, y, x]` inside the box of n, else `lam[n] * x[n] + (1 - lam[n]) * x[index[n]]`
    (the own pixel without `lam`). One launch serves CutMix (Yun et al., 2019, Eq. 1: boxes, no `lam`), MixUp (empty
    boxes and `lam`) and a choice between them per sample.

    Args:
        x: (N, C, H, W) images, dtypes and layouts as in `blend`.
        index: (N,) int64 in [0, N), the partner of each sample, or (D, N) for D draws in one launch, as in `blend`.
        box: (N, 4) or (D, N, 4) int32, or (4,) for all outputs: half-open `(y0, x0, y1, x1)` in pixels, clipped to
            the image like a Python slice; a reversed or empty box pastes nothing.
        lam: weight of the own image outside the box, as in `blend`; None: 1.
        normalize, dtype, out, backend: as in `blend`.

    Returns:
        (N, C, H, W) mixed images, or a tuple of D. Pixels are copied bit for bit inside the box, and outside where
        `lam` is None, 1 or 0. Differentiable once with respect to `x` and `lam`.

    Raises:
        TypeError, ValueError: as `blend`.

    Example:
        >>> box = torch.tensor([[8, 8, 24, 24]], dtype=torch.int32).expand(len(x), 4)
        >>> mixed = fastmix.ops.box_blend(x, index, box)
    """
    _checks.images(OP, x, dims=4)
    call = common.begin(OP, x, index, normalize, dtype, out, backend, box=box, lam=lam)
    box = _check_box(box, call.lead, x)
    lam = None if lam is None else _checks.lam(OP, lam, call.lead, x, call.acc)
    record = common.records(OP, out, x, lam)
    if call.backend == "reference":
        weight = lam if lam is None or lam.dim() == 0 else lam.view(call.lead)
        boxes = box.view(*call.lead, 4)
        mixed = reference.box_blend(call.x, index, boxes, weight, normalize=normalize, dtype=call.dtype)
        return common.into(mixed, call.lead, out)
    inputs = (call.x, call.index, box, lam, call.scale, call.shift)
    if record:
        return BoxBlend.apply(*inputs, call.dtype, call.backend, call.lead)
    if common.writes_directly(out):
        kernels(OP, call.backend).box_blend(*inputs, common.flat(out, call.lead))
        return common.written(out, call.lead)
    mixed = _box_blend(*inputs, call.dtype, call.backend)
    return common.into(common.handed_out(mixed, call.lead), call.lead, out)


def _check_box(box: Tensor, lead: torch.Size, x: Tensor) -> Tensor:
    """Flattened, one box an output."""
    if not isinstance(box, Tensor) or box.dtype is not torch.int32:
        raise TypeError(f"fastmix.{OP}: box must be an int32 tensor, got {_checks.describe(box)}")
    if box.shape not in ((4,), (*lead, 4)) or box.device != x.device:
        raise ValueError(
            f"fastmix.{OP}: box must have shape {(*lead, 4)} or (4,) on {x.device}, got {_checks.describe(box)}"
        )
    return box.expand(*lead, 4).reshape(-1, 4).contiguous()


def _fake(x, index, box, lam, scale, shift, dtype, backend):
    return common.outputs_like(x, index, dtype)


@raw_op(
    "box_blend(Tensor x, Tensor index, Tensor box, Tensor? lam, Tensor? scale, Tensor? shift, ScalarType dtype, "
    "str backend) -> Tensor",
    _fake,
)
def _box_blend(x, index, box, lam, scale, shift, dtype, backend):
    out = common.outputs_like(x, index, dtype)
    kernels(OP, backend).box_blend(x, index, box, lam, scale, shift, out)
    return out


def _fake_grad_x(grad, order, start, box, lam, dtype, backend):
    return torch.empty_like(grad, dtype=dtype)


@raw_op(
    "box_blend_grad_x(Tensor grad, Tensor order, Tensor start, Tensor box, Tensor? lam, ScalarType dtype, "
    "str backend) -> Tensor",
    _fake_grad_x,
)
def _box_blend_grad_x(grad, order, start, box, lam, dtype, backend):
    out = torch.empty_like(grad, dtype=dtype)
    kernels(OP, backend).box_blend_grad_x(grad, (order, start), box, lam, out)
    return out


def _fake_grad_lam(grad, x, index, box, scale, dtype, backend):
    return grad.new_empty(grad.shape[0], dtype=dtype)


@raw_op(
    "box_blend_grad_lam(Tensor grad, Tensor x, Tensor index, Tensor box, Tensor? scale, ScalarType dtype, "
    "str backend) -> Tensor",
    _fake_grad_lam,
)
def _box_blend_grad_lam(grad, x, index, box, scale, dtype, backend):
    out = grad.new_empty(grad.shape[0], dtype=dtype)
    kernels(OP, backend).box_blend_grad_lam(grad, x, index, box, scale, out)
    return out


class BoxBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, box, lam, scale, shift, dtype, backend, lead):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, index, box, lam, scale)
        ctx.dtype, ctx.backend = x.dtype, backend
        return common.handed_out(_box_blend(x, index, box, lam, scale, shift, dtype, backend), lead)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, index, box, lam, scale = ctx.saved_tensors
        dtype = common.grad_dtype(ctx.dtype, grads)

        def for_x(grad, index, box, lam):
            order, start = common.inverse_index(index)
            mixed_grad = common.dense(common.scaled(grad, scale))
            return _box_blend_grad_x(mixed_grad, order, start, box, lam, dtype, ctx.backend)

        def for_lam(grad, index, box):
            return _box_blend_grad_lam(common.like(grad, x), x, index, box, scale, lam.dtype, ctx.backend)

        grad_x = grad_lam = None
        if ctx.needs_input_grad[0]:
            grad_x = common.summed(common.each_draw(for_x, grads, index, box, lam), ctx.dtype)
        if ctx.needs_input_grad[3]:
            grad_lam = common.lam_shaped(common.each_draw(for_lam, grads, index, box), lam)
        return grad_x, None, None, grad_lam, None, None, None, None, None
