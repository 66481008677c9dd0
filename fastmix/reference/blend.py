from __future__ import annotations

import torch
from torch import Tensor

from .pixels import finish, mix, per_sample


def blend(
    x: Tensor,
    index: Tensor,
    lam: Tensor | float,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reference of `fastmix.ops.blend`."""
    return finish(mix(x, index, per_sample(lam, x)), normalize, x.dtype, dtype)
