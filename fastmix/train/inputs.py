"""Checks of a training step's images and targets."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import _checks


def images(where: str, x: Tensor, check_layout: bool = True, force: str = "pad them") -> None:
    """Floating images (N, C, H, W), which with `check_layout` must not look like (N, H, W, C)."""
    if not isinstance(x, Tensor):
        hint = "; pass what the batch holds one by one" if isinstance(x, (tuple, list, dict)) else ""
        raise TypeError(f"fastmix.{where}: images must be a tensor, got {type(x).__name__}{hint}")
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"fastmix.{where}: images must be floating of shape (N, C, H, W), got {_checks.describe(x)}")
    if check_layout:
        _checks.channels_first(where, x, force)


def targets(where: str, x: Tensor, y: Tensor | None, classes: int | None = None) -> None:
    """For images `x`, (N,) int64 class numbers or (N, K) floating targets."""
    if y is None:
        raise ValueError(f"fastmix.{where}: targets are missing; to classify, call .eval() first")
    wanted = f"({x.shape[0]},) or floating of shape ({x.shape[0]}, {'K' if classes is None else classes})"
    if not isinstance(y, Tensor):
        raise TypeError(f"fastmix.{where}: targets must be int64 of shape {wanted}, got {type(y).__name__}")
    labels = y.dtype is torch.int64 and y.shape == x.shape[:1]
    dense = y.is_floating_point() and y.dim() == 2 and y.shape[0] == x.shape[0] and classes in (None, y.shape[1])
    if not labels and not dense:
        raise ValueError(f"fastmix.{where}: targets must be int64 of shape {wanted}, got {_checks.describe(y)}")
