"""What the Triton kernels of the losses share: how rows are cut, weights of labels, the reduction of rows.

A program sums up one row, or, where rows are long and few, one piece of it; the pieces are joined by a second kernel.
What is known of a whole row is arithmetic on numbers, which is the same for one row or a block of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .triton_common import NUM_WARPS, block_for, launch

_MANY_ROWS = 256  # rows that keep a GPU busy without being cut
_PIECE = 8192  # classes that are not worth cutting
ROWS = 128  # rows that one program joins the pieces of


class Rows(NamedTuple):
    """How (N, K) logits lie in memory and how they are cut: sizes in units that the compiler knows to divide them."""

    n: int
    classes: int
    stride: int
    unit: int
    splits: int
    piece: int
    block: int

    @property
    def meta(self) -> dict:
        return {"UNIT": self.unit, "BLOCK": self.block, "num_warps": NUM_WARPS if self.block <= 1024 else 2 * NUM_WARPS}


def rows(logits: Tensor) -> Rows:
    n, classes = logits.shape
    block, unit = block_for(classes, largest=2048), math.gcd(classes, logits.stride(0), 16)
    splits = 1 if classes <= _PIECE else max(1, min(triton.cdiv(classes, _PIECE), _MANY_ROWS // max(n, 1)))
    piece = triton.cdiv(triton.cdiv(classes, splits), block) * block
    return Rows(n, classes // unit, logits.stride(0) // unit, unit, triton.cdiv(classes, piece), piece, block)


def steps(*weights: Tensor | None) -> dict[str, int]:
    """Distance of the weights of neighbouring rows, 0 where one serves all."""
    names = ("LAM_STEP", "LAM_B_STEP")
    return {name: 0 if weight is None else weight.dim() for name, weight in zip(names, weights, strict=True)}


def finish(losses: Tensor, target: Tensor, target_b: Tensor | None, ignore_index: int, reduction: int, out, scale):
    """`out` and `scale` from the losses of the rows; dense targets count always."""
    if reduction == 0:
        scale.fill_(1.0)
        return
    meta = {"LABELS": target.dim() == 1, "MEAN": reduction == 1, "BLOCK": 1024, "num_warps": 2 * NUM_WARPS}
    args = (losses, target, target_b, out, scale, losses.shape[0], ignore_index)
    launch(_reduce_kernel, 1, losses.device, args, **meta)


@triton.jit
def _reduce_kernel(
    losses_ptr,
    target_ptr,
    target_b_ptr,
    out_ptr,
    scale_ptr,
    n,
    ignore_index,
    LABELS: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    total = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = row < n
        total += tl.load(losses_ptr + row, mask=inside, other=0.0)
        if LABELS:
            own = tl.load(target_ptr + row, mask=inside, other=ignore_index) != ignore_index
            partner = tl.load(target_b_ptr + row, mask=inside, other=ignore_index) != ignore_index
            counted += (own | partner).to(tl.int32)
        else:
            counted += inside.to(tl.int32)
    loss = tl.sum(total, 0)
    if MEAN:
        count = tl.sum(counted, 0).to(tl.float32)
        tl.store(out_ptr, loss / count)
        tl.store(scale_ptr, 1.0 / count)
    else:
        tl.store(out_ptr, loss)
        tl.store(scale_ptr, 1.0)


@triton.jit
def pair_of_weights(lam_ptr, lam_b_ptr, row, inside, LAM_STEP: tl.constexpr, LAM_B_STEP: tl.constexpr):
    """Weights of the own and of the partner's target; 1 and 0 without a pointer to the first."""
    if lam_ptr is None:
        return 1.0, 0.0
    else:
        own = tl.load(lam_ptr + row * LAM_STEP, mask=inside, other=0.0)
        if lam_b_ptr is None:
            return own, 1.0 - own
        else:
            return own, tl.load(lam_b_ptr + row * LAM_B_STEP, mask=inside, other=0.0)


@triton.jit
def weighted_term(weight, term):
    """Their product; a weight of 0 removes a term that is not finite."""
    return tl.where(weight == 0.0, 0.0, weight * term)


@triton.jit
def log_of_one_plus(u):
    """log(1 + u) for u in [0, 1], to rounding also where u is small."""
    series = u * (1.0 - u * (0.5 - u * (1.0 / 3.0 - u * 0.25)))
    return tl.where(u < 0.04, series, tl.log(1.0 + u))


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return tl.where(x > 0.0, x, tl.where(x != x, x, 0.0)) + log_of_one_plus(tl.exp(-tl.abs(x)))


@triton.jit
def log_add(x, y):
    """log(exp(x) + exp(y)), also of two -inf."""
    most = tl.where(x > y, x, y)
    base = tl.where(most == float("-inf"), 0.0, most)
    return base + tl.log(tl.exp(x - base) + tl.exp(y - base))


@triton.jit
def row_gradient(grad_ptr, scale_ptr, row, PER_ROW: tl.constexpr):
    """Gradient of the result in the loss of one row."""
    return tl.load(grad_ptr + row * PER_ROW) * tl.load(scale_ptr)


@triton.jit
def raise_sums(largest, total, to):
    """A sum of exponentials with reference `largest`, when the reference becomes `to`; both references made finite."""
    base = tl.where(to == float("-inf"), 0.0, to)
    return tl.where(total == 0.0, 0.0, total * tl.exp(largest - base)), base


@triton.jit
def raise_distance(distance, mass, largest, to):
    """A sum of t (largest - z), with targets t of sum `mass`, when the reference becomes `to`."""
    return distance + tl.where(mass == 0.0, 0.0, tl.where(largest == to, 0.0, (to - largest) * mass))
