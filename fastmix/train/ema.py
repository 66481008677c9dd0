"""Exponential moving averages of a module's tensors, a few launches for all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastmix import _settings


@torch.no_grad()
def ema_update(targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float | Tensor) -> None:
    """`target <- momentum * target + (1 - momentum) * source`, in place (AutoMix, Eq. 12).

    Args:
        targets, sources: tensors in the same order, with the same shapes. Integer tensors are copied.
        momentum: in [0, 1]; 1 leaves the averages as they are, 0 copies the sources. A float takes one multi-tensor
            launch. A float64 tensor () on the targets' device takes three and is never read on the host, so that a
            captured CUDA graph follows it; its range is not checked, and the results are the float's to rounding.

    Raises:
        ValueError: a momentum outside [0, 1] or of several elements, or lists of different length.

    Example:
        >>> ema_update(teacher.parameters(), student.parameters(), 0.999)
    """
    if isinstance(momentum, Tensor):
        if momentum.dim() != 0:
            raise ValueError(f"fastmix.ema_update: momentum must be one number, got shape {tuple(momentum.shape)}")
    else:
        _settings.number("ema_update", "momentum", momentum, 0, 1)
    targets, sources = list(targets), list(sources)
    if len(targets) != len(sources):
        raise ValueError(
            f"fastmix.ema_update: targets and sources must be as many, got {len(targets)} and {len(sources)}"
        )
    pairs = list(zip(targets, sources, strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    others = [pair for pair in pairs if not pair[0].is_floating_point()]
    if floating:
        _lerp(*map(list, zip(*floating, strict=True)), 1.0 - momentum)
    if others:
        torch._foreach_copy_(*map(list, zip(*others, strict=True)))


def _lerp(targets: list[Tensor], sources: list[Tensor], weight: float | Tensor) -> None:
    if not isinstance(weight, Tensor):
        torch._foreach_lerp_(targets, sources, weight)
        return
    # `_foreach_lerp_` reads a scalar tensor on the host; these three read it on the device, in one launch each if it
    # has the dtype of the targets.
    change = torch._foreach_sub(sources, targets)
    torch._foreach_mul_(change, weight.to(targets[0].dtype))
    torch._foreach_add_(targets, change)
