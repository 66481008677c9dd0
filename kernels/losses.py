"""How a loss is handed to the native module."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmix.kernels.images import address, weight
from fastmix.native import DTYPES

LABELS = -1  # in place of the dtype of dense targets


def loss(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_b: Tensor | None,
    reduction: int,
    stats: Tensor | None,
    scale: Tensor,
    ignore_index: int = 0,
    smoothing: float = 0.0,
    decouple: float = 0.0,
    threshold: float = math.nan,
    sum_classes: bool = True,
) -> tuple:
    """The arguments that all calls of all losses begin with."""
    rows = (*logits.shape, logits.stride(0), torch.get_num_threads(), DTYPES[logits.dtype], logits.data_ptr())
    kind = DTYPES[target.dtype] if target.dim() == 2 else LABELS
    targets = (kind, target.data_ptr(), address(target_b))
    options = (ignore_index, smoothing, decouple, threshold, sum_classes, reduction)
    return *rows, *targets, *weight(lam), *weight(lam_b), *options, address(stats), scale.data_ptr()


def reduction_of(grad: Tensor) -> int:
    """0 for a gradient of every row, 1 for one of all."""
    return 0 if grad.dim() else 1
