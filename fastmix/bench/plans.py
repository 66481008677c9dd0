"""The cost matrices of `transport`, for solvers that want them."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 0.8


def plan_costs(visible: Tensor, saliency: Tensor) -> list:
    """Cost matrix (visible targets, blocks) of every sample, float64 numpy."""
    height, width = visible.shape[1:]
    y, x = (part.flatten() for part in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    moves = EPS * ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double() / max(1, (max(height, width) - 1) ** 2)
    samples = zip(visible.flatten(1), saliency.flatten(1).double(), strict=True)
    return [(moves[shown] - s).numpy() for shown, s in samples]
