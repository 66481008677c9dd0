"""How image tensors are handed to the native module: addresses, dtypes, the shape of a dense batch, where to run."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fastmix.native import DTYPES, module


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def tagged(tensor: Tensor | None) -> tuple[int, int]:
    """Address and dtype tag."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), DTYPES[tensor.dtype])


def place(x: Tensor) -> tuple[int, int]:
    """Where the kernels run: -1 and a number of threads, or a CUDA device and its current stream."""
    if x.is_cuda:
        return x.get_device(), torch._C._cuda_getCurrentRawStream(x.get_device())
    return -1, torch.get_num_threads()


def batch(x: Tensor, index: Tensor | None = None) -> tuple[int, int, int, int, bool, int, int, int]:
    """n, channels, height, width, channels_last, draws and `place` of a dense batch of any rank.

    `index` has one partner an output, `draws * n` in all; without it there is one draw.
    """
    shape, contiguous = x.shape, x.is_contiguous()
    draws = 1 if index is None else index.shape[0] // max(shape[0], 1)
    if len(shape) == 4:
        return *shape, not contiguous, draws, *place(x)
    channels = shape[1] if len(shape) > 1 else 1
    return shape[0], channels, 1, math.prod(shape[2:]), not contiguous, draws, *place(x)


def weight(lam: Tensor | None) -> tuple[int, bool]:
    """Address and whether there is one weight an output."""
    return (0, False) if lam is None else (lam.data_ptr(), lam.dim() == 1)


def workspace(call: str, shape: tuple, x: Tensor, other: Tensor | None, mask: tuple = (0, 0, 0)) -> Tensor | None:
    """Scratch memory for a CUDA call by name: `shape` from `batch`, images, result or gradient, and (h, w, mode)."""
    device = shape[-2]
    if device < 0:
        return None
    floats = _workspace(call, shape[:-2], DTYPES[x.dtype], DTYPES[(x if other is None else other).dtype], mask)
    return torch.empty(floats, dtype=torch.float32, device=x.device) if floats else None


@functools.lru_cache(maxsize=256)
def _workspace(call: str, shape: tuple, x_type: int, other_type: int, mask: tuple) -> int:
    return module().workspace(call, *shape, 0, 0, x_type, other_type, *mask)
