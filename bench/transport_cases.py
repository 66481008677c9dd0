"""Times `transport` beside scipy's assignment and the dense rounds of PuzzleMix's published code.

    python bench/transport_cases.py [--threads T] [--seconds S] [--json FILE]

A case is timed only after its rounds were found to be the dense ones and its exact plans to cost what scipy's do.
scipy gets its cost matrices ready-made and leaves out hidden targets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from compare import interleaved, machine
from torch import Tensor

from fastmix import ops, reference

SAMPLES = 100


@dataclass(frozen=True)
class PlanCase:
    """A batch of masks, as PuzzleMix finds them for random pictures, and of the blocks' saliency."""

    name: str
    visible: Tensor
    saliency: Tensor
    eps: float

    def rounds(self) -> Tensor:
        return ops.transport(self.visible, self.saliency, self.eps)

    def exact(self) -> Tensor:
        return ops.transport(self.visible, self.saliency, self.eps, "exact")

    def dense(self) -> Tensor:
        return reference.transport(self.visible, self.saliency, self.eps)

    def costs(self) -> list[Tensor]:
        """Of every sample: (visible targets, blocks), float64."""
        height, width = self.visible.shape[1:]
        y, x = (part.flatten() for part in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        moves = self.eps * ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double() / (max(height, width) - 1) ** 2
        samples = zip(self.visible.flatten(1), self.saliency.flatten(1).double(), strict=True)
        return [moves[shown] - s for shown, s in samples]

    def check(self, assign: Callable | None) -> None:
        right = torch.equal(self.rounds(), self.dense())
        if assign is not None:
            for cost, plan in zip(self.costs(), self.exact(), strict=True):
                found = cost.gather(1, plan[plan >= 0].long().unsqueeze(1)).sum().item()
                right &= abs(found - cost.numpy()[assign(cost.numpy())].sum()) < 1e-6
        if not right:
            raise SystemExit(f"{self.name}: the result is wrong, not timed")


def cases(blocks: tuple[int, ...] = (2, 4, 8, 16), all_eps: tuple[float, ...] = (0.8, 0.1)) -> Iterator[PlanCase]:
    for label, power in (("flat", 1), ("sharp", 4)):
        for b in blocks:
            visible, saliency = _maps(b, power, torch.Generator().manual_seed(b))
            for eps in all_eps:
                yield PlanCase(f"T={b} {label} eps={eps}", visible, saliency, eps)


def _maps(blocks: int, power: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of smooth pictures with some detail, and saliency that falls off around a few places, the faster the larger
    `power` is."""

    def smooth(channels: int, size: int) -> Tensor:
        coarse = torch.rand(SAMPLES, channels, size, size, generator=generator)
        return F.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)

    images = 0.7 * smooth(3, 5) + 0.3 * smooth(3, 16)
    grad = (smooth(1, 6) ** 2 + 0.1) ** power * torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    index, lam = torch.randperm(SAMPLES, generator=generator), torch.rand(SAMPLES, generator=generator)
    saliency = ops.saliency_pool(grad, blocks)
    labels, _ = ops.grid_cut(*ops.puzzle_energy(images, saliency, index, lam, 3))
    return labels < 2, saliency


def measure(case: PlanCase, seconds: float) -> dict[str, float]:
    """Milliseconds a batch."""
    calls: dict[str, Callable] = {"rounds": case.rounds, "dense": case.dense, "exact": case.exact}
    try:
        from scipy.optimize import linear_sum_assignment as assign
    except ImportError:
        assign = None
    case.check(assign)
    if assign is not None:
        costs = [cost.numpy() for cost in case.costs()]
        calls["scipy"] = lambda: [assign(cost) for cost in costs]
    row = interleaved(calls, seconds)
    row["dense / rounds"] = row["dense"] / row["rounds"]
    return row if assign is None else row | {"scipy / exact": row["scipy"] / row["exact"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of fastmix and torch; scipy has one")
    parser.add_argument("--seconds", type=float, default=2, help="time for each case")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {"machine": machine(), "transport": {}}
    for key, value in found["machine"].items():
        print(f"{key}: {value}")
    print(f"Milliseconds for {SAMPLES} plans, medians")
    for case in cases():
        row = found["transport"][case.name] = measure(case, args.seconds)
        print(f"{case.name:<22}" + "".join(f"  {name} {value:8.3f}" for name, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
