"""Triton kernels of `pair_attention`: online softmax with one value a key; the (r, r) matrix lives in registers only.

Scores are tensor-core products of [BLOCK_M, BLOCK_D] by [BLOCK_N, BLOCK_D] tiles. The value dimension is 1, so the
forward needs no second product: the weighted sum of the values is a row reduction beside the softmax denominator. The
backward recomputes P from the saved log-sum-exp; the gradient of a score is `P * a * (b - c)` with c already known, so
there is no preparatory pass. Rows (dq) and columns (dk, dbias, cols) are separate kernels: every output element is
written by one program in a fixed order, without atomics.

Instructions a score are what small depths pay for, so the inner loops do as few as they can: a scale and a subtraction
are one multiply-add on the way into exp2, masks exist only where a block passes the last position, and rows are reduced
across threads once, after the loop (`_grouped`).

float32 tensors follow `torch.get_float32_matmul_precision()`: "highest" (the default) multiplies in IEEE float32 on
the ordinary cores, "high" and "medium" in TF32 on the tensor cores.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import capability, fits_int32, launch, load_partner
from .tiles import Tiles, tiles_for

_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))


@functools.lru_cache(maxsize=256)
def _plan(
    kernel: str, arch: int, dtype: torch.dtype, precision: str, r: int, depth: int, has_bias: bool
) -> tuple[Tiles, dict]:
    """Tiles of a kernel, and its constexprs and launch options, from everything that they depend on."""
    unit = math.gcd(depth, 16)  # known to the compiler, it says how wide rows may be accessed
    half = "half" if unit >= 8 else "narrow"
    tiles = tiles_for(arch, kernel, precision if dtype is torch.float32 else half, depth, r)
    meta = {
        "HAS_BIAS": has_bias,
        "HELD": depth <= tiles.d,
        "FULL_N": r % tiles.n == 0,
        "FULL_D": depth % max(tiles.d, tiles.out) == 0,
        "UNIT": unit,
        "WIDE": not fits_int32((r + 256) * depth),
        "PRECISION": precision,
        "BLOCK_M": tiles.m,
        "BLOCK_N": tiles.n,
        "BLOCK_D": tiles.d,
        "GROUPS": tiles.groups,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    if kernel != "forward":
        meta |= {"BLOCK_OUT": tiles.out, "RESCALE": dtype is torch.float16}
    return tiles, meta


def _plan_for(kernel: str, q: Tensor, key_bias: Tensor | None) -> tuple[Tiles, dict]:
    exact = q.dtype is not torch.float32 or torch.get_float32_matmul_precision() == "highest"
    precision = "ieee" if exact else "tf32"
    return _plan(kernel, capability(q.get_device()), q.dtype, precision, q.shape[1], q.shape[2], key_bias is not None)


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
    """`out[m, p] = sum over s of P[m, p, s] * v[m, s]`, and the log-sum-exp of each row of scores.

    Output m attends from the queries of sample m % N to the keys of sample index[m]; `index`, v, key_bias, out and lse
    have N rows for every draw of the batch.
    """
    samples, r, depth = q.shape
    tiles, meta = _plan_for("forward", q, key_bias)
    args = (q, k, v, index, key_bias, out, lse, scale, samples, index.shape[0], r, depth // meta["UNIT"])
    # The largest product is that of the largest score, unless something is added to the scores or they change sign.
    bare = key_bias is None and meta["FULL_N"] and scale >= 0
    launch(_rows_kernel, index.shape[0] * triton.cdiv(r, tiles.m), q.device, args, BARE=bare, **meta)


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
    """`out[m, s] = sum over p of P[m, p, s] * a[m, p]`; outputs as for `pair_attention`."""
    samples, r, depth = q.shape
    tiles, meta = _plan_for("forward", q, key_bias)
    args = (q, k, a, index, key_bias, lse, out, scale, samples, index.shape[0], r, depth // meta["UNIT"])
    # A program owns columns: they take the tile's BLOCK_M side.
    launch(_cols_kernel, index.shape[0] * triton.cdiv(r, tiles.m), q.device, args, **meta)


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
    dS, `cols` the column sums of `P * a`. One draw: as many outputs as samples.
    """
    samples, r, depth = q.shape
    order, start = inverse
    shared = (q, k, order, start, key_bias, lse, a, b, c, scale, samples, r)
    if dq is not None:
        tiles, meta = _plan_for("grad_rows", q, key_bias)
        programs = samples * triton.cdiv(depth, tiles.out) * triton.cdiv(r, tiles.m)
        launch(_grad_rows_kernel, programs, q.device, (*shared, depth // meta["UNIT"], dq), **meta)
    if dk is not None or dbias is not None or cols is not None:
        tiles, meta = _plan_for("grad_cols", q, key_bias)
        parts = 1 if dk is None else triton.cdiv(depth, tiles.out)
        meta = meta | {"HAS_DK": dk is not None, "HAS_DBIAS": dbias is not None, "HAS_COLS": cols is not None}
        programs = (samples + 1) * parts * triton.cdiv(r, tiles.m)
        launch(_grad_cols_kernel, programs, q.device, (*shared, depth // meta["UNIT"], dk, dbias, cols), **meta)


@triton.jit
def _offsets(row, column, depth, WIDE: tl.constexpr):
    """Offsets within one sample's (r, depth) matrix, int32 unless the matrix needs more."""
    if WIDE:
        row = row.to(tl.int64)
    return row[:, None] * depth + column[None, :]


@triton.jit
def _tile(
    ptr, row, first, r, depth, BLOCK_D: tl.constexpr, WIDE: tl.constexpr, FULL_R: tl.constexpr, FULL_D: tl.constexpr
):
    """Rows `row` and columns `first ...` of an (r, depth) matrix; 0 outside it, where FULL_R and FULL_D say none is."""
    column = first + tl.arange(0, BLOCK_D)
    inside = ((row < r) | FULL_R)[:, None] & ((column < depth) | FULL_D)[None, :]
    return tl.load(ptr + _offsets(row, column, depth, WIDE), mask=inside, other=0.0)


@triton.jit
def _products(
    held,
    left_ptr,
    left_row,
    right_ptr,
    right_row,
    r,
    depth,
    HELD: tl.constexpr,
    FULL_N: tl.constexpr,
    FULL_D: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products of the rows of two matrices, [left rows, right rows].

    The left rows are `held` whole, or both sides are read again in blocks of the depth.
    """
    if HELD:
        right = _tile(right_ptr, right_row, 0, r, depth, BLOCK_D, WIDE, FULL_N, FULL_D)
        return tl.dot(held, tl.trans(right), input_precision=PRECISION)
    else:
        total = tl.zeros([left_row.shape[0], right_row.shape[0]], tl.float32)
        for first in range(0, depth, BLOCK_D):
            left = _tile(left_ptr, left_row, first, r, depth, BLOCK_D, WIDE, False, FULL_D)
            right = _tile(right_ptr, right_row, first, r, depth, BLOCK_D, WIDE, FULL_N, FULL_D)
            total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        return total


@triton.jit
def _key_bias(bias_ptr, s, r, HAS_BIAS: tl.constexpr, FULL: tl.constexpr):
    """Bias of the keys `s`; -inf past the last key, which gives them probability 0."""
    if HAS_BIAS:
        return tl.load(bias_ptr + s, mask=(s < r) | FULL, other=float("-inf"))
    else:
        return tl.where((s < r) | FULL, 0.0, float("-inf"))


@triton.jit
def _grouped(x, GROUPS: tl.constexpr):
    """[rows, columns] as [rows, columns / GROUPS, GROUPS], the columns of a group being those that one thread holds.

    On the tensor cores' result layouts this moves nothing, and a reduction over axis 1 stays within the thread. With
    any other number of groups the sums are the same, only slower.
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    # A thread holds pairs of neighbouring columns, a pair in every 2 * GROUPS.
    x = tl.reshape(x, [rows, columns // (2 * GROUPS), GROUPS, 2])
    return tl.reshape(tl.permute(x, (0, 1, 3, 2)), [rows, columns // GROUPS, GROUPS])


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
    outputs,
    r,
    units,
    HAS_BIAS: tl.constexpr,
    BARE: tl.constexpr,
    HELD: tl.constexpr,
    FULL_N: tl.constexpr,
    FULL_D: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUPS: tl.constexpr,
):
    depth = units * UNIT
    m, n, p = _own_block(samples, outputs, r, BLOCK_M)
    partner, valid = load_partner(index_ptr, m, samples)
    q_ptr += n * r * depth
    k_ptr += partner * r * depth
    v_ptr += m * r
    if HAS_BIAS:
        bias_ptr += m * r
    held = _tile(q_ptr, p, 0, r, depth, BLOCK_D, WIDE, False, FULL_D) if HELD else None
    # Scores are x * unit in base 2, where x is a bare product or already scaled and biased.
    unit = scale * _LOG2E if BARE else _LOG2E
    # The start is finite, so that a row whose keys are all masked so far keeps its sums 0 instead of making them NaN.
    top = tl.full([BLOCK_M, GROUPS], -1e38, tl.float32)
    denominator = tl.zeros([BLOCK_M, GROUPS], tl.float32)
    total = tl.zeros([BLOCK_M, GROUPS], tl.float32)
    for first in range(0, r, BLOCK_N):
        s = first + tl.arange(0, BLOCK_N)
        x = _products(held, q_ptr, p, k_ptr, s, r, depth, HELD, FULL_N, FULL_D, WIDE, PRECISION, BLOCK_D)
        if not BARE:
            x = x * scale + _key_bias(bias_ptr, s, r, HAS_BIAS, FULL_N)[None, :]
        x = _grouped(x, GROUPS)
        value = tl.load(v_ptr + s, mask=(s < r) | FULL_N, other=0.0)
        new_top = tl.maximum(top, tl.max(x, 1))
        # The difference first: sums under an unchanged maximum are kept as they are, not rounded once a block.
        shrink = tl.exp2((top - new_top) * unit)
        weight = tl.exp2(x * unit - (new_top * unit)[:, None, :])
        denominator = denominator * shrink + tl.sum(weight, 1)
        total = total * shrink + tl.sum(weight * _grouped(value[None, :], GROUPS), 1)
        top = new_top
    highest = tl.max(top, 1)
    shrink = tl.exp2((top - highest[:, None]) * unit)
    denominator = tl.sum(denominator * shrink, 1)
    out = tl.where(valid, tl.sum(total * shrink, 1) / denominator, float("nan"))
    lse = tl.where(valid, (highest * unit + tl.log2(denominator)) * _LN2, float("nan"))
    tl.store(out_ptr + m * r + p, out.to(out_ptr.dtype.element_ty), mask=p < r)
    tl.store(lse_ptr + m * r + p, lse, mask=p < r)


@triton.jit
def _own_block(samples, outputs, r, BLOCK: tl.constexpr):
    """Output and own sample of a program, and the positions that it owns. The draws of a sample run together."""
    blocks = tl.cdiv(r, BLOCK)
    place = tl.program_id(0) // blocks
    draws = outputs // samples
    n = place // draws
    m = place % draws * samples + n
    return m.to(tl.int64), n.to(tl.int64), tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


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
    outputs,
    r,
    units,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    FULL_N: tl.constexpr,
    FULL_D: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUPS: tl.constexpr,
):
    depth = units * UNIT
    m, n, s = _own_block(samples, outputs, r, BLOCK_M)
    partner, valid = load_partner(index_ptr, m, samples)
    q_ptr += n * r * depth
    k_ptr += partner * r * depth
    a_ptr += m * r
    lse_ptr += m * r
    held = _tile(k_ptr, s, 0, r, depth, BLOCK_D, WIDE, False, FULL_D) if HELD else None
    if HAS_BIAS:
        bias = tl.load(bias_ptr + m * r + s, mask=s < r, other=0.0) * _LOG2E
    total = tl.zeros([BLOCK_M, GROUPS], tl.float32)
    for first in range(0, r, BLOCK_N):
        p = first + tl.arange(0, BLOCK_N)
        x = _products(held, k_ptr, s, q_ptr, p, r, depth, HELD, FULL_N, FULL_D, WIDE, PRECISION, BLOCK_D)
        # Rows past the last have an infinite log-sum-exp: probability 0.
        lse = tl.load(lse_ptr + p, mask=(p < r) | FULL_N, other=float("inf"))[None, :]
        if HAS_BIAS:
            weight = tl.exp2(tl.fma(lse, -_LOG2E, x * (scale * _LOG2E) + bias[:, None]))
        else:
            weight = tl.exp2(x * (scale * _LOG2E) - lse * _LOG2E)
        a = tl.load(a_ptr + p, mask=(p < r) | FULL_N, other=0.0)[None, :]
        total += tl.sum(_grouped(weight * a, GROUPS), 1)
    total = tl.where(valid, tl.sum(total, 1), float("nan"))
    tl.store(out_ptr + m * r + s, total.to(out_ptr.dtype.element_ty), mask=s < r)


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
    samples,
    r,
    units,
    dq_ptr,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    FULL_N: tl.constexpr,
    FULL_D: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    RESCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    GROUPS: tl.constexpr,
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
    b_ptr += n * r
    if HAS_BIAS:
        bias_ptr += n * r
    lse = tl.load(lse_ptr + n * r + p, mask=p < r, other=float("inf")) * _LOG2E
    c = tl.load(c_ptr + n * r + p, mask=p < r, other=0.0)
    factor = tl.load(a_ptr + n * r + p, mask=p < r, other=0.0) * scale
    if RESCALE:
        # float16 would lose small differences b - c to underflow, or overflow under loss scaling.
        half_scale = _half_scale(_largest(b_ptr, r) + tl.max(tl.abs(c), 0))
        c *= half_scale
        factor = factor / half_scale
    held = _tile(q_ptr, p, 0, r, depth, BLOCK_D, WIDE, False, FULL_D) if HELD else None
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for first in range(0, r, BLOCK_N):
        s = first + tl.arange(0, BLOCK_N)
        k = _tile(k_ptr, s, part, r, depth, BLOCK_OUT, WIDE, FULL_N, FULL_D)
        if HELD and BLOCK_OUT == BLOCK_D:
            x = tl.dot(held, tl.trans(k), input_precision=PRECISION)
        else:
            x = _products(held, q_ptr, p, k_ptr, s, r, depth, HELD, FULL_N, FULL_D, WIDE, PRECISION, BLOCK_D)
        x = x * (scale * _LOG2E) - lse[:, None]
        if HAS_BIAS or not FULL_N:
            x = tl.fma(_key_bias(bias_ptr, s, r, HAS_BIAS, FULL_N)[None, :], _LOG2E, x)
        b = tl.load(b_ptr + s, mask=(s < r) | FULL_N, other=0.0)
        if RESCALE:
            b *= half_scale
        gradient = tl.exp2(x) * (b[None, :] - c[:, None])
        total = tl.dot(gradient.to(k.dtype), k, total, input_precision=PRECISION)
    total = tl.where(valid, total * factor[:, None], float("nan"))
    column = part + tl.arange(0, BLOCK_OUT)
    inside = (p < r)[:, None] & (column < depth)[None, :]
    offset = n * r * depth + _offsets(p, column, depth, WIDE)
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
    FULL_N: tl.constexpr,
    FULL_D: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    RESCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    GROUPS: tl.constexpr,
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
    held = _tile(k_ptr, s, 0, r, depth, BLOCK_D, WIDE, False, FULL_D) if HELD else None
    half_scale = tl.full([], 1.0, tl.float32)
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
        b = tl.load(b_ptr + n * r + s, mask=s < r, other=0.0) * half_scale
        if HAS_BIAS:
            bias = tl.load(bias_ptr + n * r + s, mask=s < r, other=0.0) * _LOG2E
        dbias = tl.zeros([BLOCK_M, GROUPS], tl.float32)
        cols = tl.zeros([BLOCK_M, GROUPS], tl.float32)
        for first in range(0, r, BLOCK_N):
            p = first + tl.arange(0, BLOCK_N)
            inside = (p < r) | FULL_N
            if HELD and BLOCK_OUT == BLOCK_D:
                q = _tile(n_q_ptr, p, 0, r, depth, BLOCK_D, WIDE, FULL_N, FULL_D)
                x = tl.dot(held, tl.trans(q), input_precision=PRECISION)
            else:
                x = _products(held, k_ptr, s, n_q_ptr, p, r, depth, HELD, FULL_N, FULL_D, WIDE, PRECISION, BLOCK_D)
            lse = tl.load(lse_ptr + n * r + p, mask=inside, other=float("inf"))[None, :]
            a = tl.load(a_ptr + n * r + p, mask=inside, other=0.0)[None, :]
            c = tl.load(c_ptr + n * r + p, mask=inside, other=0.0)[None, :] * half_scale
            if HAS_BIAS:
                weight = tl.exp2(tl.fma(lse, -_LOG2E, x * (scale * _LOG2E) + bias[:, None]))
            else:
                weight = tl.exp2(x * (scale * _LOG2E) - lse * _LOG2E)
            # a * (b - c), as one multiply-add a score.
            gradient = weight * (a * b[:, None] - a * c)
            if HAS_COLS:
                cols += tl.sum(_grouped(weight * a, GROUPS), 1)
            if HAS_DBIAS:
                dbias += tl.sum(_grouped(gradient, GROUPS), 1)
            if HAS_DK:
                if not (HELD and BLOCK_OUT == BLOCK_D):
                    q = _tile(n_q_ptr, p, part, r, depth, BLOCK_OUT, WIDE, FULL_N, FULL_D)
                total = tl.dot(gradient.to(q.dtype), q, total, input_precision=PRECISION)
        if part == 0:
            if HAS_DBIAS:
                column_sum = tl.sum(dbias, 1) / half_scale
                tl.store(dbias_ptr + n * r + s, column_sum.to(dbias_ptr.dtype.element_ty), mask=s < r)
            if HAS_COLS:
                column_sum = tl.sum(cols, 1)
                tl.store(cols_ptr + n * r + s, column_sum.to(cols_ptr.dtype.element_ty), mask=s < r)
    if HAS_DK:
        column = part + tl.arange(0, BLOCK_OUT)
        inside = (s < r)[:, None] & (column < depth)[None, :]
        offset = owner * r * depth + _offsets(s, column, depth, WIDE)
        tl.store(dk_ptr + offset, (total * (scale / half_scale)).to(dk_ptr.dtype.element_ty), mask=inside)


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
