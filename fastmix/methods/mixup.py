"""MixUp: a convex combination of two images (Zhang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import ops
from fastmix.batch import MixBatch
from fastmix.methods.base import MixMethod


class MixUp(MixMethod):
    """``lam * x + (1 - lam) * x[index]`` with ``lam ~ Beta(alpha, alpha)``.

    Example:
        >>> batch = MixUp(alpha=0.2)(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    def mix(self, x: Tensor, y: Tensor, lam: Tensor, index: Tensor, generator: torch.Generator | None) -> MixBatch:
        mixed = ops.blend(x, index, lam, **self.options(x))
        return MixBatch(mixed, y, y[index], lam, index)
