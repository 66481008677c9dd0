from __future__ import annotations

import torch
from torch import Tensor

from .pixels import acc_dtype, finish, mix
from .upsample import upsample


def mask_blend(
    x: Tensor,
    index: Tensor,
    mask: Tensor,
    mode: str = "bilinear",
    activation: str = "none",
    activation_first: bool = False,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference of `fastmix.ops.mask_blend`."""
    weight = mask.to(acc_dtype(x.dtype))
    if activation == "sigmoid" and activation_first:
        weight = weight.sigmoid()
    weight = upsample(weight, x.shape[2], x.shape[3], mode)
    if activation == "sigmoid" and not activation_first:
        weight = weight.sigmoid()
    return finish(mix(x, index, weight.unsqueeze(1)), normalize, x.dtype, dtype), weight.mean((1, 2))
