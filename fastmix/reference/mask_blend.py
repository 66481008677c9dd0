from __future__ import annotations

import torch
from torch import Tensor

from .pixels import acc_dtype, finish, handed_out, mix
from .upsample import upsample


def mask_blend(
    x: Tensor,
    index: Tensor,
    mask: Tensor,
    mode: str = "bilinear",
    activation: str = "none",
    activation_first: bool = False,
    plan: Tensor | None = None,
    partner_plan: Tensor | None = None,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor] | tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Reference of `fastmix.ops.mask_blend`; plans are (..., Ty, Tx)."""
    weight = mask.to(acc_dtype(x.dtype))
    if activation == "sigmoid" and activation_first:
        weight = weight.sigmoid()
    weight = upsample(weight, x.shape[2], x.shape[3], mode)
    if activation == "sigmoid" and not activation_first:
        weight = weight.sigmoid()
    mixed = finish(mix(x, index, weight.unsqueeze(-3), plan, partner_plan), x, normalize, dtype)
    return handed_out(mixed, index), handed_out(weight.mean((-2, -1)), index)
