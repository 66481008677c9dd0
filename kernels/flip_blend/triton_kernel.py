"""Triton kernel of `flip_blend`: one program a tile of both samples of a pair."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import NUM_WARPS, fits_int32, launch, store_rounded
from .geometry import geometry

_OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}


def flip_blend(
    x: Tensor, lam: Tensor | None, lam_b: Tensor | None, box: Tensor | None, adjoint: bool, out: Tensor
) -> None:
    """Sample n of `out` mixes samples n and N - 1 - n of `x`, which may be `out`."""
    n, planes, height, width, inner = geometry(x)
    size = planes * height * width * inner
    block = 32 * NUM_WARPS * (4 if x.element_size() == 4 else 8)
    tiles = triton.cdiv(size, block)
    meta = {
        "HAS_LAM": lam is not None,
        "HAS_LAM_B": lam_b is not None,
        "LAM_STEP": 0 if lam is None else lam.dim(),
        "HAS_BOX": box is not None,
        "ADJOINT": adjoint,
        "IN_PLACE": out is x,
        "WIDE": not fits_int32(size + block),
        "BLOCK": block,
    }
    args = (x, lam, lam_b, box, out, n, tiles, size, height, width, inner)
    launch(_flip_blend_kernel, (n + 1) // 2 * tiles, x.device, args, **meta, **_OPTIONS)


@triton.jit
def _weights(lam_ptr, lam_b_ptr, n, HAS_LAM: tl.constexpr, HAS_LAM_B: tl.constexpr, LAM_STEP: tl.constexpr):
    """Weights of sample n and of the other of its pair, outside the box."""
    own = tl.load(lam_ptr + n * LAM_STEP) if HAS_LAM else tl.full([], 1.0, tl.float32)
    other = tl.load(lam_b_ptr + n * LAM_STEP) if HAS_LAM_B else 1.0 - own
    return own, other


@triton.jit
def _in_box(box_ptr, n, y, x):
    box_ptr += n * 4
    y0, x0, y1, x1 = tl.load(box_ptr), tl.load(box_ptr + 1), tl.load(box_ptr + 2), tl.load(box_ptr + 3)
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


@triton.jit
def _mix(own, other, weight, weight_b):
    """What has no weight does not count: it may be infinite."""
    return tl.where(weight == 0.0, 0.0, own * weight) + tl.where(weight_b == 0.0, 0.0, other * weight_b)


@triton.jit
def _flip_blend_kernel(
    x_ptr,
    lam_ptr,
    lam_b_ptr,
    box_ptr,
    out_ptr,
    samples,
    tiles,
    size,
    height,
    width,
    inner,
    HAS_LAM: tl.constexpr,
    HAS_LAM_B: tl.constexpr,
    LAM_STEP: tl.constexpr,
    HAS_BOX: tl.constexpr,
    ADJOINT: tl.constexpr,
    IN_PLACE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0) // tiles
    second = samples - 1 - first
    tile = tl.program_id(0) % tiles
    element = tl.arange(0, BLOCK) + (tile.to(tl.int64) if WIDE else tile) * BLOCK
    own_a, other_a = _weights(lam_ptr, lam_b_ptr, first, HAS_LAM, HAS_LAM_B, LAM_STEP)
    own_b, other_b = _weights(lam_ptr, lam_b_ptr, second, HAS_LAM, HAS_LAM_B, LAM_STEP)
    if HAS_BOX:
        pixel = element // inner
        y, x = pixel // width % height, pixel % width
        in_a, in_b = _in_box(box_ptr, first, y, x), _in_box(box_ptr, second, y, x)
        own_a, other_a = tl.where(in_a, 0.0, own_a), tl.where(in_a, 1.0, other_a)
        own_b, other_b = tl.where(in_b, 0.0, own_b), tl.where(in_b, 1.0, other_b)
    if ADJOINT:
        other_a, other_b = other_b, other_a
    changes_a = ((own_a != 1.0) | (other_a != 0.0)) & (first != second)
    changes_b = ((own_b != 1.0) | (other_b != 0.0)) & (first != second)
    end_a = tl.where(changes_a, size, 0) if IN_PLACE else size
    end_b = tl.where(changes_b, size, 0) if IN_PLACE else size
    wanted = element < (tl.maximum(end_a, end_b) if IN_PLACE else size)
    at_a = first.to(tl.int64) * size + element
    at_b = second.to(tl.int64) * size + element
    a = tl.load(x_ptr + at_a, mask=wanted, other=0).to(tl.float32)
    b = tl.load(x_ptr + at_b, mask=wanted, other=0).to(tl.float32)
    mixed_a = tl.where(changes_a, _mix(a, b, own_a, other_a), a)
    mixed_b = tl.where(changes_b, _mix(b, a, own_b, other_b), b)
    store_rounded(out_ptr + at_a, mixed_a, element < end_a)
    store_rounded(out_ptr + at_b, mixed_b, element < end_b)
