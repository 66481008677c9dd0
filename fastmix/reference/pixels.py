"""What the three blends share: mixing by weight, normalising, rounding to the output dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def mix(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """`weight * x + (1 - weight) * x[index]` in the accumulation dtype.

    `weight` broadcasts against `x`. Where it is exactly 1 (0) the own (partner's) value is taken, not multiplied, so
    that a non-finite value in the other image does not leak through a zero weight.
    """
    own = x.to(acc_dtype(x.dtype))
    partner = own[index]
    weight = weight.to(own.dtype)
    if torch.is_grad_enabled() and weight.requires_grad:
        # A selection would cut the gradient of weights that are exactly 0 or 1: drop only what would leak.
        own = torch.where((weight == 0) & ~own.isfinite(), 0, own)
        partner = torch.where((weight == 1) & ~partner.isfinite(), 0, partner)
        return own * weight + partner * (1 - weight)
    mixed = own * weight + partner * (1 - weight)
    return torch.where(weight == 1, own, torch.where(weight == 0, partner, mixed))


def finish(mixed: Tensor, normalize: tuple | None, source: torch.dtype, dtype: torch.dtype | None) -> Tensor:
    """Normalise per channel (dimension 1) and round once to `dtype` (default: the dtype of the source images)."""
    if normalize is not None:
        mean, std = (torch.as_tensor(c, dtype=mixed.dtype, device=mixed.device) for c in normalize)
        shape = (1, -1) + (1,) * (mixed.dim() - 2)
        mixed = (mixed / 255 if source is torch.uint8 else mixed).sub(mean.view(shape)).div(std.view(shape))
    dtype = dtype or source
    if dtype is torch.uint8:
        return mixed.round().clamp(0, 255).to(torch.uint8)
    return mixed.to(dtype)


def per_sample(lam: Tensor | float, x: Tensor) -> Tensor:
    """`lam` of shape () or (N,) viewed so that it broadcasts over the samples of `x`."""
    if not isinstance(lam, Tensor):
        lam = torch.tensor(lam, dtype=acc_dtype(x.dtype), device=x.device)
    return lam.view(-1, *[1] * (x.dim() - 1)) if lam.dim() else lam
