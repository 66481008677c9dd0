"""Times `grid_cut` beside gco-wrapper, the solver of PuzzleMix's published code.

    python bench/puzzle_cases.py [--threads T] [--clock wall|cpu] [--seconds S] [--json FILE]

fastmix and gco run on one thread unless T says otherwise. `--clock cpu` counts the CPU time of the process, which other
work on the machine disturbs less. A case is timed only after swap labels were found to be gco's, and no exact energy to
be above gco's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compare import machine
from torch import Tensor

from fastmix import ops

SAMPLES = 100


@dataclass(frozen=True)
class CutCase:
    """A batch of grids: the costs that PuzzleMix's mask has for random pictures with CIFAR's settings."""

    name: str
    costs: tuple[Tensor, Tensor, Tensor]

    def exact(self) -> tuple[Tensor, Tensor]:
        return ops.grid_cut(*self.costs)

    def swap(self) -> tuple[Tensor, Tensor]:
        return ops.grid_cut(*self.costs, "swap")

    def gco(self) -> Tensor:
        """The published call, one grid after another."""
        import gco

        unary, weight_y, weight_x = (part.numpy() for part in self.costs)
        levels = torch.linspace(0, 1, unary.shape[3])
        distance = ((levels[:, None] - levels) ** 2).numpy()
        found = [
            gco.cut_grid_graph(*grid[:1], distance, *grid[1:], n_iter=-1, algorithm="swap")
            for grid in zip(unary, weight_y, weight_x, strict=True)
        ]
        return torch.from_numpy(np.stack(found)).view(unary.shape[:3])

    def check(self) -> None:
        labels, energy = self.swap()
        if not (torch.equal(labels, self.gco()) and (self.exact()[1] <= energy).all()):
            raise SystemExit(f"{self.name}: the result is wrong, not timed")


def cases(blocks: tuple[int, ...] = (2, 4, 8, 16), labels: tuple[int, ...] = (2, 3, 4)) -> Iterator[CutCase]:
    generator = torch.Generator().manual_seed(0)
    for b in blocks:
        for n_labels in labels:
            yield CutCase(f"B={b} L={n_labels}", _costs(b, n_labels, generator))


def _costs(blocks: int, n_labels: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Of smooth pictures with some detail, and saliency that falls off around a few places."""

    def smooth(channels: int, size: int) -> Tensor:
        coarse = torch.rand(SAMPLES, channels, size, size, generator=generator)
        return F.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)

    images = 0.7 * smooth(3, 5) + 0.3 * smooth(3, 16)
    grad = (smooth(1, 6) ** 2 + 0.1) * torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    index, lam = torch.randperm(SAMPLES, generator=generator), torch.rand(SAMPLES, generator=generator)
    return ops.puzzle_energy(images, ops.saliency_pool(grad, blocks), index, lam, n_labels)


def medians(calls: dict[str, Callable], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each call; they take turns for about `seconds` in all, at least seven rounds."""
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 7:
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return {name: 1e3 * statistics.median(samples) for name, samples in times.items()}


def measure(case: CutCase, seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    calls: dict[str, Callable] = {"exact": case.exact, "swap": case.swap}
    try:
        import gco  # noqa: F401
    except ImportError:
        return medians(calls, seconds, clock)
    case.check()
    row = medians({**calls, "gco": case.gco}, seconds, clock)
    return row | {"gco / exact": row["gco"] / row["exact"], "gco / swap": row["gco"] / row["swap"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of fastmix; gco has one")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="which time counts")
    parser.add_argument("--seconds", type=float, default=2, help="for each case")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    found = {"machine": machine() | {"clock": args.clock}, "grid_cut": {}}
    for key, value in found["machine"].items():
        print(f"{key}: {value}")
    print(f"Milliseconds for {SAMPLES} grids, medians")
    for case in cases():
        row = found["grid_cut"][case.name] = measure(case, args.seconds, clock)
        print(f"{case.name:<10}" + "".join(f"  {name} {value:8.3f}" for name, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
