"""Cases of PuzzleMix's combinatorial ops, on costs and maps such as random smooth pictures have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops, reference
from fastmix.bench.cases import Case, Entry
from fastmix.bench.plans import EPS, plan_costs
from fastmix.bench.provider import Provider

SAMPLES = 100


def entries() -> Iterator[Entry]:
    """Cuts and plans for every published number of blocks, and the blend that moves blocks."""
    for blocks in (2, 4, 8, 16):
        for n_labels in (2, 3, 4):
            name = f"grid_cut/B{blocks}-L{n_labels}"
            yield Entry(name, partial(cut_case, name, blocks, n_labels), quick=(blocks, n_labels) == (8, 3))
    for method in ("rounds", "exact"):
        for label, power in (("flat", 1), ("sharp", 4)):
            for blocks in (4, 8, 16):
                name = f"transport/{method}-T{blocks}-{label}"
                make = partial(plan_case, name, method, blocks, power)
                yield Entry(name, make, quick=(label, blocks) == ("flat", 8))
    for label, shape, blocks in (("cifar", (100, 3, 32, 32), 8), ("imagenet", (32, 3, 224, 224), 16)):
        name = f"mask_blend/plans-{label}"
        yield Entry(name, partial(gather_case, name, shape, blocks), quick=label == "cifar")


def cut_case(name: str, blocks: int, n_labels: int, generator: torch.Generator) -> Case:
    """Exact cuts of a batch of grids with CIFAR's settings."""

    def agree(found: tuple[Tensor, Tensor], case: Case) -> str:
        few = [cost[:4].cpu() for cost in case.args]
        labels, energy = reference.grid_cut(*few)
        right = torch.equal(found[0][:4].cpu(), labels) and torch.equal(found[1][:4].cpu(), energy)
        return "" if right else "labels or energies differ from the reference"

    costs = _costs(blocks, n_labels, generator)
    return Case(name, costs, ops.grid_cut, None, sum(map(_bytes, costs)), agree=agree)


def plan_case(name: str, method: str, blocks: int, power: int, generator: torch.Generator) -> Case:
    """Plans for PuzzleMix's masks; the larger `power`, the faster saliency falls off."""
    saliency = ops.saliency_pool(_gradient(power, generator), blocks)
    labels, _ = ops.grid_cut(*_costs(blocks, 3, generator, saliency))
    published = method == "rounds"

    def fast(visible: Tensor, saliency: Tensor, **options) -> Tensor:
        return ops.transport(visible, saliency, EPS, "reference" if published else "exact", **options)

    def dense(visible: Tensor, saliency: Tensor) -> Tensor:
        return reference.transport(visible, saliency, EPS)

    def agree(found: Tensor, case: Case) -> str:
        if published:
            return "" if torch.equal(found, dense(*case.args)) else "plans differ from the published rounds"
        few = [part[:4].cpu() for part in case.args]
        if not torch.equal(found[:4].cpu() >= 0, few[0].flatten(1)):
            return "a plan does not serve just the visible targets"
        best = reference.transport(*few, EPS, "exact")
        ours, least = ([*map(_total, plan_costs(*few), plans)] for plans in (found[:4], best))
        worst = max(a - b for a, b in zip(ours, least, strict=True))
        return "" if worst <= 1e-6 else f"a plan costs {worst:.3g} more than the best"

    return Case(name, (labels < 2, saliency), fast, dense if published else None, agree=agree, compiles=False)


def _total(cost, plan: Tensor) -> float:
    shown = plan.cpu()[plan.cpu() >= 0].long()
    return torch.from_numpy(cost).gather(1, shown.unsqueeze(1)).sum().item()


def gather_case(name: str, shape: tuple[int, int, int, int], blocks: int, generator: torch.Generator) -> Case:
    """Both images' blocks move and are blended by a nearest mask; the published code multiplies by dense plans."""
    n, device = shape[0], generator.device
    x = torch.randn(shape, generator=generator, device=device)
    mask = torch.randint(0, 3, (n, blocks, blocks), generator=generator, device=device) / 2
    plans = [
        torch.stack([torch.randperm(blocks**2, generator=generator, device=device) for _ in range(n)]).int()
        for _ in range(2)
    ]
    index = torch.randperm(n, generator=generator, device=device)

    def fast(x: Tensor, index: Tensor, mask: Tensor, plan: Tensor, partner_plan: Tensor, **options) -> tuple:
        return ops.mask_blend(x, index, mask, "nearest", plan=plan, partner_plan=partner_plan, **options)

    def eager(
        x: Tensor, index: Tensor, mask: Tensor, plan: Tensor, partner_plan: Tensor, moves: Callable = dense_moves
    ) -> tuple:
        own, other = moves(x, plan), moves(x[index], partner_plan)
        weight = F.interpolate(mask.unsqueeze(1), size=x.shape[2:], mode="nearest").to(x.dtype)
        return own * weight + other * (1 - weight), weight.mean((1, 2, 3))

    inputs = (x, index, mask, *plans)
    published = Provider("published moves", partial(eager, moves=published_moves))
    return Case(name, inputs, fast, eager, 2 * _bytes(x), takes_out=True, compiles=False, peers=(published,))


def dense_moves(x: Tensor, plan: Tensor, at_once: int = 16) -> Tensor:
    """Blocks moved by one product of a dense plan with all pixels of the blocks, `at_once` samples at a time."""
    height, width = x.shape[2:]
    side = round(plan.shape[1] ** 0.5)
    h, w = height // side, width // side
    moved = []
    for images, sources in zip(x.split(at_once), plan.split(at_once), strict=True):
        blocks = F.unfold(images, (h, w), stride=(h, w))  # [n, C h w, T T]
        dense = F.one_hot(sources.long(), side**2).to(x.dtype)  # [n, T T targets, T T sources]
        moved.append(F.fold(blocks @ dense.transpose(1, 2), (height, width), (h, w), stride=(h, w)))
    return torch.cat(moved)


def published_moves(x: Tensor, plan: Tensor, at_once: int = 16) -> Tensor:
    """Blocks moved as the published code does: a matrix-vector product for every channel and pixel of a block, for
    which the dense plan is laid out as often."""
    channels, height, width = x.shape[1:]
    side = round(plan.shape[1] ** 0.5)
    h, w = height // side, width // side
    moved = []
    for images, sources in zip(x.split(at_once), plan.split(at_once), strict=True):
        n = len(images)
        blocks = images.view(n, channels, side, h, side, w).permute(0, 1, 3, 5, 2, 4)
        dense = F.one_hot(sources.long(), side**2).to(x.dtype).view(n, 1, 1, 1, side**2, side**2)
        found = (dense @ blocks.reshape(n, channels, h, w, side**2, 1)).view(n, channels, h, w, side, side)
        moved.append(found.permute(0, 1, 4, 2, 5, 3).reshape(n, channels, height, width))
    return torch.cat(moved)


def _smooth(channels: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand(SAMPLES, channels, size, size, generator=generator, device=generator.device)
    return F.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


def _gradient(power: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(SAMPLES, 3, 32, 32, generator=generator, device=generator.device)
    return (_smooth(1, 6, generator) ** 2 + 0.1) ** power * noise


def _costs(
    blocks: int, n_labels: int, generator: torch.Generator, saliency: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of smooth pictures with some detail, and saliency that falls off around a few places."""
    images = 0.7 * _smooth(3, 5, generator) + 0.3 * _smooth(3, 16, generator)
    if saliency is None:
        saliency = ops.saliency_pool(_gradient(1, generator), blocks)
    index = torch.randperm(SAMPLES, generator=generator, device=generator.device)
    lam = torch.rand(SAMPLES, generator=generator, device=generator.device)
    return ops.puzzle_energy(images, saliency, index, lam, n_labels)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
