from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select

OP = "grid_cut"
SOLVERS = ("exact", "swap")
MAX_SIDE = 32


def grid_cut(
    unary: Tensor,
    weight_y: Tensor,
    weight_x: Tensor,
    solver: str = "exact",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels of the least energy for a batch of small grids, by minimum cuts.

    `energy = (L-1)^2 sum_i unary[i, l_i] + sum_(u,v) weight[u, v] (l_u - l_v)^2` over the sites i and the pairs (u, v)
    of vertical and horizontal neighbours: the mask of PuzzleMix (Kim et al., 2020), whose label l shows the own image
    with weight 1 - l / (L-1), scaled to stay integer.

    Args:
        unary: (N, H, W, L) int32, any values; H and W in 1..32, L in 2..4.
        weight_y: (N, H-1, W) int32, weights of the pairs (y, x), (y+1, x).
        weight_x: (N, H, W-1) int32, weights of the pairs (y, x), (y, x+1). Weights count as limited to [0, 2^20], in
            the energy, too: with negative ones (`puzzle_energy` with gamma >= 1) the problem is no minimum cut.
        solver: "exact" for the global minimum; where several labellings reach it, the one that is smallest at every
            site. "swap" for the labels at which alpha-beta swaps (Boykov, Veksler and Zabih, 2001) end that start
            from label 0 and take pairs, label distances and ties as gco-v3.0 does: those of the published code
            wherever its 32-bit integers did not overflow. The same for L = 2; often, not always, the minimum for more.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`. The reference is
            plain Python, some hundredths of a second for a grid of 16 x 16.

    Returns:
        labels (N, H, W) int32, energy (N,) int64 of these labels. Both are the same on every backend, and nothing
        overflows. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; an unknown solver.

    Example:
        >>> labels, energy = fastmix.ops.grid_cut(unary, weight_y, weight_x)
        >>> mask = 1 - labels / (unary.shape[-1] - 1)
    """
    swap = bool(_checks.one_of(OP, "solver", solver, SOLVERS))
    _check_costs(unary, weight_y, weight_x)
    chosen = select(OP, unary, backend)
    return _grid_cut(unary.contiguous(), weight_y.contiguous(), weight_x.contiguous(), swap, chosen)


def _check_costs(unary: Tensor, weight_y: Tensor, weight_x: Tensor) -> None:
    for name, value in (("unary", unary), ("weight_y", weight_y), ("weight_x", weight_x)):
        if not isinstance(value, Tensor) or value.dtype is not torch.int32:
            raise TypeError(f"fastmix.{OP}: {name} must be an int32 tensor, got {_checks.describe(value)}")
        _checks.strided(OP, name, value)
    if unary.dim() != 4 or not all(1 <= side <= MAX_SIDE for side in unary.shape[1:3]) or not 2 <= unary.shape[3] <= 4:
        raise ValueError(
            f"fastmix.{OP}: unary must have shape (N, H, W, L) with H and W in 1..{MAX_SIDE} and L in 2..4, "
            f"got {_checks.describe(unary)}"
        )
    n, height, width, _ = unary.shape
    for name, value, shape in (
        ("weight_y", weight_y, (n, height - 1, width)),
        ("weight_x", weight_x, (n, height, width - 1)),
    ):
        if value.shape != shape or value.device != unary.device:
            raise ValueError(
                f"fastmix.{OP}: {name} must have shape {shape} on {unary.device}, got {_checks.describe(value)}"
            )


def _fake(unary, weight_y, weight_x, swap, backend):
    return unary.new_empty(unary.shape[:3]), unary.new_empty(unary.shape[0], dtype=torch.int64)


@raw_op("grid_cut(Tensor unary, Tensor weight_y, Tensor weight_x, bool swap, str backend) -> (Tensor, Tensor)", _fake)
def _grid_cut(unary, weight_y, weight_x, swap, backend):
    if backend == "reference":
        return reference.grid_cut(unary, weight_y, weight_x, SOLVERS[swap])
    labels, energy = _fake(unary, weight_y, weight_x, swap, backend)
    kernels(OP, backend).grid_cut(unary, weight_y, weight_x, swap, labels, energy)
    return labels, energy
