"""Random grids, and independent ways to cut them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

Grids = tuple[Tensor, Tensor, Tensor]
KINDS = ("ties", "rough ties", "puzzle", "rough")


def random_grids(kind: str, n: int, height: int, width: int, labels: int, seed: int = 0) -> Grids:
    """unary, weight_y, weight_x; "rough" ones have unary costs that are not convex in the label."""
    g = torch.Generator().manual_seed(seed)
    shape = (n, height, width)
    level = torch.arange(labels) / (labels - 1)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=g, dtype=torch.int32)

    edges = (n, height - 1, width), (n, height, width - 1)
    if kind == "ties":
        slopes = integers(-3, 3, *shape, labels - 1).sort(-1).values.cumsum(-1, dtype=torch.int32)
        unary, weights = torch.nn.functional.pad(slopes, (1, 0)), [integers(0, 2, *edge) for edge in edges]
    elif kind == "rough ties":
        unary, weights = integers(-3, 3, *shape, labels), [integers(0, 2, *edge) for edge in edges]
    elif kind == "puzzle":  # two saliency maps that vary smoothly, a prior, weights about half as large as the maps
        coarse = torch.rand(2, n, 1, -(-height // 3), -(-width // 3), generator=g)
        maps = [torch.nn.functional.interpolate(c, (height, width), mode="bilinear")[:, 0] for c in coarse]
        own, other = (1000 * m**2 / m.square().mean((1, 2), keepdim=True) for m in maps)
        prior = 200 * (2 * level - 1) ** 2 + 400 * torch.rand(n, 1, 1, 1, generator=g) * level
        unary = ((1 - level) * other.unsqueeze(-1) + level * own.unsqueeze(-1) + prior).int()
        weights = [integers(20 * height, 120 * height, *edge) for edge in edges]
    else:
        unary, weights = integers(-2000, 2000, *shape, labels), [integers(0, 900, *edge) for edge in edges]
    return unary, *weights


def energy_of(labels: Tensor, unary: Tensor, weight_y: Tensor, weight_x: Tensor) -> Tensor:
    """(N,) int64, by the definition."""
    label = labels.long()
    own = unary.long().gather(3, label.unsqueeze(3)).sum((1, 2, 3))
    pairs = (weight_y * label.diff(dim=1) ** 2).sum((1, 2)) + (weight_x * label.diff(dim=2) ** 2).sum((1, 2))
    return (unary.shape[3] - 1) ** 2 * own + pairs


def every_labelling(height: int, width: int, labels: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(labels), repeat=height * width))).view(-1, height, width)


def gco_terms(unary: Tensor) -> tuple[int, tuple[int, ...]]:
    """What the published call multiplies unary costs by, and its label distances, without the common divisor."""
    return {2: (1, (0, 1)), 3: (4, (0, 1, 4)), 4: (100, (0, 11, 44, 100))}[unary.shape[-1]]


def gco_swap(unary: Tensor, weight_y: Tensor, weight_x: Tensor) -> Tensor:
    """Labels by gco-wrapper."""
    import gco

    n, height, width, labels = unary.shape
    factor, distance = gco_terms(unary)
    table = np.array([[distance[abs(a - b)] for b in range(labels)] for a in range(labels)], dtype=np.int32)
    found = [
        gco.cut_grid_graph(factor * u, table, y, x, algorithm="swap")
        for u, y, x in zip(*(t.numpy() for t in (unary, weight_y, weight_x)), strict=True)
    ]
    return torch.from_numpy(np.stack(found)).view(n, height, width)


def least_energy(unary: Tensor, weight_y: Tensor, weight_x: Tensor) -> list[int]:
    """Of every grid, by scipy's maximum flow in a graph of chains. A site is a chain from source to sink with one arc a
    label, as wide as the label costs; arcs between chains are cut as often as
    `d^2 = |d| + 2 max(|d| - 1, 0) + 2 max(|d| - 2, 0) + ..` says."""
    return [_least_energy(*(t.tolist() for t in grid)) for grid in zip(unary, weight_y, weight_x, strict=True)]


def _least_energy(unary: list, down: list, right: list) -> int:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    height, width, labels = len(unary), len(unary[0]), len(unary[0][0])
    steps, forever = labels - 1, 1 << 30
    source, sink = height * width * steps, height * width * steps + 1
    arcs, below = [], 0
    for i, costs in enumerate(site for row in unary for site in row):
        chain = [source, *range(i * steps, (i + 1) * steps), sink]
        least = min(costs)
        below += steps**2 * least
        arcs += [(u, v, steps**2 * (c - least)) for u, v, c in zip(chain, chain[1:], costs, strict=False)]
        arcs += [(v, u, forever) for u, v in itertools.pairwise(chain[1:-1])]
    edges = [(y * width + x, (y + 1) * width + x, w) for y, row in enumerate(down) for x, w in enumerate(row)]
    edges += [(y * width + x, y * width + x + 1, w) for y, row in enumerate(right) for x, w in enumerate(row)]
    for u, v, w in edges:
        for a, b in itertools.product(range(steps), repeat=2):
            if a >= b:
                share = w if a == b else 2 * w
                arcs += [(u * steps + a, v * steps + b, share), (v * steps + a, u * steps + b, share)]
    tail, head, room = zip(*arcs, strict=True)
    graph = coo_array((np.array(room, np.int32), (tail, head)), shape=(sink + 1, sink + 1)).tocsr()
    return below + int(maximum_flow(graph, source, sink).flow_value)
