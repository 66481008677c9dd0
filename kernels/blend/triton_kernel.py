"""Triton kernels of `blend`: rows of any length, one program a tile of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import (
    NUM_WARPS,
    block_for,
    launch,
    load_partner,
    looked_at,
    mix,
    own_sample,
    store_rounded,
    sum_rows,
    weighted,
)

# Rounding of float32 is part of the contract: multiply, multiply, add, never contracted to a fused multiply-add.
_OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}
_LOOPS = 4  # tiles that one program of a reduction adds up before it stores a partial sum


def blend(x: Tensor, index: Tensor, lam: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor) -> None:
    """`out[m] = scale * (lam[m] * x[n] + (1 - lam[m]) * x[index[m]]) + shift`, n = m % N, scale and shift per channel.

    `index` has one partner an output, N for every draw of the batch.
    """
    groups, length, channel_mode = _rows(x, scale is not None)
    block, outputs = block_for(length), index.shape[0]
    args = (x, index, lam, scale, shift, out, x.shape[0], outputs, groups, length, _channels(scale))
    meta = {"LAM_STEP": lam.dim(), "CHANNEL_MODE": channel_mode, "BLOCK": block, **_OPTIONS}
    launch(_blend_kernel, outputs * groups * triton.cdiv(length, block), x.device, args, **meta)


def blend_grad_x(grad: Tensor, inverse: tuple[Tensor, Tensor], lam: Tensor, out: Tensor) -> None:
    """`out[n] = lam[n] * grad[n] + sum of (1 - lam[m]) * grad[m]` over the samples m whose partner is n."""
    order, start = inverse
    samples, length = grad.shape[0], grad.numel() // max(grad.shape[0], 1)
    block = block_for(length)
    args = (grad, order, start, lam, out, samples, length)
    programs = samples * triton.cdiv(length, block)
    launch(_blend_grad_x_kernel, programs, grad.device, args, LAM_STEP=lam.dim(), BLOCK=block, **_OPTIONS)


def blend_grad_lam(grad: Tensor, x: Tensor, index: Tensor, lam: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """`out[n] = sum of scale * grad[n] * (x[n] - x[index[n]])` over the elements of sample n."""
    groups, length, channel_mode = _rows(x, scale is not None)
    block = block_for(length)
    spans = triton.cdiv(length, block * _LOOPS)
    if groups * spans == 0:
        out.zero_()
        return
    partial = torch.empty(x.shape[0], groups * spans, dtype=torch.float32, device=x.device)
    args = (grad, x, index, lam, scale, partial, x.shape[0], groups, length, _channels(scale))
    meta = {"LAM_STEP": lam.dim(), "CHANNEL_MODE": channel_mode, "LOOPS": _LOOPS, "BLOCK": block, **_OPTIONS}
    launch(_blend_grad_lam_kernel, partial.numel(), x.device, args, **meta)
    sum_rows(partial, out)


def _channels(scale: Tensor | None) -> int:
    return 1 if scale is None else scale.numel()


def _rows(x: Tensor, per_channel: bool) -> tuple[int, int, int]:
    """Rows a sample, elements a row, and where an element's channel comes from: 0 nowhere, 1 its row, 2 its place.

    Channels that are the slowest dimension of a sample make one row each, so that a program has one channel.
    """
    length = x.numel() // max(x.shape[0], 1)
    if not per_channel:
        return 1, length, 0
    if x.dim() == 2 or not x.is_contiguous():
        return 1, length, 2
    return x.shape[1], length // max(x.shape[1], 1), 1


@triton.jit
def _affine_channel(group, first, channels, CHANNEL_MODE: tl.constexpr, BLOCK: tl.constexpr):
    if CHANNEL_MODE == 1:
        return group
    else:
        return ((first % channels).to(tl.int32) + tl.arange(0, BLOCK)) % channels


@triton.jit
def _blend_kernel(
    x_ptr,
    index_ptr,
    lam_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    samples,
    outputs,
    groups,
    length,
    channels,
    LAM_STEP: tl.constexpr,
    CHANNEL_MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    rows = outputs * groups
    group = pid % rows % groups
    m, n = own_sample(pid % rows // groups, samples)
    first = (pid // rows).to(tl.int64) * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < length
    partner, valid = load_partner(index_ptr, m, samples)
    lam = tl.load(lam_ptr + m * LAM_STEP)
    # An image of weight 0 is not read.
    own_mask = element < tl.where(lam == 0.0, 0, length)
    other_mask = element < tl.where(lam == 1.0, 0, length)
    own = tl.load(x_ptr + (n * groups + group) * length + element, mask=own_mask, other=0)
    other = tl.load(x_ptr + (partner * groups + group) * length + element, mask=other_mask, other=0)
    value = mix(own.to(tl.float32), other.to(tl.float32), lam)
    if CHANNEL_MODE != 0:
        channel = _affine_channel(group, first, channels, CHANNEL_MODE, BLOCK)
        value = tl.load(scale_ptr + channel) * value + tl.load(shift_ptr + channel)
    store_rounded(out_ptr + (m * groups + group) * length + element, tl.where(valid, value, float("nan")), inside)


@triton.jit
def _blend_grad_x_kernel(
    grad_ptr, order_ptr, start_ptr, lam_ptr, out_ptr, samples, length, LAM_STEP: tl.constexpr, BLOCK: tl.constexpr
):
    pid = tl.program_id(0)
    n = (pid % samples).to(tl.int64)
    element = (pid // samples).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < length
    lam = tl.load(lam_ptr + n * LAM_STEP)
    total = weighted(lam, tl.load(grad_ptr + n * length + element, mask=inside, other=0.0).to(tl.float32))
    for place in range(tl.load(start_ptr + n), tl.load(start_ptr + n + 1)):
        m = tl.load(order_ptr + place)
        rest = 1.0 - tl.load(lam_ptr + m * LAM_STEP)
        total += weighted(rest, tl.load(grad_ptr + m * length + element, mask=inside, other=0.0).to(tl.float32))
    store_rounded(out_ptr + n * length + element, total, inside)


@triton.jit
def _blend_grad_lam_kernel(
    grad_ptr,
    x_ptr,
    index_ptr,
    lam_ptr,
    scale_ptr,
    out_ptr,
    samples,
    groups,
    length,
    channels,
    LAM_STEP: tl.constexpr,
    CHANNEL_MODE: tl.constexpr,
    LOOPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    rows = samples * groups
    group = pid % rows % groups
    n = (pid % rows // groups).to(tl.int64)
    span = pid // rows
    partner, valid = load_partner(index_ptr, n, samples)
    own_ptr = x_ptr + (n * groups + group) * length
    other_ptr = x_ptr + (partner * groups + group) * length
    lam = tl.load(lam_ptr + n * LAM_STEP).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for loop in range(LOOPS):
        first = (span.to(tl.int64) * LOOPS + loop) * BLOCK
        element = first + tl.arange(0, BLOCK)
        inside = element < length
        grad = tl.load(grad_ptr + (n * groups + group) * length + element, mask=inside, other=0.0).to(tl.float32)
        own = tl.load(own_ptr + element, mask=inside, other=0).to(tl.float32)
        other = tl.load(other_ptr + element, mask=inside, other=0).to(tl.float32)
        own, other = looked_at(lam, own), looked_at(1.0 - lam, other)
        if CHANNEL_MODE != 0:
            grad *= tl.load(scale_ptr + _affine_channel(group, first, channels, CHANNEL_MODE, BLOCK))
        total += grad * (own - other)
    value = tl.where(valid, tl.sum(total, 0), float("nan"))
    spans = tl.num_programs(0) // rows
    tl.store(out_ptr + n * (groups * spans) + group * spans + span, value)
