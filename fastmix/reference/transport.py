from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ENTRIES = 1 << 22  # of the cost matrices in memory at a time


def transport(visible: Tensor, saliency: Tensor, eps: float, method: str = "reference") -> Tensor:
    """Reference of `fastmix.ops.transport`: the released rounds on whole cost matrices, or the Hungarian method."""
    s = saliency.float()
    s = torch.where(s.isfinite() & (s > 0), s, 0.0).flatten(1)
    z = visible.ne(0).flatten(1)
    plan = _released if method == "reference" else _optimal
    samples = max(1, _ENTRIES // max(1, s.shape[1] ** 2))
    parts = [plan(*part, saliency.shape[1:], eps) for part in zip(z.split(samples), s.split(samples), strict=True)]
    return torch.cat(parts).to(torch.int32)


def _distances(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n): squared distances between the blocks of a grid, over the square of the longest step along a side."""
    height, width = size
    y, x = (torch.arange(length, device=device) for length in (height, width))
    y, x = y.repeat_interleave(width), x.repeat(height)
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return squares.to(dtype) / max(1, (max(size) - 1) ** 2)


def _released(z: Tensor, s: Tensor, size: torch.Size, eps: float) -> Tensor:
    """Exactly max(size) rounds: rows propose, columns choose, a proposal lost costs 1 more from then on."""
    cost = eps * _distances(size, torch.float32, s.device) - s.unsqueeze(2) * z.float().unsqueeze(
        1
    )  # [N, block, target]
    for _ in range(max(size)):
        proposed = torch.zeros_like(cost).scatter_(2, cost.argmin(2, keepdim=True), 1)
        best = (proposed * cost).argmin(1, keepdim=True)
        won = torch.zeros_like(cost).scatter_(1, best, 1) * proposed
        cost = cost + (proposed - won)
    source = torch.where(z & won.any(1), won.argmax(1), -1)
    return _filled(z, source)


def _filled(z: Tensor, source: Tensor) -> Tensor:
    """Visible targets without a block show their own, or the one at the end of the chain that their own has started."""
    filled = source.clone()
    for n, j in (z & (source < 0)).nonzero().tolist():
        shown_at = {block: target for target, block in enumerate(source[n].tolist()) if block >= 0}
        block = j
        while block in shown_at:
            block = shown_at[block]
        filled[n, j] = block
    return filled


def _optimal(z: Tensor, s: Tensor, size: torch.Size, eps: float) -> Tensor:
    moves = eps * _distances(size, torch.float64, torch.device("cpu")).numpy()
    plans = []
    for visible, saliency in zip(z.cpu().numpy(), s.double().cpu().numpy(), strict=True):
        plan = np.full(len(visible), -1)
        plan[visible] = _hungarian(moves[visible] - saliency)
        plans.append(torch.from_numpy(plan))
    return torch.stack(plans).to(z.device) if plans else z.long()


def _hungarian(cost: np.ndarray) -> np.ndarray:
    """The column of each row in a cheapest assignment of all rows, of which there are at most as many as columns.

    Kuhn's method with potentials: rows join one by one, each along a shortest augmenting path.
    """
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_at = np.full(columns, -1)
    for new in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, reached, column = new, 0.0, -1
        while row >= 0:
            through = reached + cost[row] - row_price[row] - column_price
            shorter = ~done & (through < distance)
            distance[shorter], before[shorter] = through[shorter], column
            column = int(np.where(done, np.inf, distance).argmin())
            reached, row = distance[column], row_at[column]
            done[column] = True
        inner = done & (row_at >= 0)
        row_price[new] += reached
        row_price[row_at[inner]] += reached - distance[inner]
        column_price[inner] -= reached - distance[inner]
        while column >= 0:
            previous = before[column]
            row_at[column] = new if previous < 0 else row_at[previous]
            column = previous
    found = np.empty(rows, dtype=np.int64)
    found[row_at[row_at >= 0]] = np.flatnonzero(row_at >= 0)
    return found
