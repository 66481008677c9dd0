"""Losses of mixed targets: two labels and their weights, never a dense label tensor. The functions of `fastmix.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix.ops import mix_binary_cross_entropy, mix_cross_entropy, soft_cross_entropy

__all__ = ["mix_binary_cross_entropy", "mix_cross_entropy", "on_device", "soft_cross_entropy"]


def on_device(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A weight as a tensor; a number is filled in by the device, which `torch.as_tensor` would wait for."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)
