"""The one rule by which labels are read: as class numbers or as dense targets. `MixBatch` documents it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import _checks
from fastmix.ops.loss_common import label_values

IGNORED = -100  # the usual `ignore_index`


def targets(where: str, name: str, y: Tensor, classes: int, binary: bool, ignore_index: int | None) -> Tensor:
    """Labels for `classes` logits a sample, as int64 (N,) class numbers or as floating (N, classes) targets.

    `binary` says that every logit decides by itself: a single one takes values in [0, 1], or NaN for `ignore_index`.
    Class numbers are not looked at where `ignore_index` is None.

    Raises:
        TypeError, ValueError: no labels, or of a kind, shape or (read on the CPU only) value that does not fit.
    """
    _given(where, name, y)
    single, column = classes == 1 and binary, y.dim() == 2 and y.shape[1] == 1
    if y.dim() == 2 and y.shape[1] == classes > 1:
        return y if y.is_floating_point() else y.to(torch.float32)
    if y.dim() != 1 and not column:
        raise ValueError(
            f"fastmix.{where}: {name} must have shape (N,), (N, 1) or (N, {classes}) for {classes} classes, "
            f"got {_checks.describe(y)}"
        )
    y = y[:, 0] if column else y
    if not y.is_floating_point():
        y = y.to(torch.int64)
        if ignore_index is not None:
            label_values(where, name, y, 2 if single else classes, ignore_index)
        return torch.where(y == ignore_index, torch.nan, y.to(torch.float32))[:, None] if single else y
    if not single:
        raise ValueError(
            f"fastmix.{where}: {name} must hold class numbers or have shape (N, {classes}), got {_checks.describe(y)}; "
            "values take loss(..., criterion=), or kind='bce' and one logit"
        )
    return y[:, None]


def counted(target: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """(N,) bool: which of the `targets` are not left out."""
    if target.dim() == 1:
        return target != ignore_index
    return ~target[:, 0].isnan() if target.shape[1] == 1 else target.new_ones(len(target), dtype=torch.bool)


def like_outputs(where: str, name: str, y: Tensor, outputs: Tensor) -> Tensor:
    """Labels as a criterion takes them beside `outputs`: values in their shape, class numbers as int64."""
    _given(where, name, y)
    if y.shape != outputs.shape and y.numel() == outputs.numel() and y.dim() <= 2:
        y = y.view(outputs.shape)  # (N,) against (N, 1) would be broadcast to (N, N)
    if y.shape == outputs.shape:
        return y if y.is_floating_point() else y.to(outputs.dtype)
    if y.is_floating_point():
        return y
    column = y.dim() == 2 and y.shape[1] == 1
    return (y[:, 0] if column else y).to(torch.int64)


def _given(where: str, name: str, y: Tensor) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"fastmix.{where}: {name} must be a tensor of labels, got {_checks.describe(y)}")
    if y.is_complex():
        raise TypeError(f"fastmix.{where}: {name} must be integers, bool or floating, got {_checks.describe(y)}")
