"""Triton kernels of `box_blend`: one program a tile of pixels; an image that a tile does not use is not read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import (
    NUM_WARPS,
    Images,
    blend_tile,
    chunk_channel,
    chunk_mask,
    chunk_offset,
    chunk_weights,
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


def box_blend(
    x: Tensor,
    index: Tensor,
    box: Tensor,
    lam: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    out: Tensor,
) -> None:
    """Output m is `x[index[m]]` inside `box[m]`, and outside it `lam[m] * x[m % N] + (1 - lam[m]) * x[index[m]]`.

    Without lam the pixels outside are those of `x[m % N]`.
    """
    shape, outputs = images(x, out), index.shape[0]
    args = (x, index, box, lam, scale, shift, out, shape.samples, outputs, shape.channels, shape.width, shape.pixels)
    meta = _meta(shape) | _lam_meta(lam) | {"AFFINE": scale is not None}
    launch(_box_blend_kernel, outputs * shape.tiles, x.device, args, **meta)


def box_blend_grad_x(
    grad: Tensor, inverse: tuple[Tensor, Tensor], box: Tensor, lam: Tensor | None, out: Tensor
) -> None:
    """Each sample's gradient through its own mix and through the mixes it is the partner of."""
    order, start = inverse
    shape = images(grad, out)
    args = (grad, order, start, box, lam, out, shape.samples, shape.channels, shape.width, shape.pixels)
    meta = _meta(shape) | _lam_meta(lam)
    launch(_box_blend_grad_x_kernel, shape.samples * shape.tiles, grad.device, args, **meta)


def box_blend_grad_lam(
    grad: Tensor, x: Tensor, index: Tensor, box: Tensor, lam: Tensor, scale: Tensor | None, out: Tensor
) -> None:
    """`out[n] = sum of scale * grad[n] * (x[n] - x[index[n]])` over the elements outside the box of sample n."""
    shape = images(x, grad)
    if shape.tiles == 0:
        out.zero_()
        return
    partial = torch.empty(shape.samples, shape.tiles, dtype=torch.float32, device=x.device)
    args = (grad, x, index, box, lam, scale, partial, shape.samples, shape.channels, shape.width, shape.pixels)
    meta = _meta(shape) | {"AFFINE": scale is not None, "LAM_STEP": lam.dim()}
    launch(_box_blend_grad_lam_kernel, partial.numel(), x.device, args, **meta)
    sum_rows(partial, out)


def _lam_meta(lam: Tensor | None) -> dict[str, int | bool]:
    return {"HAS_LAM": lam is not None, "LAM_STEP": 0 if lam is None else lam.dim()}


def _meta(shape: Images) -> dict[str, int | bool]:
    return {"CHANNELS_LAST": shape.channels_last, "WIDE": shape.wide, "BLOCK": shape.block, **_OPTIONS}


@triton.jit
def _load_box(box_ptr, n):
    box_ptr += n * 4
    return tl.load(box_ptr), tl.load(box_ptr + 1), tl.load(box_ptr + 2), tl.load(box_ptr + 3)


@triton.jit
def _in_box(pixel, width, y0, x0, y1, x1):
    """Which pixels lie in the half-open box; one that leaves the image is cut at its border."""
    y = pixel // width
    x = pixel - y * width
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


@triton.jit
def _box_blend_kernel(
    x_ptr,
    index_ptr,
    box_ptr,
    lam_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    samples,
    outputs,
    channels,
    width,
    pixels,
    HAS_LAM: tl.constexpr,
    LAM_STEP: tl.constexpr,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m, n = own_sample(tl.program_id(0) % outputs, samples)
    tile = tl.program_id(0) // outputs
    partner, valid = load_partner(index_ptr, m, samples)
    y0, x0, y1, x1 = _load_box(box_ptr, m)
    lam = tl.load(lam_ptr + m * LAM_STEP) if HAS_LAM else tl.full([], 1.0, tl.float32)
    pixel = tile_pixels(tile, BLOCK, WIDE)
    weight = tl.where(_in_box(pixel, width, y0, x0, y1, x1), 0.0, lam)
    first = tile.to(tl.int64) * BLOCK // width
    last = tl.minimum((tile.to(tl.int64) + 1) * BLOCK, pixels) - 1
    last = last // width
    touched = (first < y1) & (last >= y0) & (x0 < x1)
    covered = (first >= y0) & (last < y1) & (x0 <= 0) & (x1 >= width)
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
        tl.where(covered | (lam == 0.0), 0, pixels),
        tl.where(touched | (lam != 1.0), pixels, 0),
        tile,
        channels,
        pixels,
        AFFINE,
        CHANNELS_LAST,
        BLOCK,
    )


@triton.jit
def _box_blend_grad_x_kernel(
    grad_ptr,
    order_ptr,
    start_ptr,
    box_ptr,
    lam_ptr,
    out_ptr,
    samples,
    channels,
    width,
    pixels,
    HAS_LAM: tl.constexpr,
    LAM_STEP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = (tl.program_id(0) % samples).to(tl.int64)
    tile = tl.program_id(0) // samples
    y0, x0, y1, x1 = _load_box(box_ptr, n)
    lam = tl.load(lam_ptr + n * LAM_STEP) if HAS_LAM else tl.full([], 1.0, tl.float32)
    pixel = tile_pixels(tile, BLOCK, WIDE)
    own_weight = tl.where(_in_box(pixel, width, y0, x0, y1, x1), 0.0, lam)
    begin, end = tl.load(start_ptr + n), tl.load(start_ptr + n + 1)
    size = tl.cast(pixels, tl.int64) * channels
    for chunk in range(0, channels):
        offset = chunk_offset(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        inside = chunk_mask(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        weight = chunk_weights(own_weight, chunk, channels, CHANNELS_LAST, BLOCK)
        total = weighted(weight, tl.load(grad_ptr + n * size + offset, mask=inside, other=0.0).to(tl.float32))
        for place in range(begin, end):
            m = tl.load(order_ptr + place)
            m_y0, m_x0, m_y1, m_x1 = _load_box(box_ptr, m)
            m_lam = tl.load(lam_ptr + m * LAM_STEP) if HAS_LAM else tl.full([], 1.0, tl.float32)
            rest = tl.where(_in_box(pixel, width, m_y0, m_x0, m_y1, m_x1), 1.0, 1.0 - m_lam)
            grad = tl.load(grad_ptr + m * size + offset, mask=inside, other=0.0).to(tl.float32)
            total += weighted(chunk_weights(rest, chunk, channels, CHANNELS_LAST, BLOCK), grad)
        store_rounded(out_ptr + n * size + offset, total, inside)


@triton.jit
def _box_blend_grad_lam_kernel(
    grad_ptr,
    x_ptr,
    index_ptr,
    box_ptr,
    lam_ptr,
    scale_ptr,
    out_ptr,
    samples,
    channels,
    width,
    pixels,
    AFFINE: tl.constexpr,
    LAM_STEP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = (tl.program_id(0) % samples).to(tl.int64)
    tile = tl.program_id(0) // samples
    partner, valid = load_partner(index_ptr, n, samples)
    y0, x0, y1, x1 = _load_box(box_ptr, n)
    outside = tl.where(_in_box(tile_pixels(tile, BLOCK, WIDE), width, y0, x0, y1, x1), 0.0, 1.0)
    size = tl.cast(pixels, tl.int64) * channels
    lam = tl.load(lam_ptr + n * LAM_STEP).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for chunk in range(0, channels):
        offset = chunk_offset(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        inside = chunk_mask(chunk, tile, channels, pixels, CHANNELS_LAST, BLOCK)
        grad = tl.load(grad_ptr + n * size + offset, mask=inside, other=0.0).to(tl.float32)
        own = tl.load(x_ptr + n * size + offset, mask=inside, other=0).to(tl.float32)
        other = tl.load(x_ptr + partner * size + offset, mask=inside, other=0).to(tl.float32)
        own, other = looked_at(lam, own), looked_at(1.0 - lam, other)
        if AFFINE:
            grad *= tl.load(scale_ptr + chunk_channel(chunk, channels, CHANNELS_LAST, BLOCK))
        total += weighted(chunk_weights(outside, chunk, channels, CHANNELS_LAST, BLOCK), grad * (own - other))
    value = tl.where(valid, tl.sum(total, 0), float("nan"))
    tl.store(out_ptr + n * (tl.num_programs(0) // samples) + tile, value)
