from __future__ import annotations

import torch
from torch import Tensor

from .box_blend import inside
from .pixels import acc_dtype, finish, per_sample


def flip_blend(
    x: Tensor,
    lam: Tensor | float | None = None,
    box: Tensor | None = None,
    *,
    lam_b: Tensor | float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reference of `fastmix.ops.flip_blend`; `dtype` leaves the result unrounded."""
    own = x.to(acc_dtype(x.dtype))
    other = own.flip(0)
    weight = per_sample(1.0 if lam is None else lam, x).to(own.dtype)
    weight_b = 1 - weight if lam_b is None else per_sample(lam_b, x).to(own.dtype)
    if box is not None:
        pasted = inside(box, *x.shape[-2:])  # [..., 1, H, W]
        pasted = pasted.view(-1, *[1] * (x.dim() - 3), *pasted.shape[-2:])
        weight = torch.where(pasted, torch.zeros_like(weight), weight)
        weight_b = torch.where(pasted, torch.ones_like(weight_b), weight_b)
    zero = torch.zeros_like(own)
    mixed = torch.where(weight == 0, zero, own * weight) + torch.where(weight_b == 0, zero, other * weight_b)
    kept = (weight == 1) & (weight_b == 0)
    if len(x) % 2:
        middle = torch.arange(len(x), device=x.device) == len(x) // 2
        kept = kept | middle.view(-1, *[1] * (x.dim() - 1))
    return finish(torch.where(kept, own, mixed), x, None, dtype)
