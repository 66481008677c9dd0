"""Random grids: every cell of a grid comes from one of the two images, at random (baseline of Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.methods.base import Draw, MixMethod, Paper
from fastmix.plan import Plan

LAWS = ("bernoulli", "exact")


class RandomGrids(MixMethod):
    """Cells of a ``grid x grid`` mask show the own image with probability ``lam``, or in number.

    The baseline of Table 9 of the AutoMix paper, which puts random cells in the place of its learned mask. The paper
    does not give the law: "bernoulli" shows each cell with probability ``lam ~ Beta(alpha, alpha)``, "exact" a random
    choice of ``ceil(lam * cells)``. The returned ``lam (N,)`` is the share of the image that is shown.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        grid: cells a side, or ``(rows, columns)``. They need not divide the image.
        law: "bernoulli" or "exact".

    Example:
        >>> batch = RandomGrids(grid=14, law="exact", mode="sample")(images, labels)
    """

    name = "randomgrids"
    paper = Paper("AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", "Liu et al.", 2022, "2103.13027")
    ops = ("mask_blend",)
    dims = (4, 5)

    def __init__(
        self, alpha: float | None = None, *, grid: int | tuple[int, int] = 8, law: str = "bernoulli", **options: Any
    ) -> None:
        super().__init__(alpha, **options)
        where = type(self).__name__
        pair = isinstance(grid, Sequence) and len(grid) == 2
        for side in grid if pair else (grid,):
            _settings.whole(where, "grid", side)
        self.grid, self.law = grid, _settings.one_of(where, "law", law, LAWS)

    def plan(self, x: Tensor, draw: Draw, noise: Tensor | None = None, mask: Tensor | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            noise: uniform numbers ``(rows, columns)`` or ``(N, rows, columns)`` in [0, 1), one a cell: own where below
                ``lam``, or among the smallest.
            mask: of such a shape, 1 where the own image is shown, instead of a random one; then ``lam`` has no effect.
        """
        if mask is None:
            mask = random_cells(draw.uniform(*self._size(), given=noise, name="noise"), draw.lam, self.law)
        else:
            mask = draw.check(mask, "mask", self._size(), low=0, high=1)
        return Plan(draw.index, None, mask=mask.expand(draw.size, -1, -1))

    def _size(self) -> tuple[int, int]:
        return tuple(self.grid) if isinstance(self.grid, Sequence) else (self.grid, self.grid)


def random_cells(noise: Tensor, lam: Tensor, law: str) -> Tensor:
    """Masks ``(..., rows, columns)`` of ones and zeros by a law of ``LAWS``, from uniform noise of that shape."""
    if law == "bernoulli":
        return (noise < lam[..., None, None]).float()
    cells = noise.shape[-2] * noise.shape[-1]
    count = (lam.double() * cells).ceil()[..., None, None]
    return (rank(noise.flatten(-2)).view(noise.shape) < count).float()


def rank(values: Tensor, descending: bool = False) -> Tensor:
    """Place of each value in the order of the last dimension, the first of equal ones first."""
    order = values.argsort(dim=-1, descending=descending, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
