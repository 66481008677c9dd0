"""Triton kernels of `pair_attention`: online softmax with one value a key; the (r, r) matrix lives in registers only.

Scores are tensor-core products of [BLOCK_M, BLOCK_D] by [BLOCK_N, BLOCK_D] tiles. The value dimension is 1, so the
forward needs no second product: the weighted sum of the values is a row reduction beside the softmax denominator. The
backward recomputes P from the saved log-sum-exp; the gradient of a score is `P * a * (b - c)` with c already known, so
there is no preparatory pass. Rows (dq) and columns (dk, dbias, cols) are separate kernels: every output element is
written by one program in a fixed order, without atomics.

Scores live in base 2: `exp2(score * scale * log2(e) ...)`.

float32 tensors follow `torch.get_float32_matmul_precision()`: "highest" (the default) multiplies in IEEE float32 on
the ordinary cores, "high" and "medium" in TF32 on the tensor cores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import fits_int32, launch, load_partner

_LOG2E = math.log2(math.e)


class _Tiles(NamedTuple):
    """Rows, columns and depth of a product, columns of a gradient's accumulator, and launch options."""

    m: int
    n: int
    d: int
    out: int
    num_warps: int
    num_stages: int


def _tiles(q: Tensor, kind: str) -> _Tiles:
    """Tile sizes of the "forward", "grad_rows" and "grad_cols" kernels: a fixed table, never tuned at run time.

    Chosen so that kernels compile without spilling registers for compute capabilities 8.0, 9.0 and 10.0 and take less
    than the 99 KiB of shared memory that the smallest GPUs grant a program.
    """
    r, depth = q.shape[1:]
    d = max(16, triton.next_power_of_2(depth))
    if q.dtype is torch.float32:
        if _float32_precision() == "ieee":
            m, n = {"forward": (64, 64), "grad_rows": (64, 16), "grad_cols": (32, 32)}[kind]
            return _Tiles(m, n, 16, 16 if d == 16 else 64, 8, 2)
        return _Tiles(64, 64, min(d, 32), min(d, 128), 8, 2)
    if _unit(depth) < 8:
        return _Tiles(64, 32, min(d, 32), min(d, 64), 8, 2)  # element-wise accesses need registers for addresses
    if depth > 128:
        return _Tiles(64, 128, 64, 64, 4, 3) if kind == "forward" else _Tiles(64, 64, 64, 256, 8, 2)
    if kind != "forward":
        if kind == "grad_cols" and d == 16:
            return _Tiles(64, 64, 16, 16, 8, 2)
        d = max(d, 32)
        return _Tiles(64, 64 if depth > 64 else 32, d, d, 8, 2)
    return _Tiles(128, 64, d, d, 8, 2 if depth > 64 else 3) if r > 256 else _Tiles(64, 64, d, d, 4, 3)


def _unit(depth: int) -> int:
    """Power of two that divides the depth: known to the compiler, it says how wide rows may be accessed."""
    return math.gcd(depth, 16)


def _float32_precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _meta(tiles: _Tiles, q: Tensor, key_bias: Tensor | None) -> dict:
    return {
        "HAS_BIAS": key_bias is not None,
        "HELD": q.shape[2] <= tiles.d,
        "UNIT": _unit(q.shape[2]),
        "WIDE": not fits_int32((q.shape[1] + 256) * q.shape[2]),
        "PRECISION": _float32_precision() if q.dtype is torch.float32 else "ieee",
        "BLOCK_M": tiles.m,
        "BLOCK_N": tiles.n,
        "BLOCK_D": tiles.d,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    key_bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """`out[n, p] = sum over s of P[n, p, s] * v[n, s]`, and the log-sum-exp of each row of scores."""
    samples, r, depth = q.shape
    tiles = _tiles(q, "forward")
    args = (q, k, v, index, key_bias, out, lse, scale * _LOG2E, samples, r, depth // _unit(depth))
    launch(_rows_kernel, samples * triton.cdiv(r, tiles.m), q.device, args, **_meta(tiles, q, key_bias))


def pair_attention_cols(
    q: Tensor,
    k: Tensor,
    a: Tensor,
    index: Tensor,
    key_bias: Tensor | None,
    scale: float,
    lse: Tensor,
    out: Tensor,
) -> None:
    """`out[n, s] = sum over p of P[n, p, s] * a[n, p]`."""
    samples, r, depth = q.shape
    tiles = _tiles(q, "forward")
    args = (q, k, a, index, key_bias, lse, out, scale * _LOG2E, samples, r, depth // _unit(depth))
    # A program owns columns: they take the tile's BLOCK_M side.
    launch(_cols_kernel, samples * triton.cdiv(r, tiles.m), q.device, args, **_meta(tiles, q, key_bias))


def pair_attention_grad(
    q: Tensor,
    k: Tensor,
    inverse: tuple[Tensor, Tensor],
    key_bias: Tensor | None,
    scale: float,
    lse: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dbias: Tensor | None,
    cols: Tensor | None,
) -> None:
    """Gradients through the scores, `dS = P * a[p] * (b[s] - c[p])`; outputs that are None are not computed.

    `dq = scale * dS k`, `dk = scale * dS^T q` summed over the samples that share a partner, `dbias` the column sums of
    dS, `cols` the column sums of `P * a`.
    """
    samples, r, depth = q.shape
    order, start = inverse
    shared = (q, k, order, start, key_bias, lse, a, b, c, scale * _LOG2E, scale, samples, r, depth // _unit(depth))
    if dq is not None:
        tiles = _tiles(q, "grad_rows")
        programs = samples * triton.cdiv(depth, tiles.out) * triton.cdiv(r, tiles.m)
        meta = _meta(tiles, q, key_bias) | _grad_meta(tiles, q)
        launch(_grad_rows_kernel, programs, q.device, (*shared, dq), **meta)
    if dk is not None or dbias is not None or cols is not None:
        tiles = _tiles(q, "grad_cols")
        parts = 1 if dk is None else triton.cdiv(depth, tiles.out)
        meta = _meta(tiles, q, key_bias) | _grad_meta(tiles, q)
        meta |= {"HAS_DK": dk is not None, "HAS_DBIAS": dbias is not None, "HAS_COLS": cols is not None}
        programs = (samples + 1) * parts * triton.cdiv(r, tiles.m)
        launch(_grad_cols_kernel, programs, q.device, (*shared, dk, dbias, cols), **meta)


def _grad_meta(tiles: _Tiles, q: Tensor) -> dict:
    return {"BLOCK_OUT": tiles.out, "RESCALE": q.dtype is torch.float16}


@triton.jit
def _offsets(row, column, depth, WIDE: tl.constexpr):
    """Offsets within one sample's (r, depth) matrix, int32 unless the matrix needs more."""
    if WIDE:
        row = row.to(tl.int64)
    return row[:, None] * depth + column[None, :]


@triton.jit
def _tile(ptr, row, first, r, depth, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):
    """Rows `row` and columns `first ...` of an (r, depth) matrix; 0 outside it."""
    column = first + tl.arange(0, BLOCK_D)
    inside = (row < r)[:, None] & (column < depth)[None, :]
    return tl.load(ptr + _offsets(row, column, depth, WIDE), mask=inside, other=0.0)


@triton.jit
def _products(
    left_ptr,
    left_row,
    right_ptr,
    right_row,
    r,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dot products of the rows of two matrices, [BLOCK_M, BLOCK_N], accumulated over blocks of the depth."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, depth, BLOCK_D):
        left = _tile(left_ptr, left_row, first, r, depth, BLOCK_D, WIDE)
        right = _tile(right_ptr, right_row, first, r, depth, BLOCK_D, WIDE)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    return total


@triton.jit
def _key_bias(bias_ptr, n, s, r, HAS_BIAS: tl.constexpr):
    """Bias of the keys `s` in base 2; -inf past the last key, which gives them probability 0."""
    if HAS_BIAS:
        return tl.load(bias_ptr + n * r + s, mask=s < r, other=float("-inf")) * 1.4426950408889634
    else:
        return tl.where(s < r, 0.0, float("-inf"))


@triton.jit
def _rows_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    index_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    scale,
    samples,
    r,
    units,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    depth = units * UNIT
    blocks = tl.cdiv(r, BLOCK_M)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    partner, valid = load_partner(index_ptr, n, samples)
    q_ptr += n * r * depth
    k_ptr += partner * r * depth
    if HELD:
        q = _tile(q_ptr, p, 0, r, depth, BLOCK_D, WIDE)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    denominator = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, r, BLOCK_N):
        s = first + tl.arange(0, BLOCK_N)
        if HELD:
            scores = tl.dot(q, tl.trans(_tile(k_ptr, s, 0, r, depth, BLOCK_D, WIDE)), input_precision=PRECISION)
        else:
            scores = _products(q_ptr, p, k_ptr, s, r, depth, BLOCK_M, BLOCK_N, BLOCK_D, WIDE, PRECISION)
        scores = scores * scale + _key_bias(bias_ptr, n, s, r, HAS_BIAS)[None, :]
        new_top = tl.maximum(top, tl.max(scores, 1))
        # All keys so far may be masked by a bias of -inf: then the sums stay 0 instead of becoming NaN.
        level = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - level)
        weight = tl.exp2(scores - level[:, None])
        value = tl.load(v_ptr + n * r + s, mask=s < r, other=0.0)
        denominator = denominator * shrink + tl.sum(weight, 1)
        total = total * shrink + tl.sum(weight * value[None, :], 1)
        top = new_top
    out = tl.where(valid, total / denominator, float("nan"))
    lse = tl.where(valid, (top + tl.log2(denominator)) * 0.6931471805599453, float("nan"))
    tl.store(out_ptr + n * r + p, out.to(out_ptr.dtype.element_ty), mask=p < r)
    tl.store(lse_ptr + n * r + p, lse, mask=p < r)


@triton.jit
def _cols_kernel(
    q_ptr,
    k_ptr,
    a_ptr,
    index_ptr,
    bias_ptr,
    lse_ptr,
    out_ptr,
    scale,
    samples,
    r,
    units,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    depth = units * UNIT
    blocks = tl.cdiv(r, BLOCK_M)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    s = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    partner, valid = load_partner(index_ptr, n, samples)
    q_ptr += n * r * depth
    k_ptr += partner * r * depth
    bias = _key_bias(bias_ptr, n, s, r, HAS_BIAS)
    if HELD:
        k = _tile(k_ptr, s, 0, r, depth, BLOCK_D, WIDE)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, r, BLOCK_N):
        p = first + tl.arange(0, BLOCK_N)
        if HELD:
            scores = tl.dot(k, tl.trans(_tile(q_ptr, p, 0, r, depth, BLOCK_D, WIDE)), input_precision=PRECISION)
        else:
            scores = _products(k_ptr, s, q_ptr, p, r, depth, BLOCK_M, BLOCK_N, BLOCK_D, WIDE, PRECISION)
        # Rows past the last have an infinite log-sum-exp: probability 0.
        lse = tl.load(lse_ptr + n * r + p, mask=p < r, other=float("inf")) * 1.4426950408889634
        weight = tl.exp2(scores * scale + bias[:, None] - lse[None, :])
        total += tl.sum(weight * tl.load(a_ptr + n * r + p, mask=p < r, other=0.0)[None, :], 1)
    total = tl.where(valid, total, float("nan"))
    tl.store(out_ptr + n * r + s, total.to(out_ptr.dtype.element_ty), mask=s < r)


@triton.jit
def _largest(ptr, r):
    """Largest magnitude of r numbers."""
    largest = tl.zeros([1024], tl.float32)
    for first in range(0, r, 1024):
        element = first + tl.arange(0, 1024)
        largest = tl.maximum(largest, tl.abs(tl.load(ptr + element, mask=element < r, other=0.0)))
    return tl.max(largest, 0)


@triton.jit
def _half_scale(bound):
    """A power of two that brings numbers up to `bound` near 2**12: float16 then holds them, and 36 binades below."""
    exponent = tl.where(bound > 0.0, 12.0 - tl.floor(tl.log2(bound)), 0.0)
    return tl.exp2(tl.minimum(exponent, 100.0))


@triton.jit
def _owner(start_ptr, place, samples):
    """Sample whose inverse list holds `place`, and whether there is one."""
    owner = tl.zeros([], tl.int32)
    for first in range(0, samples, 1024):
        j = first + tl.arange(0, 1024)
        end = tl.load(start_ptr + 1 + j, mask=j < samples, other=0)
        owner += tl.sum(((j < samples) & (end <= place)).to(tl.int32), 0)
    valid = owner < samples
    owner = tl.where(valid, owner, 0).to(tl.int64)
    return owner, valid & (tl.load(start_ptr + owner) <= place)


@triton.jit
def _grad_rows_kernel(
    q_ptr,
    k_ptr,
    order_ptr,
    start_ptr,
    bias_ptr,
    lse_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    scale,
    out_scale,
    samples,
    r,
    units,
    dq_ptr,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    RESCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    depth = units * UNIT
    blocks = tl.cdiv(r, BLOCK_M)
    parts = tl.cdiv(depth, BLOCK_OUT)
    p = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(0) // blocks % parts * BLOCK_OUT
    place = tl.program_id(0) // (blocks * parts)
    n = tl.load(order_ptr + place)
    partner, valid = _owner(start_ptr, place, samples)
    q_ptr += n * r * depth
    k_ptr += partner * r * depth
    lse = tl.load(lse_ptr + n * r + p, mask=p < r, other=float("inf")) * 1.4426950408889634
    c = tl.load(c_ptr + n * r + p, mask=p < r, other=0.0)
    factor = tl.load(a_ptr + n * r + p, mask=p < r, other=0.0) * out_scale
    if RESCALE:
        # float16 would lose small differences b - c to underflow, or overflow under loss scaling.
        half_scale = _half_scale(_largest(b_ptr + n * r, r) + tl.max(tl.abs(c), 0))
        factor = factor / half_scale
    if HELD:
        q = _tile(q_ptr, p, 0, r, depth, BLOCK_D, WIDE)
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for first in range(0, r, BLOCK_N):
        s = first + tl.arange(0, BLOCK_N)
        k = _tile(k_ptr, s, part, r, depth, BLOCK_OUT, WIDE)
        if HELD:
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            scores = _products(q_ptr, p, k_ptr, s, r, depth, BLOCK_M, BLOCK_N, BLOCK_D, WIDE, PRECISION)
        weight = tl.exp2(scores * scale + _key_bias(bias_ptr, n, s, r, HAS_BIAS)[None, :] - lse[:, None])
        difference = tl.load(b_ptr + n * r + s, mask=s < r, other=0.0)[None, :] - c[:, None]
        if RESCALE:
            difference *= half_scale
        total = tl.dot((weight * difference).to(k.dtype), k, total, input_precision=PRECISION)
    total = tl.where(valid, total * factor[:, None], float("nan"))
    column = part + tl.arange(0, BLOCK_OUT)
    dq_ptr += n * r * depth
    inside = (p < r)[:, None] & (column < depth)[None, :]
    offset = _offsets(p, column, depth, WIDE)
    tl.store(dq_ptr + offset, total.to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _grad_cols_kernel(
    q_ptr,
    k_ptr,
    order_ptr,
    start_ptr,
    bias_ptr,
    lse_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    scale,
    out_scale,
    samples,
    r,
    units,
    dk_ptr,
    dbias_ptr,
    cols_ptr,
    HAS_BIAS: tl.constexpr,
    HAS_DK: tl.constexpr,
    HAS_DBIAS: tl.constexpr,
    HAS_COLS: tl.constexpr,
    HELD: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    RESCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    depth = units * UNIT
    blocks = tl.cdiv(r, BLOCK_M)
    parts = tl.cdiv(depth, BLOCK_OUT) if HAS_DK else 1
    s = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(0) // blocks % parts * BLOCK_OUT
    owner = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    if owner == samples:
        # One more group of programs than samples: it serves the samples without a partner, outside all lists.
        if part == 0:
            _fill_unowned(order_ptr, start_ptr, dbias_ptr, cols_ptr, s, samples, r, HAS_DBIAS, HAS_COLS)
        return
    begin, end = tl.load(start_ptr + owner), tl.load(start_ptr + owner + 1)
    k_ptr += owner * r * depth
    if HELD:
        k = _tile(k_ptr, s, 0, r, depth, BLOCK_D, WIDE)
    if RESCALE:
        bound = tl.zeros([], tl.float32)
        for place in range(begin, end):
            n = tl.load(order_ptr + place)
            spread = _largest(b_ptr + n * r, r) + _largest(c_ptr + n * r, r)
            bound = tl.maximum(bound, _largest(a_ptr + n * r, r) * spread)
        half_scale = _half_scale(bound)
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for place in range(begin, end):
        n = tl.load(order_ptr + place)
        n_q_ptr = q_ptr + n * r * depth
        bias = _key_bias(bias_ptr, n, s, r, HAS_BIAS)
        b = tl.load(b_ptr + n * r + s, mask=s < r, other=0.0)
        dbias = tl.zeros([BLOCK_M], tl.float32)
        cols = tl.zeros([BLOCK_M], tl.float32)
        for first in range(0, r, BLOCK_N):
            p = first + tl.arange(0, BLOCK_N)
            if HELD:
                q = _tile(n_q_ptr, p, 0, r, depth, BLOCK_D, WIDE)
                scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            else:
                scores = _products(k_ptr, s, n_q_ptr, p, r, depth, BLOCK_M, BLOCK_N, BLOCK_D, WIDE, PRECISION)
            lse = tl.load(lse_ptr + n * r + p, mask=p < r, other=float("inf")) * 1.4426950408889634
            a = tl.load(a_ptr + n * r + p, mask=p < r, other=0.0)
            c = tl.load(c_ptr + n * r + p, mask=p < r, other=0.0)
            weight = tl.exp2(scores * scale + bias[:, None] - lse[None, :]) * a[None, :]
            gradient = weight * (b[:, None] - c[None, :])
            if HAS_COLS:
                cols += tl.sum(weight, 1)
            if HAS_DBIAS:
                dbias += tl.sum(gradient, 1)
            if HAS_DK:
                if not HELD:
                    q = _tile(n_q_ptr, p, part, r, depth, BLOCK_OUT, WIDE)
                if RESCALE:
                    gradient *= half_scale
                total = tl.dot(gradient.to(q.dtype), q, total, input_precision=PRECISION)
        if part == 0:
            if HAS_DBIAS:
                tl.store(dbias_ptr + n * r + s, dbias.to(dbias_ptr.dtype.element_ty), mask=s < r)
            if HAS_COLS:
                tl.store(cols_ptr + n * r + s, cols.to(cols_ptr.dtype.element_ty), mask=s < r)
    if HAS_DK:
        if RESCALE:
            total = total / half_scale
        column = part + tl.arange(0, BLOCK_OUT)
        inside = (s < r)[:, None] & (column < depth)[None, :]
        offset = owner * r * depth + _offsets(s, column, depth, WIDE)
        tl.store(dk_ptr + offset, (total * out_scale).to(dk_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _fill_unowned(
    order_ptr, start_ptr, dbias_ptr, cols_ptr, s, samples, r, HAS_DBIAS: tl.constexpr, HAS_COLS: tl.constexpr
):
    """NaN for the samples whose partner is out of range; the inverse lists leave them out at either end."""
    begin, end = tl.load(start_ptr), tl.load(start_ptr + samples)
    for place in range(0, samples):
        if (place < begin) | (place >= end):
            n = tl.load(order_ptr + place)
            missing = tl.full(s.shape, float("nan"), tl.float32)
            if HAS_DBIAS:
                tl.store(dbias_ptr + n * r + s, missing, mask=s < r)
            if HAS_COLS:
                tl.store(cols_ptr + n * r + s, missing, mask=s < r)
