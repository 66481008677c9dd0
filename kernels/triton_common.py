"""What the Triton kernels share: launching, and the pixel arithmetic of the blends.

The blends walk an image by tiles of `BLOCK` consecutive pixels. A tile of an image with C channels is C *chunks*
of `BLOCK` elements: for NCHW chunk c is the tile's pixels in channel c; for channels_last the tile is one run of
`BLOCK * C` elements, cut into C pieces. Either way every access is contiguous, and what depends on the pixel alone
is computed once a tile.

A forward call makes `outputs` mixed images of `samples` images, one or more draws of the batch: output m mixes sample
`m % samples` with sample `index[m]`. Programs are ordered tile first, output second: an image is read for all outputs
that it takes part in at about the same time, so that every reading after the first comes from the L2 cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
_INT32_MAX = 2**31 - 1


class Launch(NamedTuple):
    """One kernel launch: the kernel, its run-time arguments, and its constexprs and launch options."""

    kernel: Any
    args: tuple
    meta: dict[str, Any]


_recorded: list[Launch] | None = None
_recorded_capability = 0


@contextmanager
def record_launches(capability: int) -> Iterator[list[Launch]]:
    """Collect the launches for a GPU of this compute capability, `10 * major + minor`, instead of running them.

    The raw functions are then called on meta tensors, so that nothing is allocated either.
    """
    global _recorded, _recorded_capability
    _recorded, _recorded_capability = [], capability
    try:
        yield _recorded
    finally:
        _recorded = None


def capability(device: int) -> int:
    """Compute capability of a CUDA device, or of the launches being recorded, as `10 * major + minor`; 0 of others."""
    return _cuda_capability(device) if _recorded is None else _recorded_capability


@functools.cache
def _cuda_capability(device: int) -> int:
    if device < 0 or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(kernel: Any, programs: int, device: torch.device, args: tuple, **meta: Any) -> None:
    """Run `programs` programs of `kernel` on the current stream of `device`.

    `args` are the run-time arguments in order, `meta` the constexprs and launch options by name.
    """
    if programs == 0:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, args, meta))
    elif device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **meta)
    else:
        kernel[(programs,)](*args, **meta)


class Images(NamedTuple):
    """How dense (N, C, H, W) tensors lie in memory, and how many of their pixels make a tile."""

    samples: int
    channels: int
    height: int
    width: int
    channels_last: bool
    block: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.pixels, self.block)

    @property
    def wide(self) -> bool:
        """Whether pixel numbers of one image, the last tile's tail included, leave int32."""
        return self.pixels > _INT32_MAX - self.block


def images(x: Tensor, *others: Tensor) -> Images:
    """Describe `x` and others like it, (N, C, H, W) in NCHW or channels_last order.

    A thread takes as many pixels as fill 128 bits of float32 images, or 8 of narrower ones.
    """
    widest = max(tensor.element_size() for tensor in (x, *others))
    block = 32 * NUM_WARPS * (4 if widest == 4 else 8)
    return Images(*x.shape, channels_last=not x.is_contiguous(), block=block)


def fits_int32(*values: int) -> bool:
    """Whether index arithmetic up to these values can be done in int32."""
    return max(values) <= _INT32_MAX


def block_for(size: int, largest: int = 1024, smallest: int = 128) -> int:
    """The power of two that covers `size`, within limits."""
    return max(smallest, min(largest, triton.next_power_of_2(max(size, 1))))


def sum_rows(partial: Tensor, out: Tensor, divisor: int = 1) -> None:
    """`out[n] = partial[n].sum() / divisor`, always added in the same order."""
    rows, columns = partial.shape
    args = (partial, out, columns, float(divisor))
    launch(_sum_rows_kernel, rows, out.device, args, BLOCK=block_for(columns), num_warps=NUM_WARPS)


@triton.jit
def _sum_rows_kernel(src_ptr, out_ptr, columns, divisor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + lane
        total += tl.load(src_ptr + row * columns + column, mask=column < columns, other=0.0)
    tl.store(out_ptr + row, tl.sum(total, 0) / divisor)


@triton.jit
def own_sample(output, samples):
    """An output's number and that of its own sample, both int64."""
    return output.to(tl.int64), (output % samples).to(tl.int64)


@triton.jit
def load_partner(index_ptr, m, samples):
    """Partner of output m and whether it exists; a partner out of range is replaced by 0, so that it can be read."""
    partner = tl.load(index_ptr + m)
    valid = (partner >= 0) & (partner < samples)
    return tl.where(valid, partner, 0), valid


@triton.jit
def mix(own, partner, weight):
    """`weight * own + (1 - weight) * partner`; a weight of exactly 1 or 0 selects."""
    mixed = weight * own + (1.0 - weight) * partner
    mixed = tl.where(weight == 0.0, partner, mixed)
    return tl.where(weight == 1.0, own, mixed)


@triton.jit
def looked_at(weight, value):
    """A value in the gradient of its weight: a weight of 0 leaves out one that is not finite."""
    return tl.where(weight == 0.0, tl.where(tl.abs(value) < float("inf"), value, 0.0), value)


@triton.jit
def weighted(weight, value):
    """`weight * value`, and 0 for weight 0 even where the value is not finite."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def store_rounded(ptr, value, mask):
    """Round float32 once to the pointer's dtype; uint8 rounds half to even, saturates, and stores NaN as 0."""
    if ptr.dtype.element_ty == tl.uint8:
        value = tl.where(value > 0.0, value, 0.0)
        value = tl.where(value < 255.0, value, 255.0)
        # Adding 1.5 * 2**23 leaves no fraction bits: the sum is rounded half to even.
        value = (value + 12582912.0) - 12582912.0
        tl.store(ptr, value.to(tl.int32).to(tl.uint8), mask=mask)
    else:
        tl.store(ptr, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def tile_pixels(tile, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Numbers of the pixels of a tile, int32 unless the image needs more."""
    if WIDE:
        return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        return tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def chunk_offset(chunk, tile, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets within an image of the elements of a chunk, [BLOCK] int64."""
    lane = tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        return (tile.to(tl.int64) * channels + chunk) * BLOCK + lane
    else:
        return chunk * tl.cast(pixels, tl.int64) + (tile.to(tl.int64) * BLOCK + lane)


@triton.jit
def chunk_mask(chunk, tile, channels, limit, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Which elements of a chunk belong to a pixel below `limit`."""
    lane = tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        return (tile.to(tl.int64) * channels + chunk) * BLOCK + lane < tl.cast(limit, tl.int64) * channels
    else:
        return tile.to(tl.int64) * BLOCK + lane < limit


@triton.jit
def chunk_weights(weight, chunk, channels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """The tile's pixel weights [BLOCK] laid out as the elements of one of its chunks."""
    if CHANNELS_LAST:
        return tl.gather(weight, (chunk * BLOCK + tl.arange(0, BLOCK)) // channels, 0)
    else:
        return weight


@triton.jit
def chunk_channel(chunk, channels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Channel of the elements of a chunk: one number for NCHW, [BLOCK] for channels_last."""
    if CHANNELS_LAST:
        return (chunk * BLOCK + tl.arange(0, BLOCK)) % channels
    else:
        return chunk


@triton.jit
def blend_tile(
    x_ptr,
    out_ptr,
    scale_ptr,
    shift_ptr,
    weight,
    m,
    n,
    partner,
    valid,
    own_limit,
    partner_limit,
    tile,
    channels,
    pixels,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blend all channels of a tile of output m by its pixel weights [BLOCK]; NaN where the partner is not valid.

    The own image n is read below pixel `own_limit` and the partner below `partner_limit`: either is `pixels`, or 0 when
    no weight of the tile uses that image.
    """
    size = tl.cast(pixels, tl.int64) * channels
    for chunk in range(0, channels):
        offset = chunk_offset(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        own_mask = chunk_mask(chunk, tile, channels, own_limit, CHANNELS_LAST, BLOCK)
        partner_mask = chunk_mask(chunk, tile, channels, partner_limit, CHANNELS_LAST, BLOCK)
        own = tl.load(x_ptr + n * size + offset, mask=own_mask, other=0).to(tl.float32)
        other = tl.load(x_ptr + partner * size + offset, mask=partner_mask, other=0).to(tl.float32)
        value = mix(own, other, chunk_weights(weight, chunk, channels, CHANNELS_LAST, BLOCK))
        if AFFINE:
            channel = chunk_channel(chunk, channels, CHANNELS_LAST, BLOCK)
            value = tl.load(scale_ptr + channel) * value + tl.load(shift_ptr + channel)
        inside = chunk_mask(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        store_rounded(out_ptr + m * size + offset, tl.where(valid, value, float("nan")), inside)
