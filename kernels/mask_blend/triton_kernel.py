"""Triton kernels of `mask_blend`: the mask is upsampled where it is used and never stored at image size.

The mask gradient needs three launches. The first reduces `grad * (x - x[index])` over the channels to one number a
pixel; the other two apply the adjoint of the upsampling along x, then along y, each output gathering from the few
positions that reach it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import (
    NUM_WARPS,
    Images,
    blend_tile,
    block_for,
    chunk_mask,
    chunk_offset,
    chunk_weights,
    fits_int32,
    images,
    launch,
    load_partner,
    looked_at,
    own_sample,
    store_rounded,
    sum_rows,
    tile_pixels,
    weighted,
)

_OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
NEAREST, BILINEAR, BICUBIC = 0, 1, 2
_MANY_CHANNELS = 64  # channels of a pixel read at once in a channels_last reduction


def mask_blend(
    x: Tensor,
    index: Tensor,
    mask: Tensor,
    mode: int,
    sigmoid: bool,
    sigmoid_first: bool,
    scale: Tensor | None,
    shift: Tensor | None,
    out: Tensor,
    mean: Tensor,
) -> None:
    """Blend by the upsampled mask w: `out[m] = scale * (w[m] * x[m % N] + (1 - w[m]) * x[index[m]]) + shift`.

    `mean[m]` is the mean of w[m].
    """
    shape, outputs = images(x, out), index.shape[0]
    partial = torch.empty(outputs, shape.tiles, dtype=torch.float32, device=x.device)
    args = (x, index, scale, shift, out, partial, outputs, *_args(shape, mask))
    meta = _meta(shape, mask, mode, sigmoid, sigmoid_first) | {"AFFINE": scale is not None}
    launch(_mask_blend_kernel, partial.numel(), x.device, args, **meta)
    sum_rows(partial, mean, divisor=shape.pixels)


def mask_blend_grad_x(
    grad: Tensor,
    inverse: tuple[Tensor, Tensor],
    mask: Tensor,
    mode: int,
    sigmoid: bool,
    sigmoid_first: bool,
    out: Tensor,
) -> None:
    """`out[n] = w[n] * grad[n] + sum of (1 - w[m]) * grad[m]` over the samples m whose partner is n."""
    order, start = inverse
    shape = images(grad, out)
    args = (grad, order, start, out, *_args(shape, mask))
    meta = _meta(shape, mask, mode, sigmoid, sigmoid_first)
    launch(_mask_blend_grad_x_kernel, shape.samples * shape.tiles, grad.device, args, **meta)


def mask_blend_grad_mask(
    grad: Tensor | None,
    grad_mean: Tensor | None,
    x: Tensor,
    index: Tensor,
    mask: Tensor,
    mode: int,
    sigmoid: bool,
    sigmoid_first: bool,
    scale: Tensor | None,
    out: Tensor,
) -> None:
    """Gradient of the mask (N, h, w) from that of the mixed images and that of the mean."""
    shape = images(x) if grad is None else images(x, grad)
    if out.numel() == 0 or shape.pixels == 0:
        out.zero_()
        return
    pixel_grad = torch.empty(shape.samples, shape.height, shape.width, dtype=torch.float32, device=x.device)
    block, block_c = shape.block, 1
    if shape.channels_last:
        block_c = min(triton.next_power_of_2(shape.channels), _MANY_CHANNELS)
        block //= block_c
    args = (grad, grad_mean, x, index, scale, pixel_grad, *_args(shape, mask))
    meta = _meta(shape, mask, mode, sigmoid, sigmoid_first) | {"HAS_GRAD": grad is not None}
    meta |= {"HAS_MEAN": grad_mean is not None, "AFFINE": scale is not None, "BLOCK": block, "BLOCK_C": block_c}
    launch(_pixel_grad_kernel, shape.samples * triton.cdiv(shape.pixels, block), x.device, args, **meta)
    cells_x = mask.shape[2]
    along_x = torch.empty(shape.samples, shape.height, cells_x, dtype=torch.float32, device=x.device)
    _adjoint(pixel_grad, None, along_x, 2, mode)
    _adjoint(along_x, mask if sigmoid and sigmoid_first else None, out, 1, mode)


def _adjoint(src: Tensor, logits: Tensor | None, out: Tensor, axis: int, mode: int) -> None:
    """Adjoint of upsampling along one axis; times the derivative of the sigmoid at `logits` if given."""
    size, cells = src.shape[axis], out.shape[axis]
    reach = {NEAREST: 1, BILINEAR: 2, BICUBIC: 4}[mode]
    window = triton.cdiv(reach * size, cells) + 3
    wide = not fits_int32(src.numel() + 1024, out.numel() + 1024, (2 * size + 2 * window) * (cells + 4))
    block = block_for(out.numel(), 256)
    inner = 1 if axis == 2 else out.shape[2]
    args = (src, logits, out, out.numel(), inner, size, cells, min(window, size))
    meta = {"MODE": mode, "DERIVATIVE": logits is not None, "WIDE": wide, "BLOCK": block, **_OPTIONS}
    launch(_adjoint_kernel, triton.cdiv(out.numel(), block), out.device, args, **meta)


def _args(shape: Images, mask: Tensor) -> tuple:
    sizes = (shape.samples, shape.channels, shape.height, shape.width, shape.pixels)
    return mask, *sizes, mask.shape[1], mask.shape[2]


def _meta(shape: Images, mask: Tensor, mode: int, sigmoid: bool, sigmoid_first: bool) -> dict[str, int | bool]:
    # Numbers that meet in the source coordinates: (2 y + 1) h - H, with y past the last row in the tail of a tile.
    rows = shape.height + shape.block // max(shape.width, 1) + 1
    fits = fits_int32((2 * rows + 1) * mask.shape[1], (2 * shape.width + 1) * mask.shape[2])
    return {
        "MODE": mode,
        "SIGMOID": (1 if sigmoid_first else 2) if sigmoid else 0,
        "CHANNELS_LAST": shape.channels_last,
        "WIDE": shape.wide or not fits,
        "BLOCK": shape.block,
        **_OPTIONS,
        # Sixteen taps a pixel: twice the threads keep them in registers.
        "num_warps": 2 * NUM_WARPS if mode == BICUBIC else NUM_WARPS,
    }


@triton.jit
def _sigmoid(value):
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit
def _source(position, cells, size, MODE: tl.constexpr):
    """First tap and fraction of the source coordinate of `position`, from exact integer arithmetic.

    The coordinate is `((2 position + 1) cells - size) / (2 size)`, clamped at 0 for bilinear; nearest takes
    `floor(position cells / size)`.
    """
    if MODE == 0:
        return position * cells // size, 0.0
    else:
        numerator = (2 * position + 1) * cells - size
        if MODE == 1:
            numerator = tl.maximum(numerator, 0)
        # Division truncates; the numerator is never below -size: one period is added before and taken off after.
        first = (numerator + 2 * size) // (2 * size) - 1
        return first, (numerator - first * (2 * size)).to(tl.float32) / tl.cast(2 * size, tl.float32)


@triton.jit
def _cubic(t, TAP: tl.constexpr):
    """Weight of tap 0, 2 or 3 of Keys' cubic convolution, a = -0.75, at fraction t; all four sum to 1."""
    if TAP == 0:
        return ((-0.75 * t + 1.5) * t - 0.75) * t
    elif TAP == 2:
        return ((-1.25 * t + 1.5) * t + 0.75) * t
    else:
        return (0.75 * t - 0.75) * t * t


@triton.jit
def _tap(row_ptr, column, cells, SIGMOID: tl.constexpr):
    value = tl.load(row_ptr + tl.minimum(tl.maximum(column, 0), cells - 1))
    return _sigmoid(value) if SIGMOID == 1 else value


@triton.jit
def _cubic_row(mask_ptr, y, x, t, cells_y, cells_x, SIGMOID: tl.constexpr):
    row_ptr = mask_ptr + tl.minimum(tl.maximum(y, 0), cells_y - 1) * cells_x
    centre = _tap(row_ptr, x, cells_x, SIGMOID)
    value = _cubic(t, 0) * (_tap(row_ptr, x - 1, cells_x, SIGMOID) - centre)
    value += _cubic(t, 2) * (_tap(row_ptr, x + 1, cells_x, SIGMOID) - centre)
    value += _cubic(t, 3) * (_tap(row_ptr, x + 2, cells_x, SIGMOID) - centre)
    return centre + value


@triton.jit
def _upsample(mask_ptr, pixel, height, width, cells_y, cells_x, MODE: tl.constexpr, SIGMOID: tl.constexpr):
    """Mask value at each pixel, activated where that comes first (SIGMOID = 1).

    Interpolation is written as a centre plus weighted differences: a constant mask stays exactly constant, so that an
    all-one mask returns the image bit for bit.
    """
    row = tl.minimum(pixel // width, height - 1)
    y, ty = _source(row, cells_y, height, MODE)
    x, tx = _source(pixel % width, cells_x, width, MODE)
    if MODE == 0:
        return _tap(mask_ptr + y * cells_x, x, cells_x, SIGMOID)
    elif MODE == 1:
        upper, lower = mask_ptr + y * cells_x, mask_ptr + tl.minimum(y + 1, cells_y - 1) * cells_x
        left, left_below = _tap(upper, x, cells_x, SIGMOID), _tap(lower, x, cells_x, SIGMOID)
        top = left + tx * (_tap(upper, x + 1, cells_x, SIGMOID) - left)
        bottom = left_below + tx * (_tap(lower, x + 1, cells_x, SIGMOID) - left_below)
        return top + ty * (bottom - top)
    else:
        centre = _cubic_row(mask_ptr, y, x, tx, cells_y, cells_x, SIGMOID)
        value = _cubic(ty, 0) * (_cubic_row(mask_ptr, y - 1, x, tx, cells_y, cells_x, SIGMOID) - centre)
        value += _cubic(ty, 2) * (_cubic_row(mask_ptr, y + 1, x, tx, cells_y, cells_x, SIGMOID) - centre)
        value += _cubic(ty, 3) * (_cubic_row(mask_ptr, y + 2, x, tx, cells_y, cells_x, SIGMOID) - centre)
        return centre + value


@triton.jit
def _weights(mask_ptr, pixel, height, width, cells_y, cells_x, MODE: tl.constexpr, SIGMOID: tl.constexpr):
    """Weight of the own image at each pixel."""
    value = _upsample(mask_ptr, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
    return _sigmoid(value) if SIGMOID == 2 else value


@triton.jit
def _mask_blend_kernel(
    x_ptr,
    index_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    partial_ptr,
    outputs,
    mask_ptr,
    samples,
    channels,
    height,
    width,
    pixels,
    cells_y,
    cells_x,
    MODE: tl.constexpr,
    SIGMOID: tl.constexpr,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m, n = own_sample(tl.program_id(0) % outputs, samples)
    tile = tl.program_id(0) // outputs
    partner, valid = load_partner(index_ptr, m, samples)
    cells = tl.cast(cells_y, tl.int64) * cells_x
    pixel = tile_pixels(tile, BLOCK, WIDE)
    weight = _weights(mask_ptr + m * cells, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
    total = tl.sum(tl.where(pixel < pixels, weight, 0.0), 0)
    total = tl.where(valid, total, float("nan"))
    tl.store(partial_ptr + m * (tl.num_programs(0) // outputs) + tile, total)
    blend_tile(
        x_ptr,
        out_ptr,
        scale_ptr,
        shift_ptr,
        weight,
        m,
        n,
        partner,
        valid,
        pixels,
        pixels,
        tile,
        channels,
        pixels,
        AFFINE,
        CHANNELS_LAST,
        BLOCK,
    )


@triton.jit
def _mask_blend_grad_x_kernel(
    grad_ptr,
    order_ptr,
    start_ptr,
    out_ptr,
    mask_ptr,
    samples,
    channels,
    height,
    width,
    pixels,
    cells_y,
    cells_x,
    MODE: tl.constexpr,
    SIGMOID: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = (tl.program_id(0) % samples).to(tl.int64)
    tile = tl.program_id(0) // samples
    cells = tl.cast(cells_y, tl.int64) * cells_x
    pixel = tile_pixels(tile, BLOCK, WIDE)
    own_weight = _weights(mask_ptr + n * cells, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
    begin, end = tl.load(start_ptr + n), tl.load(start_ptr + n + 1)
    # A permutation gives each sample one inverse: its weights serve all channels. Further ones are recomputed.
    first = tl.load(order_ptr + begin, mask=begin < end, other=0)
    rest = _weights(mask_ptr + first * cells, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
    rest = tl.where(begin < end, 1.0 - rest, 0.0)
    size = tl.cast(pixels, tl.int64) * channels
    for chunk in range(0, channels):
        offset = chunk_offset(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        inside = chunk_mask(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        grad = tl.load(grad_ptr + n * size + offset, mask=inside, other=0.0).to(tl.float32)
        total = weighted(chunk_weights(own_weight, chunk, channels, CHANNELS_LAST, BLOCK), grad)
        grad = tl.load(grad_ptr + first * size + offset, mask=inside, other=0.0).to(tl.float32)
        total += weighted(chunk_weights(rest, chunk, channels, CHANNELS_LAST, BLOCK), grad)
        for place in range(begin + 1, end):
            m = tl.load(order_ptr + place)
            weight = _weights(mask_ptr + m * cells, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
            grad = tl.load(grad_ptr + m * size + offset, mask=inside, other=0.0).to(tl.float32)
            total += weighted(chunk_weights(1.0 - weight, chunk, channels, CHANNELS_LAST, BLOCK), grad)
        store_rounded(out_ptr + n * size + offset, total, inside)


@triton.jit
def _pixel_grad_kernel(
    grad_ptr,
    grad_mean_ptr,
    x_ptr,
    index_ptr,
    scale_ptr,
    out_ptr,
    mask_ptr,
    samples,
    channels,
    height,
    width,
    pixels,
    cells_y,
    cells_x,
    HAS_GRAD: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    MODE: tl.constexpr,
    SIGMOID: tl.constexpr,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n = (tl.program_id(0) % samples).to(tl.int64)
    tile = tl.program_id(0) // samples
    partner, valid = load_partner(index_ptr, n, samples)
    pixel = tile_pixels(tile, BLOCK, WIDE)
    inside = pixel < pixels
    size = tl.cast(pixels, tl.int64) * channels
    total = tl.zeros([BLOCK], tl.float32)
    mask_ptr += n * cells_y * cells_x
    weight = _weights(mask_ptr, pixel, height, width, cells_y, cells_x, MODE, SIGMOID)
    if HAS_GRAD:
        if CHANNELS_LAST:
            for first in range(0, channels, BLOCK_C):
                channel = first + tl.arange(0, BLOCK_C)
                offset = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
                present = inside[:, None] & (channel < channels)[None, :]
                grad = tl.load(grad_ptr + n * size + offset, mask=present, other=0.0).to(tl.float32)
                own = tl.load(x_ptr + n * size + offset, mask=present, other=0).to(tl.float32)
                other = tl.load(x_ptr + partner * size + offset, mask=present, other=0).to(tl.float32)
                own, other = looked_at(weight[:, None], own), looked_at(1.0 - weight[:, None], other)
                if AFFINE:
                    grad *= tl.load(scale_ptr + channel, mask=channel < channels, other=0.0)[None, :]
                total += tl.sum(grad * (own - other), 1)
        else:
            for channel in range(0, channels):
                offset = channel * tl.cast(pixels, tl.int64) + pixel
                grad = tl.load(grad_ptr + n * size + offset, mask=inside, other=0.0).to(tl.float32)
                own = tl.load(x_ptr + n * size + offset, mask=inside, other=0).to(tl.float32)
                other = tl.load(x_ptr + partner * size + offset, mask=inside, other=0).to(tl.float32)
                own, other = looked_at(weight, own), looked_at(1.0 - weight, other)
                if AFFINE:
                    grad *= tl.load(scale_ptr + channel)
                total += grad * (own - other)
    if HAS_MEAN:
        total += tl.load(grad_mean_ptr + n) / tl.cast(pixels, tl.float32)
    if SIGMOID == 2:
        total *= weight * (1.0 - weight)
    tl.store(out_ptr + n * pixels + pixel, tl.where(valid, total, float("nan")), mask=inside)


@triton.jit
def _reach(position, cell, cells, size, MODE: tl.constexpr):
    """Weight that output `position` gives to mask cell `cell` along one axis."""
    first, t = _source(position, cells, size, MODE)
    if MODE == 0:
        return tl.where(first == cell, 1.0, 0.0)
    elif MODE == 1:
        last = tl.minimum(first + 1, cells - 1)
        return tl.where(first == cell, 1.0 - t, 0.0) + tl.where(last == cell, t, 0.0)
    else:
        before, after, far = _cubic(t, 0), _cubic(t, 2), _cubic(t, 3)
        weight = tl.where(tl.maximum(first - 1, 0) == cell, before, 0.0)
        weight += tl.where(tl.maximum(first, 0) == cell, 1.0 - (before + after + far), 0.0)
        weight += tl.where(tl.minimum(first + 1, cells - 1) == cell, after, 0.0)
        return weight + tl.where(tl.minimum(first + 2, cells - 1) == cell, far, 0.0)


@triton.jit
def _adjoint_kernel(
    src_ptr,
    logit_ptr,
    out_ptr,
    total,
    inner,
    size,
    cells,
    window,
    MODE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = tile_pixels(tl.program_id(0), BLOCK, WIDE)
    present = element < total
    column = element % inner
    cell = element // inner % cells
    outer = element // inner // cells
    # First position that reaches the cell, or one or two before it.
    if MODE == 0:
        first = cell * size // cells
    elif MODE == 1:
        first = tl.maximum((2 * cell - 1) * size, 0) // (2 * cells) - 1
    else:
        first = tl.maximum((2 * cell - 3) * size, 0) // (2 * cells) - 1
    first = tl.maximum(tl.minimum(first, size - window), 0)
    value = tl.zeros([BLOCK], tl.float32)
    for step in range(0, window):
        position = first + step
        weight = _reach(position, cell, cells, size, MODE)
        src = src_ptr + (outer * size + position).to(tl.int64) * inner + column
        value += weight * tl.load(src, mask=present & (weight != 0.0), other=0.0)
    if DERIVATIVE:
        active = _sigmoid(tl.load(logit_ptr + element, mask=present, other=0.0))
        value *= active * (1.0 - active)
    tl.store(out_ptr + element, value, mask=present)
