"""Exponential moving averages of a module's tensors, a few launches for all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """`target <- momentum * target + (1 - momentum) * source`, in place (AutoMix, Eq. 12).

    Args:
        targets, sources: tensors in the same order, with the same shapes. Integer tensors are copied.
        momentum: in [0, 1]; 1 leaves the targets as they are, 0 copies the sources.

    Raises:
        ValueError: a momentum outside [0, 1], or lists of different length.

    Example:
        >>> ema_update(teacher.parameters(), student.parameters(), 0.999)
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"fastmix.ema_update: momentum must be in [0, 1], got {momentum}")
    pairs = list(zip(targets, sources, strict=True))
    if momentum == 1.0:
        return
    floating = [(t, s) for t, s in pairs if t.is_floating_point()]
    if floating:
        torch._foreach_lerp_([t for t, _ in floating], [s for _, s in floating], 1.0 - momentum)
    for target, source in pairs:
        if not target.is_floating_point():
            target.copy_(source)
