from __future__ import annotations

import torch
from torch import Tensor

from .pixels import finish, handed_out, mix, per_sample


def blend(
    x: Tensor,
    index: Tensor,
    lam: Tensor | float,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Reference of `fastmix.ops.blend`."""
    mixed = mix(x, index, per_sample(lam, x))
    return handed_out(finish(mixed, x, normalize, dtype), index)
