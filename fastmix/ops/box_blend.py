from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op
from ..reference.box_blend import clipped, filled
from . import common

OP = "box_blend"
RESIZES = ("nearest", "bilinear")


def box_blend(
    x: Tensor,
    index: Tensor,
    box: Tensor,
    lam: Tensor | float | None = None,
    *,
    source: Tensor | None = None,
    resize: str = "nearest",
    align_corners: bool = False,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Paste a box of the partner; outside it blend by `lam`.

    `out[n, :, y, x] = x[index[n], :, y, x]` inside the box of n, else `lam[n] * x[n] + (1 - lam[n]) * x[index[n]]`
    (the own pixel without `lam`). One launch serves CutMix (Yun et al., 2019, Eq. 1: boxes, no `lam`), MixUp (empty
    boxes and `lam`) and a choice between them per sample.

    With `source` the box is filled by another region of the partner, both clipped first: where they are equally large
    this is a copy, else the region is resized to the box like `F.interpolate` of the crop. `source=(0, 0, H, W)` is
    ResizeMix (Qin et al., 2020), bilinear regions with aligned corners SnapMix (Huang et al., 2021), equally large
    ones SMMix (Chen et al., 2023).

    Args:
        x: (N, C, H, W) images, dtypes and layouts as in `blend`.
        index: (N,) int64 in [0, N), the partner of each sample, or (D, N) for D draws in one launch, as in `blend`.
        box: (N, 4) or (D, N, 4) int32, or (4,) for all outputs: half-open `(y0, x0, y1, x1)` in pixels, clipped to
            the image like a Python slice; a reversed or empty box pastes nothing.
        lam: weight of the own image outside the box, as in `blend`; None: 1.
        source: int32 regions of the partner in the form of `box`, clipped like it; an empty one pastes nothing.
            None: the box itself.
        resize: "nearest" or "bilinear", whose neighbours never lie outside `source`; of uint8 images the
            interpolated value is rounded once.
        align_corners: of "bilinear", as in `F.interpolate`.
        normalize, dtype, out, backend: as in `blend`.

    Returns:
        (N, C, H, W) mixed images, or a tuple of D. Pixels are copied bit for bit inside the box (unless they are
        interpolated), and outside where `lam` is None, 1 or 0. Differentiable with respect to `x` and `lam`, any
        number of times.

    Raises:
        TypeError, ValueError: as `blend`; for an unknown `resize`, and `align_corners` without "bilinear". Triton has
            no kernel for `source`.

    Example:
        >>> box = torch.tensor([[8, 8, 24, 24]], dtype=torch.int32).expand(len(x), 4)
        >>> mixed = fastmix.ops.box_blend(x, index, box)
    """
    _checks.images(OP, x, dims=4)
    if source is not None:
        given = (x, index, box, source, lam, resize, align_corners)
        return _paste(*given, normalize=normalize, dtype=dtype, out=out, backend=backend)
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
    if common.writes_directly(out, *inputs):
        kernels(OP, call.backend).box_blend(*inputs, common.flat(out, call.lead))
        return common.written(out, call.lead)
    mixed = _box_blend(*inputs, call.dtype, call.backend)
    return common.into(common.handed_out(mixed, call.lead), call.lead, out)


def _check_box(box: Tensor, lead: torch.Size, x: Tensor, name: str = "box") -> Tensor:
    """Flattened, one box an output."""
    if not isinstance(box, Tensor) or box.dtype is not torch.int32:
        raise TypeError(f"fastmix.{OP}: {name} must be an int32 tensor, got {_checks.describe(box)}")
    _checks.strided(OP, name, box)
    if box.shape not in ((4,), (*lead, 4)) or box.device != x.device:
        raise ValueError(
            f"fastmix.{OP}: {name} must have shape {(*lead, 4)} or (4,) on {x.device}, got {_checks.describe(box)}"
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


def _fake_grad_lam(grad, x, index, box, lam, scale, dtype, backend):
    return grad.new_empty(grad.shape[0], dtype=dtype)


@raw_op(
    "box_blend_grad_lam(Tensor grad, Tensor x, Tensor index, Tensor box, Tensor lam, Tensor? scale, "
    "ScalarType dtype, str backend) -> Tensor",
    _fake_grad_lam,
)
def _box_blend_grad_lam(grad, x, index, box, lam, scale, dtype, backend):
    out = grad.new_empty(grad.shape[0], dtype=dtype)
    kernels(OP, backend).box_blend_grad_lam(grad, x, index, box, lam, scale, out)
    return out


class BoxBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, box, lam, scale, shift, dtype, backend, lead):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, index, box, lam, scale)
        ctx.dtype, ctx.backend, ctx.lead = x.dtype, backend, lead
        return common.handed_out(_box_blend(x, index, box, lam, scale, shift, dtype, backend), lead)

    @staticmethod
    def backward(ctx, *grads):
        x, index, box, lam, scale = ctx.saved_tensors
        if common.differentiated_again(*grads):
            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
            grad_x, grad_lam = _graphed(ctx, x, index, box, lam, needs, grads, scale)
            return grad_x, None, None, grad_lam, None, None, None, None, None
        dtype = common.grad_dtype(ctx.dtype, grads)

        def for_x(grad, index, box, lam):
            order, start = common.inverse_index(index)
            mixed_grad = common.dense(common.scaled(grad, scale))
            return _box_blend_grad_x(mixed_grad, order, start, box, lam, dtype, ctx.backend)

        def for_lam(grad, index, box, lam):
            return _box_blend_grad_lam(common.like(grad, x), x, index, box, lam, scale, lam.dtype, ctx.backend)

        grad_x = grad_lam = None
        if ctx.needs_input_grad[0]:
            grad_x = common.summed(common.each_draw(for_x, grads, index, box, lam), ctx.dtype)
        if ctx.needs_input_grad[3]:
            grad_lam = common.lam_shaped(common.each_draw(for_lam, grads, index, box, lam), lam)
        return grad_x, None, None, grad_lam, None, None, None, None, None


def _graphed(ctx, x, index, box, lam, needs, grads, scale, **region):
    """Gradients of the images and of `lam` that can be differentiated again."""

    def mixed(x, lam):
        weight = lam if lam is None or lam.dim() == 0 else lam.view(ctx.lead)
        return reference.box_blend(x, index.view(ctx.lead), box.view(*ctx.lead, 4), weight, **region)

    return common.graphed_images(mixed, x, lam, ctx.dtype, needs, grads, scale)


def _paste(x, index, box, source, lam, resize, align_corners, *, normalize, dtype, out, backend):
    """`box_blend` with a source."""
    call = common.begin(OP, x, index, normalize, dtype, out, backend, box=box, source=source, lam=lam)
    mode = _checks.one_of(OP, "resize", resize, RESIZES)
    if align_corners and resize != "bilinear":
        raise ValueError(f"fastmix.{OP}: align_corners=True must come with resize='bilinear', got {resize!r}")
    box, source = _check_box(box, call.lead, x), _check_box(source, call.lead, x, "source")
    lam = None if lam is None else _checks.lam(OP, lam, call.lead, x, call.acc)
    record = common.records(OP, out, x, lam)
    chosen = _backend_with_source(call.backend, backend)
    if chosen == "reference":
        weight = lam if lam is None or lam.dim() == 0 else lam.view(call.lead)
        regions = {"source": source.view(*call.lead, 4), "resize": resize, "align_corners": align_corners}
        options = {"normalize": normalize, "dtype": call.dtype}
        mixed = reference.box_blend(call.x, index, box.view(*call.lead, 4), weight, **regions, **options)
        return common.into(mixed, call.lead, out)
    inputs = (call.x, call.index, box, source, mode + bool(align_corners), lam, call.scale, call.shift)
    if record:
        return BoxPaste.apply(*inputs, call.dtype, chosen, call.lead)
    if common.writes_directly(out, *inputs[:4], *inputs[5:]):
        kernels(OP, chosen).box_paste(*inputs, common.flat(out, call.lead))
        return common.written(out, call.lead)
    return common.into(common.handed_out(_box_paste(*inputs, call.dtype, chosen), call.lead), call.lead, out)


def _backend_with_source(chosen: str, asked: str | None) -> str:
    if chosen != "triton":
        return chosen
    if asked is not None:
        raise ValueError(f"fastmix.{OP}: backend 'triton' has no kernel for source=: leave out backend=")
    return "reference"


def _fake_paste(x, index, box, source, resize, lam, scale, shift, dtype, backend):
    return common.outputs_like(x, index, dtype)


@raw_op(
    "box_paste(Tensor x, Tensor index, Tensor box, Tensor source, int resize, Tensor? lam, Tensor? scale, "
    "Tensor? shift, ScalarType dtype, str backend) -> Tensor",
    _fake_paste,
)
def _box_paste(x, index, box, source, resize, lam, scale, shift, dtype, backend):
    out = common.outputs_like(x, index, dtype)
    kernels(OP, backend).box_paste(x, index, box, source, resize, lam, scale, shift, out)
    return out


def _fake_paste_grad_x(grad, order, start, box, source, resize, lam, dtype, backend):
    return torch.empty_like(grad, dtype=dtype)


@raw_op(
    "box_paste_grad_x(Tensor grad, Tensor order, Tensor start, Tensor box, Tensor source, int resize, Tensor? lam, "
    "ScalarType dtype, str backend) -> Tensor",
    _fake_paste_grad_x,
)
def _box_paste_grad_x(grad, order, start, box, source, resize, lam, dtype, backend):
    out = torch.empty_like(grad, dtype=dtype)
    kernels(OP, backend).box_paste_grad_x(grad, (order, start), box, source, resize, lam, out)
    return out


class BoxPaste(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, box, source, resize, lam, scale, shift, dtype, backend, lead):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[5] else None, index, box, source, lam, scale)
        ctx.resize, ctx.dtype, ctx.backend, ctx.size, ctx.lead = resize, x.dtype, backend, x.shape[2:], lead
        mixed = _box_paste(x, index, box, source, resize, lam, scale, shift, dtype, backend)
        return common.handed_out(mixed, lead)

    @staticmethod
    def backward(ctx, *grads):
        x, index, box, source, lam, scale = ctx.saved_tensors
        if common.differentiated_again(*grads):
            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
            resize, align_corners = RESIZES[min(ctx.resize, 1)], ctx.resize == 2
            region = {"source": source.view(*ctx.lead, 4), "resize": resize, "align_corners": align_corners}
            grad_x, grad_lam = _graphed(ctx, x, index, box, lam, needs, grads, scale, **region)
            return grad_x, *[None] * 4, grad_lam, *[None] * 5
        dtype = common.grad_dtype(ctx.dtype, grads)

        def for_x(grad, index, box, source, lam):
            inverse = common.inverse_index(index)
            mixed_grad = common.dense(common.scaled(grad, scale))
            return _box_paste_grad_x(mixed_grad, *inverse, box, source, ctx.resize, lam, dtype, ctx.backend)

        def for_lam(grad, index, box, source, lam):
            box = filled(box, clipped(source, *ctx.size))  # what lies outside it is all that depends on lam
            return _box_blend_grad_lam(common.like(grad, x), x, index, box, lam, scale, lam.dtype, ctx.backend)

        grad_x = grad_lam = None
        if ctx.needs_input_grad[0]:
            grad_x = common.summed(common.each_draw(for_x, grads, index, box, source, lam), ctx.dtype)
        if ctx.needs_input_grad[5]:
            grad_lam = common.lam_shaped(common.each_draw(for_lam, grads, index, box, source, lam), lam)
        return grad_x, *[None] * 4, grad_lam, *[None] * 5
