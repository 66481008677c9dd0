"""What the losses share: checks of logits, labels and weights, and the gradients of the weights."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from .. import _checks

REDUCTIONS = ("none", "mean", "sum")


def logits(op: str, z: Tensor) -> None:
    """(N, K) floating, K > 0."""
    if not isinstance(z, Tensor) or z.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"fastmix.{op}: logits must be a floating point tensor, got {_checks.describe(z)}")
    _checks.strided(op, "logits", z)
    if z.dim() != 2 or z.shape[1] == 0:
        raise ValueError(f"fastmix.{op}: logits must have shape (N, K) with K > 0, got {_checks.describe(z)}")


def labels(op: str, name: str, value: Tensor, z: Tensor) -> Tensor:
    """(N,) int64 on the device of the logits, made contiguous."""
    rows = z.shape[0]
    if not isinstance(value, Tensor) or value.dtype is not torch.int64:
        raise TypeError(f"fastmix.{op}: {name} must be int64 of shape ({rows},), got {_checks.describe(value)}")
    _checks.strided(op, name, value)
    if value.shape != (rows,) or value.device != z.device:
        raise ValueError(
            f"fastmix.{op}: {name} must be int64 of shape ({rows},) on {z.device}, got {_checks.describe(value)}"
        )
    return value.contiguous()


def label_values(op: str, name: str, value: Tensor, classes: int, ignore_index: int) -> None:
    """In [0, K) or `ignore_index`, read on the CPU only; the compiled kernels look for themselves."""
    if not _checks.readable(value):
        return
    bad = (((value < 0) | (value >= classes)) & (value != ignore_index)).nonzero()
    if len(bad):
        at = bad[0].item()
        raise ValueError(
            f"fastmix.{op}: {name} must lie in [0, {classes}) or be {ignore_index}, "
            f"got {value[at].item()} at position {at}"
        )


def soft_targets(op: str, name: str, value: Tensor, z: Tensor) -> Tensor:
    """(N, K) floating on the device of the logits, of a dtype that kernels read, made contiguous."""
    if isinstance(value, Tensor) and value.dim() == 2 and value.requires_grad:
        raise ValueError(f"fastmix.{op}: {name} must not require a gradient: none flows to it")
    _checks.floating(op, name, value, tuple(z.shape), z)
    if (value.dtype is torch.float64) is not (z.dtype is torch.float64):
        value = value.to(acc_dtype(z))
    return value.contiguous()


def weight(op: str, name: str, value: Tensor | float, z: Tensor) -> Tensor:
    """() or (N,) in the dtype that arithmetic is done in; a number is filled in by the device."""
    acc, rows = acc_dtype(z), z.shape[0]
    if isinstance(value, (int, float)):
        return torch.full((), value, dtype=acc, device=z.device)
    if not isinstance(value, Tensor) or value.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"fastmix.{op}: {name} must be a float or a floating tensor, got {_checks.describe(value)}")
    _checks.strided(op, name, value)
    if not (value.dim() == 0 or value.shape == (rows,)) or value.device != z.device:
        raise ValueError(
            f"fastmix.{op}: {name} must have shape () or ({rows},) on {z.device}, got {_checks.describe(value)}"
        )
    value = value if value.dtype is acc else value.to(acc)
    return value if value.is_contiguous() else value.contiguous()


def number(op: str, name: str, value: float) -> float:
    """A real number that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, (float, int, numbers.Real)):
        raise TypeError(f"fastmix.{op}: {name} must be a number, got {_checks.describe(value)}")
    if value != value:
        raise ValueError(f"fastmix.{op}: {name} must be a number, got {value!r}")
    return float(value)


def fraction(op: str, name: str, value: float) -> float:
    """A number in [0, 1)."""
    value = number(op, name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"fastmix.{op}: {name} must be in [0, 1), got {value!r}")
    return value


def not_negative(op: str, name: str, value: float) -> float:
    """A finite number, at least 0."""
    value = number(op, name, value)
    if not 0.0 <= value < math.inf:
        raise ValueError(f"fastmix.{op}: {name} must be finite and not negative, got {value!r}")
    return value


def switch(op: str, name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"fastmix.{op}: {name} must be True or False, got {_checks.describe(value)}")
    return value


def ignored_label(op: str, value: int) -> int:
    """An integer that int64 labels can be equal to."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"fastmix.{op}: ignore_index must be an integer, got {_checks.describe(value)}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"fastmix.{op}: ignore_index must be an int64, got {value!r}")
    return int(value)


def reduction(op: str, value: str) -> int:
    return _checks.one_of(op, "reduction", value, REDUCTIONS)


def acc_dtype(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype is torch.float64 else torch.float32


def rows(z: Tensor) -> Tensor:
    """`z` itself when the values of a row lie side by side, at any distance of the rows; else a contiguous copy."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def results(z: Tensor, reduced: int, stats: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the loss, () or (N,); for `stats` numbers a row that the backward needs; for what a row of the
    gradient is scaled by."""
    acc = acc_dtype(z)
    out = z.new_empty(() if reduced else z.shape[:1], dtype=acc)
    return out, z.new_empty((stats, z.shape[0]), dtype=acc), z.new_empty((), dtype=acc)


def weight_gradients(
    grad: Tensor, scale: Tensor, terms: Tensor, lam: Tensor | None, lam_b: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `lam` and `lam_b` from what each weight multiplies, `terms` (2, N)."""
    own, partner = terms
    grad = grad * scale
    if lam_b is None:
        own, partner = own - partner, None
    return tuple(
        _like(grad * term, weight) if asked else None
        for term, weight, asked in zip((own, partner), (lam, lam_b), wanted, strict=True)
    )


def _like(parts: Tensor, weight: Tensor) -> Tensor:
    return parts if weight.dim() else parts.sum()
