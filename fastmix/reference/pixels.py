"""What the three blends share: mixing by weight, normalising, rounding to the output dtype.

With `index` (D, N) everything has the draws as one more leading dimension, against which the samples broadcast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def no_autocast(x: Tensor) -> AbstractContextManager:
    """A block in which operations on the device of `x` keep their dtypes; "meta" has no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def mix(
    x: Tensor, index: Tensor, weight: Tensor, plan: Tensor | None = None, partner_plan: Tensor | None = None
) -> Tensor:
    """`weight * x + (1 - weight) * x[index]` in the accumulation dtype, (*index.shape, ...).

    Plans (*index.shape, Ty, Tx) move the blocks of either image first.

    `weight` broadcasts against `x`. Where it is exactly 1 (0) the own (partner's) value is taken, not multiplied, so
    that a non-finite value in the other image does not leak through a zero weight.
    """
    own = x.to(acc_dtype(x.dtype))
    partner = own[index]
    own = own if plan is None else moved(own.expand_as(partner), plan)
    partner = partner if partner_plan is None else moved(partner, partner_plan)
    weight = weight.to(own.dtype)
    if torch.is_grad_enabled() and weight.requires_grad:
        # A selection would cut the gradient of weights that are exactly 0 or 1: drop only what would leak.
        own = torch.where((weight == 0) & ~own.isfinite(), 0, own)
        partner = torch.where((weight == 1) & ~partner.isfinite(), 0, partner)
        return own * weight + partner * (1 - weight)
    mixed = own * weight + partner * (1 - weight)
    return torch.where(weight == 1, own, torch.where(weight == 0, partner, mixed))


def moved(x: Tensor, plan: Tensor) -> Tensor:
    """(..., C, H, W) with block j of Ty x Tx equal ones taken from block `plan[j]`, or left alone where that is < 0."""
    *lead, channels, height, width = x.shape
    rows, columns = plan.shape[-2:]
    blocks = x.reshape(*lead, channels, rows, height // rows, columns, width // columns)
    blocks = blocks.transpose(-2, -3).flatten(-4, -3)  # [..., C, T, block height, block width]
    plan = plan.flatten(-2).long()
    source = torch.where(plan < 0, torch.arange(rows * columns, device=plan.device), plan)
    source = source[..., None, :, None, None].expand(blocks.shape)
    blocks = blocks.gather(-3, source).unflatten(-3, (rows, columns)).transpose(-2, -3)
    return blocks.reshape(x.shape)


def finish(mixed: Tensor, x: Tensor, normalize: tuple | None, dtype: torch.dtype | None) -> Tensor:
    """Normalise per channel (dimension 1 of `x`) and round once to `dtype` (default: the dtype of the images `x`)."""
    if normalize is not None:
        mean, std = (torch.as_tensor(c, dtype=mixed.dtype, device=mixed.device) for c in normalize)
        shape = (-1,) + (1,) * (x.dim() - 2)
        mixed = (mixed / 255 if x.dtype is torch.uint8 else mixed).sub(mean.view(shape)).div(std.view(shape))
    dtype = dtype or x.dtype
    if dtype is torch.uint8:
        return mixed.round().clamp(0, 255).to(torch.uint8)
    return mixed.to(dtype)


def per_sample(lam: Tensor | float, x: Tensor) -> Tensor:
    """`lam` of shape (), (N,) or (D, N) viewed so that it broadcasts over the samples of `x`."""
    if not isinstance(lam, Tensor):
        lam = torch.tensor(lam, dtype=acc_dtype(x.dtype), device=x.device)
    return lam.view(*lam.shape, *[1] * (x.dim() - 1)) if lam.dim() else lam


def handed_out(result: Tensor, index: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The result, or for `index` (D, N) a tuple of its draws."""
    return result if index.dim() == 1 else result.unbind()
