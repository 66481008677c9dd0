"""How image tensors are handed to the native module: addresses, dtype tags, the shape of a dense batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmix.native import DTYPES


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def tagged(tensor: Tensor | None) -> tuple[int, int]:
    """Address and dtype tag."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype])


def batch(x: Tensor) -> tuple[int, int, int, int, bool, int]:
    """n, channels, height, width, channels_last, threads of a dense batch of any rank."""
    shape, threads = x.shape, torch.get_num_threads()
    contiguous = x.is_contiguous()
    if len(shape) == 4:
        return *shape, not contiguous, threads
    channels = shape[1] if len(shape) > 1 else 1
    return shape[0], channels, 1, math.prod(shape[2:]), not contiguous, threads


def weight(lam: Tensor | None) -> tuple[int, bool]:
    """Address and whether there is one weight a sample."""
    return (0, False) if lam is None else (lam.data_ptr(), lam.dim() == 1)
