"""Triton kernels of `mix_cross_entropy`: an online log-sum-exp forward, one read and one write backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import NUM_WARPS, launch, looked_at, store_rounded
from ..triton_losses import (
    ROWS,
    finish,
    log_add,
    pair_of_weights,
    raise_distance,
    raise_sums,
    row_gradient,
    rows,
    softplus,
    steps,
    weighted_term,
)


def mix_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor,
    lam_b: Tensor | None,
    smoothing: float,
    decouple: float,
    ignore_index: int,
    reduction: int,
    out: Tensor,
    stats: Tensor,
    scale: Tensor,
) -> None:
    """The loss, and of each row the reference of its exponentials, their sum, and what either weight multiplies."""
    cut = rows(logits)
    losses = out if reduction == 0 else torch.empty_like(stats[0])
    options = {"SMOOTH": smoothing != 0, "DECOUPLE": decouple != 0, **steps(lam, lam_b)}
    labels = (target, target_b, lam, lam_b, float(smoothing), float(decouple), ignore_index)
    partial = logits.new_empty((3, cut.splits, cut.n), dtype=torch.float32) if cut.splits > 1 else None
    args = (logits, *labels, partial, losses, stats, cut.n, cut.classes, cut.stride, cut.splits, cut.piece)
    launch(_sum_kernel, cut.n * cut.splits, logits.device, args, SPLIT=cut.splits > 1, **options, **cut.meta)
    if partial is not None:
        meta = {"UNIT": cut.unit, "BLOCK": ROWS, "num_warps": NUM_WARPS}
        launch(_join_kernel, triton.cdiv(cut.n, ROWS), logits.device, args, **options, **meta)
    finish(losses, target, target_b, ignore_index, reduction, out, scale)


def mix_cross_entropy_grad(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor,
    lam_b: Tensor | None,
    smoothing: float,
    decouple: float,
    ignore_index: int,
    stats: Tensor,
    scale: Tensor,
    out: Tensor,
) -> None:
    """`out[n, c] = g[n] * (sum of weights * softmax(z)[c] - target[c])`, and the decoupled part."""
    cut = rows(logits)
    labels = (target, target_b, lam, lam_b, float(smoothing), float(decouple), ignore_index)
    args = (grad, scale, logits, *labels, stats, out, cut.n, cut.classes, cut.stride)
    options = {"SMOOTH": smoothing != 0, "DECOUPLE": decouple != 0, **steps(lam, lam_b), "PER_ROW": grad.dim()}
    programs = cut.n * triton.cdiv(cut.classes * cut.unit, cut.block)
    launch(_grad_kernel, programs, logits.device, args, **options, **cut.meta)


@triton.jit
def _labels(
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    ignore_index,
    row,
    inside,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
):
    """Labels and weights of rows, whether either counts, and whether a row is really mixed."""
    a = tl.load(target_ptr + row, mask=inside, other=0)
    b = tl.load(target_b_ptr + row, mask=inside, other=0)
    own, partner = pair_of_weights(lam_ptr, lam_b_ptr, row, inside, LAM_STEP, LAM_B_STEP)
    has_a, has_b = a != ignore_index, b != ignore_index
    own, partner = tl.where(has_a, own, 0.0), tl.where(has_b, partner, 0.0)
    apart = (a != b) & (own != 0.0) & (partner != 0.0)
    return a, b, own, partner, has_a, has_b, apart


@triton.jit
def _finish(
    logits_ptr,
    losses_ptr,
    stats_ptr,
    row,
    inside,
    largest,
    total,
    distance,
    a,
    b,
    own,
    partner,
    has_a,
    has_b,
    apart,
    smoothing,
    decouple,
    n,
    classes,
    stride,
    SMOOTH: tl.constexpr,
    DECOUPLE: tl.constexpr,
):
    """Loss and statistics of rows from their sums; NaN where a label does not exist."""
    base = tl.where(largest == float("-inf"), 0.0, largest)
    in_a, in_b = (a >= 0) & (a < classes), (b >= 0) & (b < classes)
    place = logits_ptr + row * stride
    z_a = tl.load(place + a, mask=inside & has_a & in_a, other=0.0).to(tl.float32)
    z_b = tl.load(place + b, mask=inside & has_b & in_b, other=0.0).to(tl.float32)
    # Relative to base from here on.
    z_a, z_b, lse = z_a - base, z_b - base, tl.log(total)
    term_a, term_b = lse - z_a, lse - z_b
    if DECOUPLE:
        rest = lse
        without_a, without_b = log_add(rest, z_b), log_add(rest, z_a)
        lse = tl.where(apart, log_add(without_b, z_b), lse)
        term_a = tl.where(apart, softplus(without_a - z_a), term_a)
        term_b = tl.where(apart, softplus(without_b - z_b), term_b)
    if SMOOTH:
        even = smoothing * (distance / classes + lse)
        term_a, term_b = (1.0 - smoothing) * term_a + even, (1.0 - smoothing) * term_b + even
    term_a = tl.where(has_a, looked_at(own, term_a), 0.0)
    term_b = tl.where(has_b, looked_at(partner, term_b), 0.0)
    loss = weighted_term(own, term_a) + weighted_term(partner, term_b)
    if DECOUPLE:
        loss += tl.where(apart, decouple * (softplus(rest - z_a) + softplus(rest - z_b)), 0.0)
    exists = (in_a | (has_a == 0)) & (in_b | (has_b == 0))
    nan = float("nan")
    tl.store(losses_ptr + row, tl.where(exists, loss, nan), mask=inside)
    tl.store(stats_ptr + row, base, mask=inside)
    tl.store(stats_ptr + n + row, tl.where(exists, total, nan), mask=inside)
    tl.store(stats_ptr + 2 * n + row, tl.where(exists, term_a, nan), mask=inside)
    tl.store(stats_ptr + 3 * n + row, tl.where(exists, term_b, nan), mask=inside)


@triton.jit
def _sum_kernel(
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    smoothing,
    decouple,
    ignore_index,
    partial_ptr,
    losses_ptr,
    stats_ptr,
    n,
    class_units,
    stride_units,
    splits,
    piece,
    SPLIT: tl.constexpr,
    SMOOTH: tl.constexpr,
    DECOUPLE: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid // splits).to(tl.int64)
    classes, stride = class_units * UNIT, stride_units * UNIT
    inside = row < n
    a, b, own, partner, has_a, has_b, apart = _labels(
        target_ptr, target_b_ptr, lam_ptr, lam_b_ptr, ignore_index, row, inside, LAM_STEP, LAM_B_STEP
    )
    first = (pid % splits) * piece
    lane = tl.arange(0, BLOCK)
    largest, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    distance, seen = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for c in range(first, tl.minimum(first + piece, classes), BLOCK):
        column = c + lane
        valid = column < classes
        z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
        kept = z
        if DECOUPLE:
            kept = tl.where(apart & ((column == a) | (column == b)), float("-inf"), z)
        most = tl.maximum(largest, tl.max(kept, 0))
        total, base = raise_sums(largest, total, most)
        total += tl.sum(tl.exp(kept - base), 0)
        if SMOOTH:
            distance = raise_distance(distance, seen, largest, most)
            distance += tl.sum(tl.where(valid, base - z, 0.0), 0)
            seen += tl.sum(valid.to(tl.float32), 0)
        largest = most
    if SPLIT:
        place = partial_ptr + (pid % splits) * n + row
        tl.store(place, largest)
        tl.store(place + splits * n, total)
        tl.store(place + 2 * splits * n, distance)
    else:
        _finish(
            logits_ptr, losses_ptr, stats_ptr, row, inside, largest, total, distance, a, b, own, partner, has_a, has_b,
            apart, smoothing, decouple, n, classes, stride, SMOOTH, DECOUPLE,
        )  # fmt: skip


@triton.jit
def _join_kernel(
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    smoothing,
    decouple,
    ignore_index,
    partial_ptr,
    losses_ptr,
    stats_ptr,
    n,
    class_units,
    stride_units,
    splits,
    piece,
    SMOOTH: tl.constexpr,
    DECOUPLE: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    classes, stride = class_units * UNIT, stride_units * UNIT
    inside = row < n
    a, b, own, partner, has_a, has_b, apart = _labels(
        target_ptr, target_b_ptr, lam_ptr, lam_b_ptr, ignore_index, row, inside, LAM_STEP, LAM_B_STEP
    )
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in range(0, splits):
        largest = tl.maximum(largest, tl.load(partial_ptr + split * n + row, mask=inside, other=0.0))
    total, distance = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for split in range(0, splits):
        place = partial_ptr + split * n + row
        peak = tl.load(place, mask=inside, other=0.0)
        part = tl.load(place + splits * n, mask=inside, other=1.0)
        part, _ = raise_sums(peak, part, largest)
        total += part
        if SMOOTH:
            width = tl.minimum(classes - split * piece, piece).to(tl.float32)
            far = tl.load(place + 2 * splits * n, mask=inside, other=0.0)
            distance += raise_distance(far, width, peak, largest)
    _finish(
        logits_ptr, losses_ptr, stats_ptr, row, inside, largest, total, distance, a, b, own, partner, has_a, has_b,
        apart, smoothing, decouple, n, classes, stride, SMOOTH, DECOUPLE,
    )  # fmt: skip


@triton.jit
def _grad_kernel(
    grad_ptr,
    scale_ptr,
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    smoothing,
    decouple,
    ignore_index,
    stats_ptr,
    out_ptr,
    n,
    class_units,
    stride_units,
    SMOOTH: tl.constexpr,
    DECOUPLE: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    PER_ROW: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    classes, stride = class_units * UNIT, stride_units * UNIT
    tiles = (classes + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64)
    inside = row < n
    a, b, own, partner, has_a, has_b, apart = _labels(
        target_ptr, target_b_ptr, lam_ptr, lam_b_ptr, ignore_index, row, inside, LAM_STEP, LAM_B_STEP
    )
    g = row_gradient(grad_ptr, scale_ptr, row, PER_ROW)
    base, total = tl.load(stats_ptr + row), tl.load(stats_ptr + n + row)
    mass = own + partner
    factor = g * mass / total
    hard_a, hard_b = g * own, g * partner
    column = (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    valid = column < classes
    z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
    exps = tl.exp(z - base)
    is_a, is_b = (column == a) & has_a, (column == b) & has_b
    if SMOOTH:
        hard_a, hard_b = (1.0 - smoothing) * hard_a, (1.0 - smoothing) * hard_b
    value = factor * exps
    if DECOUPLE:
        z_a = tl.load(logits_ptr + row * stride + a, mask=apart & (a >= 0) & (a < classes), other=0.0).to(tl.float32)
        z_b = tl.load(logits_ptr + row * stride + b, mask=apart & (b >= 0) & (b < classes), other=0.0).to(tl.float32)
        z_a, z_b, rest = z_a - base, z_b - base, tl.log(total)  # relative to base
        no_b, no_a = log_add(rest, z_a), log_add(rest, z_b)
        lse = log_add(no_b, z_b)
        share = mass * tl.exp(-lse) + decouple * (tl.exp(-no_b) + tl.exp(-no_a))
        others = tl.where(total == 0.0, 0.0, g * share) * exps
        at_a = g * (mass * tl.exp(-softplus(no_a - z_a)) + decouple * (tl.exp(-softplus(rest - z_a)) - 1.0))
        at_b = g * (mass * tl.exp(-softplus(no_b - z_b)) + decouple * (tl.exp(-softplus(rest - z_b)) - 1.0))
        value = tl.where(apart, tl.where(is_a, at_a, tl.where(is_b, at_b, others)), value)
    if SMOOTH:
        value -= g * mass * smoothing / classes
    value -= tl.where(is_a, hard_a, 0.0) + tl.where(is_b, hard_b, 0.0)
    store_rounded(out_ptr + row * classes + column, tl.where((own != 0.0) | (partner != 0.0), value, 0.0), valid)
