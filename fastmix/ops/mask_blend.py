from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op
from ..reference.upsample import MODES
from . import common

OP = "mask_blend"
ACTIVATIONS = ("none", "sigmoid")


def mask_blend(
    x: Tensor,
    index: Tensor,
    mask: Tensor,
    mode: str = "bilinear",
    activation: str = "none",
    activation_first: bool = False,
    *,
    plan: Tensor | None = None,
    partner_plan: Tensor | None = None,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Blend every pixel with its partner by a low-resolution mask, upsampled inside the kernel.

    With `M[n] = activation(upsample(mask[n]))` of shape (H, W):
    `mixed[n] = M[n] * x[n] + (1 - M[n]) * x[index[n]]` and `mean[n] = mean(M[n])`, the realised lam.
    The mixing function of AutoMix (Liu et al., 2022, Eq. 3 and 5), FMix, AttentiveMix and other mask methods.

    Args:
        x: (N, C, H, W) images, dtypes and layouts as in `blend`.
        index: (N,) int64 in [0, N), the partner of each sample, or (D, N) for D draws in one launch, as in `blend`.
        mask: (N, h, w) or (D, N, h, w) floating, the weight of the own image, or its logit with
            `activation="sigmoid"`. Any h and w; H and W need not be multiples.
        mode: "nearest", "bilinear" (align_corners=False) or "bicubic" (a = -0.75, border repeated), as
            `torch.nn.functional.interpolate` for a given output size. Coordinates are exact; torch rounds the scale
            of "nearest" to float32, which moves a pixel at a few odd sizes (2 to 82, say).
        activation: "none" or "sigmoid".
        activation_first: apply the activation to the low-resolution mask, before upsampling (Eq. 5 of the AutoMix
            paper; the released code applies it after).
        plan, partner_plan: int32, where each of Ty x Tx equal blocks of the own image (the partner) is taken from
            before blending, as `transport` returns it: (N, Ty, Tx), or (N, T * T) for a square grid, counted row by
            row; a negative number leaves the block where it is. Ty and Tx must divide H and W. The compiled kernels
            move blocks in the same pass, without gradients; where autograd records the call the reference runs.
            A number that is no block raises ValueError for CPU tensors; on CUDA tensors nobody looks, and the
            kernels leave that block where it is.
        normalize, dtype, out, backend: as in `blend`; `out` takes the mixed images.

    Returns:
        `(mixed, mean)`: (N, C, H, W) mixed images and (N,) float32 (float64 for float64 images). A pixel whose weight
        is exactly 1 (0) is the own (partner's) pixel bit for bit. Differentiable with respect to `x` and `mask`,
        through both results, any number of times. For D draws each of the two is a tuple of D such tensors.

        A non-finite mask value makes the pixels it reaches, and `mean`, non-finite; it is not looked for.

    Raises:
        TypeError, ValueError: as `blend`, and for an unknown mode or activation or an empty mask.

    Example:
        >>> logits = torch.randn(len(x), 14, 14, requires_grad=True)
        >>> mixed, lam = fastmix.ops.mask_blend(x, index, logits, activation="sigmoid")
    """
    _checks.images(OP, x, dims=4)
    call = common.begin(OP, x, index, normalize, dtype, out, backend, mask=mask, plan=plan, partner_plan=partner_plan)
    _checks.floating(OP, "mask", mask, (*call.lead, None, None), x)
    if mask.shape[-2] == 0 or mask.shape[-1] == 0:
        raise ValueError(f"fastmix.{OP}: mask must not be empty, got {_checks.describe(mask)}")
    mode_id = _checks.one_of(OP, "mode", mode, MODES)
    sigmoid = _checks.one_of(OP, "activation", activation, ACTIVATIONS) == 1
    plans = _check_plans(plan, partner_plan, call.lead, x)
    record = common.records(OP, out, x, mask)
    moved = any(p is not None for p in plans)
    chosen = _backend_with_plans(call.backend, backend, record) if moved else call.backend
    if chosen == "reference":
        options = (
            mode,
            activation,
            activation_first,
            *(p if p is None else p.view(*call.lead, *p.shape[1:]) for p in plans),
        )
        mixed, mean = reference.mask_blend(call.x, index, mask, *options, normalize=normalize, dtype=call.dtype)
        return common.into(mixed, call.lead, out), mean
    mask = mask if mask.dim() == 3 else mask.flatten(0, 1)
    mask = mask.to(call.acc).contiguous()
    options = (mode_id, sigmoid, sigmoid and activation_first)
    inputs = (call.x, call.index, mask, *options, call.scale, call.shift)
    if record:
        found = MaskBlend.apply(*inputs, call.dtype, chosen, call.lead)
        return found if len(call.lead) == 1 else (found[: call.lead[0]], found[call.lead[0] :])
    if common.writes_directly(out, *inputs[:3], call.scale, call.shift, *plans):
        mean = mask.new_empty(mask.shape[0])
        kernels(OP, chosen).mask_blend(*inputs, common.flat(out, call.lead), mean, *(plans if moved else ()))
        return common.written(out, call.lead), common.handed_out(mean, call.lead)
    mixed, mean = (common.handed_out(flat, call.lead) for flat in _mask_blend(*inputs, *plans, call.dtype, chosen))
    return common.into(mixed, call.lead, out), mean


def _check_plans(plan: Tensor | None, partner_plan: Tensor | None, lead: torch.Size, x: Tensor) -> list[Tensor | None]:
    """Both (outputs, Ty, Tx) int32 of one grid, or None."""
    found = []
    for name, value in (("plan", plan), ("partner_plan", partner_plan)):
        found.append(None if value is None else _check_plan(name, value, lead, x))
    if plan is not None and partner_plan is not None and found[0].shape != found[1].shape:
        raise ValueError(
            f"fastmix.{OP}: plan and partner_plan must have one shape, got {_checks.describe(plan)}, "
            f"{_checks.describe(partner_plan)}"
        )
    return found


def _check_plan(name: str, value: Tensor, lead: torch.Size, x: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype is not torch.int32:
        raise TypeError(f"fastmix.{OP}: {name} must be an int32 tensor, got {_checks.describe(value)}")
    _checks.strided(OP, name, value)
    size = value.shape[len(lead) :]
    if len(size) == 1 and math.isqrt(size[0]) ** 2 == size[0]:
        size = (math.isqrt(size[0]),) * 2
    fits = value.shape[: len(lead)] == lead and len(size) == 2 and min(size) > 0
    if not fits or x.shape[2] % size[0] or x.shape[3] % size[1] or value.device != x.device:
        raise ValueError(
            f"fastmix.{OP}: {name} must have shape ({', '.join(map(str, lead))}, Ty, Tx) or "
            f"({', '.join(map(str, lead))}, T * T) on {x.device}, with Ty and Tx dividing the {x.shape[2]} x "
            f"{x.shape[3]} pixels, got {_checks.describe(value)}"
        )
    return value.reshape(-1, *size).contiguous()


def _backend_with_plans(chosen: str, asked: str | None, record: bool) -> str:
    """Blocks are moved by the compiled kernels, without gradients; all else is the reference's."""
    if chosen in ("cuda", "cpu") and not record:
        return chosen
    if asked is not None and asked != "reference":
        raise ValueError(
            f"fastmix.{OP}: backend {asked!r} moves no blocks{' under autograd' if record else ''}: leave out "
            "backend=, plan= and partner_plan=" + (", or call under torch.no_grad()" if record else "")
        )
    return "reference"


def _fake(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, plan, partner_plan, dtype, backend):
    return common.outputs_like(x, index, dtype), mask.new_empty(mask.shape[0])


@raw_op(
    "mask_blend(Tensor x, Tensor index, Tensor mask, int mode, bool sigmoid, bool sigmoid_first, Tensor? scale, "
    "Tensor? shift, Tensor? plan, Tensor? partner_plan, ScalarType dtype, str backend) -> (Tensor, Tensor)",
    _fake,
)
def _mask_blend(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, plan, partner_plan, dtype, backend):
    out, mean = common.outputs_like(x, index, dtype), mask.new_empty(mask.shape[0])
    plans = () if plan is None and partner_plan is None else (plan, partner_plan)
    kernels(OP, backend).mask_blend(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, out, mean, *plans)
    return out, mean


def _fake_grad_x(grad, order, start, mask, mode, sigmoid, sigmoid_first, dtype, backend):
    return torch.empty_like(grad, dtype=dtype)


@raw_op(
    "mask_blend_grad_x(Tensor grad, Tensor order, Tensor start, Tensor mask, int mode, bool sigmoid, "
    "bool sigmoid_first, ScalarType dtype, str backend) -> Tensor",
    _fake_grad_x,
)
def _mask_blend_grad_x(grad, order, start, mask, mode, sigmoid, sigmoid_first, dtype, backend):
    out = torch.empty_like(grad, dtype=dtype)
    kernels(OP, backend).mask_blend_grad_x(grad, (order, start), mask, mode, sigmoid, sigmoid_first, out)
    return out


def _fake_grad_mask(x, grad, grad_mean, index, mask, mode, sigmoid, sigmoid_first, scale, backend):
    return torch.empty_like(mask)


@raw_op(
    "mask_blend_grad_mask(Tensor x, Tensor? grad, Tensor? grad_mean, Tensor index, Tensor mask, int mode, "
    "bool sigmoid, bool sigmoid_first, Tensor? scale, str backend) -> Tensor",
    _fake_grad_mask,
)
def _mask_blend_grad_mask(x, grad, grad_mean, index, mask, mode, sigmoid, sigmoid_first, scale, backend):
    out = torch.empty_like(mask)
    kernels(OP, backend).mask_blend_grad_mask(grad, grad_mean, x, index, mask, mode, sigmoid, sigmoid_first, scale, out)
    return out


class MaskBlend(torch.autograd.Function):
    """Results are the mixed images of every draw, then the means of every draw."""

    @staticmethod
    def forward(ctx, x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, dtype, backend, lead):
        ctx.set_materialize_grads(False)
        for_mask = ctx.needs_input_grad[2]
        ctx.save_for_backward(x if for_mask else None, index, mask, scale)
        ctx.dtype, ctx.options, ctx.backend, ctx.lead = x.dtype, (mode, sigmoid, sigmoid_first), backend, lead
        flat = _mask_blend(x, index, mask, mode, sigmoid, sigmoid_first, scale, shift, None, None, dtype, backend)
        draws = 1 if len(lead) == 1 else lead[0]
        mixed, mean = (common.by_draw(part, draws) for part in flat)
        if not for_mask:
            ctx.mark_non_differentiable(*mean)
        return *mixed, *mean

    @staticmethod
    def backward(ctx, *grads):
        x, index, mask, scale = ctx.saved_tensors
        draws = len(grads) // 2
        grads, grads_mean = grads[:draws], grads[draws:]
        if common.differentiated_again(*grads, *grads_mean):

            def mixed(x, mask):
                mode, sigmoid, first = ctx.options
                options = (MODES[mode], "sigmoid" if sigmoid else "none", first)
                return reference.mask_blend(x, index.view(ctx.lead), mask.view(*ctx.lead, *mask.shape[1:]), *options)

            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
            grad_x, grad_mask = common.graphed_images(mixed, x, mask, ctx.dtype, needs, grads, scale, grads_mean)
            return grad_x, None, grad_mask, None, None, None, None, None, None, None, None
        dtype = common.grad_dtype(ctx.dtype, grads)

        def for_x(grad, index, mask):
            order, start = common.inverse_index(index)
            mixed_grad = common.dense(common.scaled(grad, scale))
            return _mask_blend_grad_x(mixed_grad, order, start, mask, *ctx.options, dtype, ctx.backend)

        def for_mask(grads, index, mask):
            grad, grad_mean = grads
            grad = None if grad is None else common.like(grad, x)
            grad_mean = None if grad_mean is None else grad_mean.contiguous()
            return _mask_blend_grad_mask(x, grad, grad_mean, index, mask, *ctx.options, scale, ctx.backend)

        grad_x = grad_mask = None
        if ctx.needs_input_grad[0]:
            grad_x = common.summed(common.each_draw(for_x, grads, index, mask), ctx.dtype)
        if ctx.needs_input_grad[2]:
            both = [None if pair == (None, None) else pair for pair in zip(grads, grads_mean, strict=True)]
            grad_mask = common.joined(common.each_draw(for_mask, both, index, mask))
        return grad_x, None, grad_mask, None, None, None, None, None, None, None, None
