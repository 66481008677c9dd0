from __future__ import annotations

import math
from collections import deque
from itertools import product

import torch
from torch import Tensor

_MAX_WEIGHT = 1 << 20
_GCO_COSTS = {2: (1, (0, 1)), 3: (4, (0, 1, 4)), 4: (100, (0, 11, 44, 100))}
"""By number of labels: factor of the unary costs, and distances of labels 0, 1, .. apart, without a common divisor."""


def grid_cut(unary: Tensor, weight_y: Tensor, weight_x: Tensor, solver: str = "exact") -> tuple[Tensor, Tensor]:
    """Reference of `fastmix.ops.grid_cut`: one maximum flow in Ishikawa's graph a sample, or one a swap."""
    height, width, n_labels = unary.shape[1:]
    solve = _exact if solver == "exact" else _swap
    labels, energies = [], []
    for costs, down, right in zip(unary.tolist(), weight_y.tolist(), weight_x.tolist(), strict=True):
        sites = [site for row in costs for site in row]
        edges = _edges(down, right, width)
        found = solve(sites, edges, n_labels)
        labels.append(found)
        energies.append(_energy(found, sites, edges, (n_labels - 1) ** 2, [k * k for k in range(n_labels)]))
    return (
        torch.tensor(labels, dtype=torch.int32, device=unary.device).view(-1, height, width),
        torch.tensor(energies, dtype=torch.int64, device=unary.device),
    )


def _edges(down: list, right: list, width: int) -> list[tuple[int, int, int]]:
    """(site, neighbour, weight) of all edges."""
    found = [(y * width + x, (y + 1) * width + x, w) for y, row in enumerate(down) for x, w in enumerate(row)]
    found += [(y * width + x, y * width + x + 1, w) for y, row in enumerate(right) for x, w in enumerate(row)]
    return [(u, v, min(max(w, 0), _MAX_WEIGHT)) for u, v, w in found]


def _energy(labels: list, sites: list, edges: list, factor: int, distance: list | tuple) -> int:
    own = sum(costs[label] for costs, label in zip(sites, labels, strict=True))
    return factor * own + sum(w * distance[abs(labels[u] - labels[v])] for u, v, w in edges)


def _exact(sites: list, edges: list, n_labels: int) -> list[int]:
    """Ishikawa (2003): bit a of a site is whether its label is above a, and the energy is one of pairs of bits.

    With (l_u - l_v)^2 = l_u^2 + l_v^2 - 2 l_u l_v and l the sum of the bits, the last term is, up to terms of one
    bit, the number of pairs of a bit of u and one of v that differ.
    """
    bits = n_labels - 1
    costs = [bits**2 * (own[a + 1] - own[a]) for own in sites for a in range(bits)]
    arcs = [(i * bits + a, i * bits + a + 1, math.inf, 0) for i in range(len(sites)) for a in range(bits - 1)]
    for u, v, w in edges:
        arcs += [(u * bits + a, v * bits + b, w, w) for a, b in product(range(bits), repeat=2)]
        for site, a in product((u, v), range(bits)):
            costs[site * bits + a] += w * (2 * a + 1 - bits)
    chosen = cheapest_set(costs, arcs)
    return [sum(chosen[i * bits : (i + 1) * bits]) for i in range(len(sites))]


def _swap(sites: list, edges: list, n_labels: int) -> list[int]:
    """Alpha-beta swaps in gco's order: (0, L-1), (0, L-2), .., (1, L-1), .., while a round lowers the energy."""
    factor, distance = _GCO_COSTS[n_labels]
    labels, before = [0] * len(sites), math.inf
    while (now := _energy(labels, sites, edges, factor, distance)) < before:
        before = now
        for low in range(n_labels - 1):
            for high in reversed(range(low + 1, n_labels)):
                _swap_pair(labels, low, high, sites, edges, factor, distance)
    return labels


def _swap_pair(labels: list, low: int, high: int, sites: list, edges: list, factor: int, distance: tuple) -> None:
    free = [i for i, label in enumerate(labels) if label in (low, high)]
    node = {site: n for n, site in enumerate(free)}
    costs, arcs = [factor * (sites[i][high] - sites[i][low]) for i in free], []
    for u, v, w in edges:
        if u in node and v in node:
            capacity = w * distance[high - low]
            arcs.append((node[u], node[v], capacity, capacity))
        else:
            for site, other in ((u, v), (v, u)):
                if site in node:
                    costs[node[site]] += w * (distance[abs(high - labels[other])] - distance[abs(low - labels[other])])
    for site, chosen in zip(free, cheapest_set(costs, arcs), strict=True):
        labels[site] = high if chosen else low


def cheapest_set(costs: list[int], arcs: list[tuple]) -> list[bool]:
    """The smallest of the sets S that minimise sum of `costs` in S, plus `there` of every arc (u, v, there, back) that
    leads into S from outside, plus `back` of every one that leads out of it.

    A minimum cut with S on the sink's side, from a maximum flow by Dinic's method. After it, S is what can still reach
    the sink: that is part of the sink's side of every minimum cut.
    """
    source, sink = len(costs), len(costs) + 1
    head, room, out = [], [], [[] for _ in range(len(costs) + 2)]
    terminals = [(source, i, cost, 0) if cost > 0 else (i, sink, -cost, 0) for i, cost in enumerate(costs)]
    for u, v, there, back in [*terminals, *arcs]:
        out[u].append(len(head))
        out[v].append(len(head) + 1)  # arc e ^ 1 is the reverse of arc e
        head += [v, u]
        room += [there, back]
    while True:
        level = _distances_to(sink, head, room, out)
        if level[source] is None:
            return [distance is not None for distance in level[: len(costs)]]
        tried, path, node = [0] * len(out), [], source
        while True:
            if node == sink:
                amount = min(room[e] for e in path)
                for e in path:
                    room[e] -= amount
                    room[e ^ 1] += amount
                path, node = [], source
            while tried[node] < len(out[node]):
                e = out[node][tried[node]]
                if room[e] > 0 and level[head[e]] == level[node] - 1:
                    break
                tried[node] += 1
            if tried[node] < len(out[node]):
                path.append(e)
                node = head[e]
            elif path:
                node = head[path.pop() ^ 1]
                tried[node] += 1
            else:
                break


def _distances_to(sink: int, head: list, room: list, out: list) -> list[int | None]:
    """Arcs of the shortest path to the sink along arcs with room, None where there is no path."""
    level = [None] * len(out)
    level[sink] = 0
    queue = deque([sink])
    while queue:
        node = queue.popleft()
        for e in out[node]:
            if room[e ^ 1] > 0 and level[head[e]] is None:
                level[head[e]] = level[node] + 1
                queue.append(head[e])
    return level
