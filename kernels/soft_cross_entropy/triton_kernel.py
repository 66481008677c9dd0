"""Triton kernels of `soft_cross_entropy`: logits and dense targets are read once forward and once backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import NUM_WARPS, launch, looked_at, store_rounded
from ..triton_losses import (
    ROWS,
    finish,
    pair_of_weights,
    raise_distance,
    raise_sums,
    row_gradient,
    rows,
    steps,
    weighted_term,
)


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_b: Tensor | None,
    smoothing: float,
    reduction: int,
    out: Tensor,
    stats: Tensor,
    scale: Tensor,
) -> None:
    """The loss, and of each row the reference of its exponentials, their sum, what either weight multiplies, and the
    sum of the targets."""
    cut = rows(logits)
    losses = out if reduction == 0 else torch.empty_like(stats[0])
    options = {"SMOOTH": smoothing != 0, "PAIR": target_b is not None, **steps(lam, lam_b)}
    # Sums that are split: the largest logit, the exponentials, distance and mass of either target and of all classes.
    partial = logits.new_empty((8, cut.splits, cut.n), dtype=torch.float32) if cut.splits > 1 else None
    sizes = (cut.n, cut.classes, cut.stride, cut.splits, cut.piece)
    args = (logits, target, target_b, lam, lam_b, float(smoothing), partial, losses, stats, *sizes)
    # Three tiles are in flight: with fewer values a thread they fit into registers.
    meta = cut.meta | {"num_warps": 2 * NUM_WARPS}
    launch(_sum_kernel, cut.n * cut.splits, logits.device, args, SPLIT=cut.splits > 1, **options, **meta)
    if partial is not None:
        args = (lam, lam_b, float(smoothing), partial, losses, stats, cut.n, cut.classes, cut.splits)
        meta = {"UNIT": cut.unit, "BLOCK": ROWS, "num_warps": NUM_WARPS}
        launch(_join_kernel, triton.cdiv(cut.n, ROWS), logits.device, args, **options, **meta)
    finish(losses, target, target_b, 0, reduction, out, scale)


def soft_cross_entropy_grad(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    target_b: Tensor | None,
    lam: Tensor | None,
    lam_b: Tensor | None,
    smoothing: float,
    stats: Tensor,
    scale: Tensor,
    out: Tensor,
) -> None:
    """`out[n, c] = g[n] * (sum of the mixed target * softmax(z)[c] - target[c])`."""
    cut = rows(logits)
    args = (grad, scale, logits, target, target_b, lam, lam_b, float(smoothing), stats, out)
    options = {"SMOOTH": smoothing != 0, "PAIR": target_b is not None, **steps(lam, lam_b), "PER_ROW": grad.dim()}
    programs = cut.n * triton.cdiv(cut.classes * cut.unit, cut.block)
    launch(_grad_kernel, programs, logits.device, (*args, cut.n, cut.classes, cut.stride), **options, **cut.meta)


@triton.jit
def _add_target(target_ptr, offset, valid, away, distance, mass):
    """Distance and mass of one more tile of a target; a target of 0 adds nothing."""
    t = tl.load(target_ptr + offset, mask=valid, other=0.0).to(tl.float32)
    return distance + tl.sum(tl.where(t == 0.0, 0.0, t * away), 0), mass + tl.sum(t, 0)


@triton.jit
def _finish(
    losses_ptr,
    stats_ptr,
    row,
    inside,
    largest,
    total,
    own,
    partner,
    far_a,
    mass_a,
    far_b,
    mass_b,
    far,
    smoothing,
    n,
    classes,
    SMOOTH: tl.constexpr,
):
    """Loss and statistics of rows from their sums."""
    base = tl.where(largest == float("-inf"), 0.0, largest)
    lse = tl.log(total)  # beyond base
    term_a = far_a + tl.where(mass_a == 0.0, 0.0, mass_a * lse)
    term_b = far_b + tl.where(mass_b == 0.0, 0.0, mass_b * lse)
    if SMOOTH:
        even = smoothing * (far / classes + lse)
        term_a, term_b = (1.0 - smoothing) * term_a + even, (1.0 - smoothing) * term_b + even
    term_a, term_b = looked_at(own, term_a), looked_at(partner, term_b)
    tl.store(losses_ptr + row, weighted_term(own, term_a) + weighted_term(partner, term_b), mask=inside)
    tl.store(stats_ptr + row, base, mask=inside)
    tl.store(stats_ptr + n + row, total, mask=inside)
    tl.store(stats_ptr + 2 * n + row, term_a, mask=inside)
    tl.store(stats_ptr + 3 * n + row, term_b, mask=inside)
    tl.store(stats_ptr + 4 * n + row, weighted_term(own, mass_a) + weighted_term(partner, mass_b), mask=inside)


@triton.jit
def _sum_kernel(
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    smoothing,
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
    PAIR: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid // splits).to(tl.int64)
    classes, stride = class_units * UNIT, stride_units * UNIT
    first = (pid % splits) * piece
    lane = tl.arange(0, BLOCK)
    largest, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    far_a, mass_a = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    far_b, mass_b = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    far, seen = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for c in range(first, tl.minimum(first + piece, classes), BLOCK):
        column = c + lane
        valid = column < classes
        z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
        most = tl.maximum(largest, tl.max(z, 0))
        total, base = raise_sums(largest, total, most)
        total += tl.sum(tl.exp(z - base), 0)
        away = tl.where(valid, base - z, 0.0)
        far_a = raise_distance(far_a, mass_a, largest, most)
        far_a, mass_a = _add_target(target_ptr, row * classes + column, valid, away, far_a, mass_a)
        if PAIR:
            far_b = raise_distance(far_b, mass_b, largest, most)
            far_b, mass_b = _add_target(target_b_ptr, row * classes + column, valid, away, far_b, mass_b)
        if SMOOTH:
            far = raise_distance(far, seen, largest, most) + tl.sum(away, 0)
            seen += tl.sum(valid.to(tl.float32), 0)
        largest = most
    if SPLIT:
        place = partial_ptr + (pid % splits) * n + row
        step = splits * n
        tl.store(place, largest)
        tl.store(place + step, total)
        tl.store(place + 2 * step, far_a)
        tl.store(place + 3 * step, mass_a)
        tl.store(place + 4 * step, far_b)
        tl.store(place + 5 * step, mass_b)
        tl.store(place + 6 * step, far)
        tl.store(place + 7 * step, seen)
    else:
        own, partner = pair_of_weights(lam_ptr, lam_b_ptr, row, row < n, LAM_STEP, LAM_B_STEP)
        _finish(
            losses_ptr, stats_ptr, row, row < n, largest, total, own, partner, far_a, mass_a, far_b, mass_b, far,
            smoothing, n, classes, SMOOTH,
        )  # fmt: skip


@triton.jit
def _join_distance(place, step, field, inside, peak, largest):
    far = tl.load(place + field * step, mask=inside, other=0.0)
    mass = tl.load(place + (field + 1) * step, mask=inside, other=0.0)
    return raise_distance(far, mass, peak, largest), mass


@triton.jit
def _join_kernel(
    lam_ptr,
    lam_b_ptr,
    smoothing,
    partial_ptr,
    losses_ptr,
    stats_ptr,
    n,
    class_units,
    splits,
    SMOOTH: tl.constexpr,
    PAIR: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, step = row < n, splits * n
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in range(0, splits):
        largest = tl.maximum(largest, tl.load(partial_ptr + split * n + row, mask=inside, other=0.0))
    total = tl.zeros([BLOCK], tl.float32)
    far_a, mass_a = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    far_b, mass_b = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    far = tl.zeros([BLOCK], tl.float32)
    for split in range(0, splits):
        place = partial_ptr + split * n + row
        peak = tl.load(place, mask=inside, other=0.0)
        part, _ = raise_sums(peak, tl.load(place + step, mask=inside, other=1.0), largest)
        total += part
        more, mass = _join_distance(place, step, 2, inside, peak, largest)
        far_a += more
        mass_a += mass
        if PAIR:
            more, mass = _join_distance(place, step, 4, inside, peak, largest)
            far_b += more
            mass_b += mass
        if SMOOTH:
            more, mass = _join_distance(place, step, 6, inside, peak, largest)
            far += more
    own, partner = pair_of_weights(lam_ptr, lam_b_ptr, row, inside, LAM_STEP, LAM_B_STEP)
    _finish(
        losses_ptr, stats_ptr, row, inside, largest, total, own, partner, far_a, mass_a, far_b, mass_b, far, smoothing,
        n, class_units * UNIT, SMOOTH,
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
    stats_ptr,
    out_ptr,
    n,
    class_units,
    stride_units,
    SMOOTH: tl.constexpr,
    PAIR: tl.constexpr,
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
    own, partner = pair_of_weights(lam_ptr, lam_b_ptr, row, row < n, LAM_STEP, LAM_B_STEP)
    g = row_gradient(grad_ptr, scale_ptr, row, PER_ROW)
    base, total, mass = tl.load(stats_ptr + row), tl.load(stats_ptr + n + row), tl.load(stats_ptr + 4 * n + row)
    column = (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    valid = column < classes
    z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
    soft = weighted_term(own, tl.load(target_ptr + row * classes + column, mask=valid, other=0.0).to(tl.float32))
    if PAIR:
        other = tl.load(target_b_ptr + row * classes + column, mask=valid, other=0.0).to(tl.float32)
        soft += weighted_term(partner, other)
    if SMOOTH:
        even = smoothing * (own + partner)
        mass = (1.0 - smoothing) * mass + even
        soft = (1.0 - smoothing) * soft + even / classes
    value = g * (mass / total * tl.exp(z - base) - soft)
    if PAIR:
        value = tl.where((own != 0.0) | (partner != 0.0), value, 0.0)
    store_rounded(out_ptr + row * classes + column, value, valid)
