from __future__ import annotations

import torch
from torch import Tensor

from .pixels import finish, handed_out, mix, per_sample


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """(..., 1, H, W) bool: which pixels lie in the half-open boxes `(y0, x0, y1, x1)` (..., 4)."""
    y0, x0, y1, x1 = box.view(*box.shape, 1, 1, 1).unbind(-4)  # each [..., 1, 1, 1]
    y = torch.arange(height, device=box.device).view(-1, 1)
    x = torch.arange(width, device=box.device)
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def box_blend(
    x: Tensor,
    index: Tensor,
    box: Tensor,
    lam: Tensor | float | None = None,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Reference of `fastmix.ops.box_blend`."""
    weight = per_sample(1.0 if lam is None else lam, x)
    weight = torch.where(inside(box, x.shape[2], x.shape[3]), torch.zeros_like(weight), weight)
    return handed_out(finish(mix(x, index, weight), x, normalize, dtype), index)
