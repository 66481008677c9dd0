"""Triton kernels of `mix_binary_cross_entropy`: one read of the logits forward, one read and one write backward."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_common import NUM_WARPS, launch, looked_at, store_rounded
from ..triton_losses import (
    ROWS,
    finish,
    log_of_one_plus,
    pair_of_weights,
    row_gradient,
    rows,
    steps,
    weighted_term,
)

# Targets are rounded as PyTorch rounds them, so that a threshold decides the same.
_EXACT = {"enable_fp_fusion": False}


def mix_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor,
    lam_b: Tensor | None,
    smoothing: float,
    threshold: float,
    sum_classes: bool,
    ignore_index: int,
    reduction: int,
    out: Tensor,
    stats: Tensor | None,
    scale: Tensor,
) -> None:
    """The loss and, with `stats`, what either weight multiplies in each row."""
    cut = rows(logits)
    losses = out if reduction == 0 else logits.new_empty(cut.n, dtype=torch.float32)
    partial = logits.new_empty((3, cut.splits, cut.n), dtype=torch.float32) if cut.splits > 1 else None
    given, options = _given(logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index)
    options["TERMS"] = stats is not None
    sizes = (cut.n, cut.classes, cut.stride, cut.splits, cut.piece)
    args = (logits, *given, partial, losses, stats, *sizes)
    launch(_sum_kernel, cut.n * cut.splits, logits.device, args, SPLIT=cut.splits > 1, **options, **cut.meta, **_EXACT)
    if partial is not None:
        args = (partial, losses, stats, cut.n, cut.splits)
        meta = {"TERMS": options["TERMS"], "BLOCK": ROWS, "num_warps": NUM_WARPS}
        launch(_join_kernel, triton.cdiv(cut.n, ROWS), logits.device, args, **meta)
    finish(losses, target, target_b, ignore_index, reduction, out, scale)


def mix_binary_cross_entropy_grad(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor,
    lam_b: Tensor | None,
    smoothing: float,
    threshold: float,
    sum_classes: bool,
    ignore_index: int,
    scale: Tensor,
    out: Tensor,
) -> None:
    """`out[n, c] = g[n] * (sigmoid(z)[c] - t[c])`."""
    cut = rows(logits)
    given, options = _given(logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index)
    args = (grad, scale, logits, *given, out, cut.n, cut.classes, cut.stride)
    programs = cut.n * triton.cdiv(cut.classes * cut.unit, cut.block)
    launch(_grad_kernel, programs, logits.device, args, **options, PER_ROW=grad.dim(), **cut.meta, **_EXACT)


def _given(logits, target, target_b, lam, lam_b, smoothing, threshold, sum_classes, ignore_index):
    """What both passes are told of the targets, and its constexprs."""
    classes, labels, cut = logits.shape[1], target.dim() == 1, not math.isnan(threshold)
    # Values of a target that is 0 and of one that is 1.
    off = smoothing / classes if labels else 0.5 * smoothing
    on = 1 - smoothing + off
    share = 1.0 if sum_classes else 1 / classes
    limit = float(threshold) if cut else 0.0
    numbers = (float(off), float(on), float(1 - smoothing), limit, float(share), ignore_index)
    meta = {"LABELS": labels, "CUT": cut, "SMOOTH": smoothing != 0, **steps(lam, lam_b)}
    return (target, target_b, lam, lam_b, *numbers), meta


@triton.jit
def _labels(target_ptr, target_b_ptr, ignore_index, row, inside, classes):
    """Labels of rows, whether either counts, and whether both exist if they count."""
    a = tl.load(target_ptr + row, mask=inside, other=0)
    b = tl.load(target_b_ptr + row, mask=inside, other=0)
    has_a, has_b = a != ignore_index, b != ignore_index
    exists = (((a >= 0) & (a < classes)) | (has_a == 0)) & (((b >= 0) & (b < classes)) | (has_b == 0))
    return a, b, has_a, has_b, exists


@triton.jit
def _mixed(own, partner, of_a, of_b, threshold, CUT: tl.constexpr):
    """Mixed target of the two smoothed ones."""
    t = own * of_a + partner * of_b
    if CUT:
        t = tl.where(t > threshold, 1.0, 0.0)
    return t


@triton.jit
def _of_targets(
    target_ptr,
    target_b_ptr,
    row,
    column,
    valid,
    a,
    b,
    has_a,
    has_b,
    own,
    partner,
    off,
    on,
    keep,
    classes,
    LABELS: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """Both smoothed targets of a tile; labels that are left out have weight 0, here they are `off`."""
    if LABELS:
        return tl.where((column == a) & has_a, on, off), tl.where((column == b) & has_b, on, off)
    else:
        of_a = tl.load(target_ptr + row * classes + column, mask=valid, other=0.0).to(tl.float32)
        of_b = tl.load(target_b_ptr + row * classes + column, mask=valid, other=0.0).to(tl.float32)
        of_a, of_b = looked_at(own, of_a), looked_at(partner, of_b)
        if SMOOTH:
            of_a, of_b = of_a * keep + off, of_b * keep + off
        return of_a, of_b


@triton.jit
def _sum_kernel(
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    off,
    on,
    keep,
    threshold,
    share,
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
    LABELS: tl.constexpr,
    CUT: tl.constexpr,
    SMOOTH: tl.constexpr,
    TERMS: tl.constexpr,
    LAM_STEP: tl.constexpr,
    LAM_B_STEP: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    row = (pid // splits).to(tl.int64)
    classes, stride = class_units * UNIT, stride_units * UNIT
    own, partner = pair_of_weights(lam_ptr, lam_b_ptr, row, row < n, LAM_STEP, LAM_B_STEP)
    if LABELS:
        a, b, has_a, has_b, exists = _labels(target_ptr, target_b_ptr, ignore_index, row, row < n, classes)
        own, partner = tl.where(has_a, own, 0.0), tl.where(has_b, partner, 0.0)
    else:
        a, b = row, row
        has_a, has_b, exists = row < n, row < n, row < n
    first = (pid % splits) * piece
    lane = tl.arange(0, BLOCK)
    loss = tl.full((), 0.0, tl.float32)
    term_a, term_b = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for c in range(first, tl.minimum(first + piece, classes), BLOCK):
        column = c + lane
        valid = column < classes
        z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
        of_a, of_b = _of_targets(
            target_ptr, target_b_ptr, row, column, valid, a, b, has_a, has_b, own, partner, off, on, keep, classes,
            LABELS, SMOOTH,
        )  # fmt: skip
        t = tl.where(valid, _mixed(own, partner, of_a, of_b, threshold, CUT), 0.0)
        above = tl.where(z > 0.0, z, 0.0) - weighted_term(t, z)
        loss += tl.sum(above + log_of_one_plus(tl.exp(-tl.abs(z))), 0)
        if TERMS and not CUT:
            term_a -= tl.sum(weighted_term(tl.where(valid & has_a, of_a, 0.0), looked_at(own, z)), 0)
            term_b -= tl.sum(weighted_term(tl.where(valid & has_b, of_b, 0.0), looked_at(partner, z)), 0)
    loss = tl.where(exists, tl.where(has_a | has_b, share * loss, 0.0), float("nan"))
    if SPLIT:
        place = partial_ptr + (pid % splits) * n + row
        step = splits * n
        tl.store(place, loss)
        if TERMS:
            tl.store(place + step, share * term_a)
            tl.store(place + 2 * step, share * term_b)
    else:
        tl.store(losses_ptr + row, loss)
        if TERMS:
            tl.store(stats_ptr + row, share * term_a)
            tl.store(stats_ptr + n + row, share * term_b)


@triton.jit
def _join_kernel(
    partial_ptr,
    losses_ptr,
    stats_ptr,
    n,
    splits,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, step = row < n, splits * n
    loss = tl.zeros([BLOCK], tl.float32)
    term_a, term_b = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for split in range(0, splits):
        place = partial_ptr + split * n + row
        loss += tl.load(place, mask=inside, other=0.0)
        if TERMS:
            term_a += tl.load(place + step, mask=inside, other=0.0)
            term_b += tl.load(place + 2 * step, mask=inside, other=0.0)
    tl.store(losses_ptr + row, loss, mask=inside)
    if TERMS:
        tl.store(stats_ptr + row, term_a, mask=inside)
        tl.store(stats_ptr + n + row, term_b, mask=inside)


@triton.jit
def _grad_kernel(
    grad_ptr,
    scale_ptr,
    logits_ptr,
    target_ptr,
    target_b_ptr,
    lam_ptr,
    lam_b_ptr,
    off,
    on,
    keep,
    threshold,
    share,
    ignore_index,
    out_ptr,
    n,
    class_units,
    stride_units,
    LABELS: tl.constexpr,
    CUT: tl.constexpr,
    SMOOTH: tl.constexpr,
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
    if LABELS:
        a, b, has_a, has_b, exists = _labels(target_ptr, target_b_ptr, ignore_index, row, row < n, classes)
        own, partner = tl.where(has_a, own, 0.0), tl.where(has_b, partner, 0.0)
    else:
        a, b = row, row
        has_a, has_b, exists = row < n, row < n, row < n
    column = (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    valid = column < classes
    z = tl.load(logits_ptr + row * stride + column, mask=valid, other=float("-inf")).to(tl.float32)
    of_a, of_b = _of_targets(
        target_ptr, target_b_ptr, row, column, valid, a, b, has_a, has_b, own, partner, off, on, keep, classes,
        LABELS, SMOOTH,
    )  # fmt: skip
    t = _mixed(own, partner, of_a, of_b, threshold, CUT)
    g = share * row_gradient(grad_ptr, scale_ptr, row, PER_ROW)
    value = tl.where(has_a | has_b, g * (1.0 / (1.0 + tl.exp(-z)) - t), 0.0)
    store_rounded(out_ptr + row * classes + column, tl.where(exists, value, float("nan")), valid)
