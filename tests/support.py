"""Cases that the op tests share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

# Backends of each device; those of CUDA run where there is one.
BACKENDS = [
    pytest.param("cpu", "cpu", id="cpu"),
    pytest.param("cpu", "reference", id="reference"),
    pytest.param("cuda", "triton", id="triton", marks=pytest.mark.gpu),
]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(5, 3, 17, 23), (1, 1, 8, 8), (4, 3, 64, 64), (7, 5, 33, 14), (0, 3, 8, 8), (3, 3, 1, 1), (2, 1, 300, 200)]
LAYOUTS = ["contiguous", "channels_last", "sliced", "offset"]


def images(shape: tuple, dtype: torch.dtype, layout: str, device: str, seed: int = 0) -> Tensor:
    """Random images: normal, or bytes; laid out as named ("offset": not aligned to a vector)."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if layout == "sliced":
        h, w = h + 2, 2 * w
    count = n * c * h * w + (layout == "offset")
    if dtype is torch.uint8:
        flat = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    else:
        flat = torch.randn(count, generator=generator).to(dtype)
    flat = flat.to(device)
    x = flat[layout == "offset" :].view(n, c, h, w)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, :, 1:-1, ::2] if layout == "sliced" else x


def partners(n: int, device: str, seed: int = 0) -> Tensor:
    """A many-to-one map with fixed points."""
    generator = torch.Generator().manual_seed(seed + 1)
    index = torch.randint(0, max(n, 1), (n,), generator=generator)
    if n > 1:
        index[0] = 0
    return index.to(device)


def unit(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Weights in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 2)).to(device)


def skip_unsupported(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype is torch.float64:
        pytest.skip("the Triton kernels leave float64 to the reference")


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Equal bit for bit, signs of zeros included; any NaN equals any other."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = (a.contiguous().view(bits) == b.contiguous().view(bits)) | (a.isnan() & b.isnan())
    assert a.dtype is b.dtype and same.all(), f"{(~same).sum()} of {same.numel()} values differ"
