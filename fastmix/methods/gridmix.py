"""GridMix: cells of a grid from either image, and a label for every cell (Baek et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.batch import MixBatch
from fastmix.methods.base import Draw, Paper
from fastmix.methods.random_grids import RandomGrids
from fastmix.plan import Plan


class GridMix(RandomGrids):
    """Cells of a ``grid x grid`` mask come from either image; the label is weighted by area.

    The paper's second part, local context mapping, predicts the class of every cell: :meth:`cell_labels` gives the
    targets of such a head. The law of the cells is that of ``RandomGrids``.

    With ``holes`` it is the method that OpenMixup calls GridMix: the partner shows through a regular grid of holes
    within a random rectangle. The rectangle is cut to the image here, where OpenMixup's code needs a square one.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout, grid, law: as for ``RandomGrids``.
        holes: None, or the least and largest number of holes in a row; holes have sides ``sqrt(1 - lam)`` of theirs.
        area, aspect: range of the rectangle's share of the image, and of its height to its width.

    Example:
        >>> gridmix = GridMix(grid=4, mode="sample")
        >>> batch = gridmix(images, labels)
        >>> local = F.cross_entropy(patch_logits, gridmix.cell_labels(batch))  # patch_logits (N, K, 4, 4)
    """

    name = "gridmix"
    paper = Paper("GridMix: Strong Regularization Through Local Context Mapping", "Baek et al.", 2021)

    def __init__(
        self,
        alpha: float | None = None,
        *,
        holes: tuple[int, int] | None = None,
        area: tuple[float, float] = (0.5, 1.0),
        aspect: tuple[float, float] = (0.5, 2.0),
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        where = type(self).__name__
        if holes is not None:
            for count in _settings.interval(where, "holes", holes, 1):
                _settings.whole(where, "holes", count)
        self.holes = holes
        self.area = _settings.interval(where, "area", area, 0, 1, above=True)
        self.aspect = _settings.interval(where, "aspect", aspect, 0, above=True)

    def plan(
        self,
        x: Tensor,
        draw: Draw,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> Plan:
        """See ``RandomGrids.plan``.

        Args:
            numbers: with ``holes``, ``(5,)`` or ``(N, 5)`` in [0, 1): for the number of holes, the area, the aspect and
                the row and column of the rectangle.
        """
        if self.holes is None or mask is not None:
            return super().plan(x, draw, noise, mask)
        shown = self._shown(draw.uniform(5, given=numbers, name="numbers"), draw.lam, *x.shape[-2:])
        return Plan(draw.index, None, mask=shown.expand(draw.size, -1, -1))

    def _shown(self, numbers: Tensor, lam: Tensor, height: int, width: int) -> Tensor:
        """1 where the own image is shown, ``(..., H, W)``."""
        count, area, aspect, row, column = numbers.double().unbind(-1)
        count = self.holes[0] + (count * (self.holes[1] - self.holes[0] + 1)).floor()
        area, aspect = (low + part * (high - low) for part, (low, high) in ((area, self.area), (aspect, self.aspect)))
        across = (area * height * width / aspect).sqrt().floor()
        down = (across * aspect).floor().clamp(max=height)
        across = across.clamp(max=width)
        patch = (across / count).ceil().clamp(min=1)
        hole = torch.minimum((patch * (1 - lam.double()).sqrt()).floor().clamp(min=1), patch - 1)
        rows = _open(((height - down) * row).floor(), down, patch, hole, height)
        columns = _open(((width - across) * column).floor(), across, patch, hole, width)
        return 1 - (rows[..., :, None] & columns[..., None, :]).float()

    def cell_labels(self, batch: MixBatch) -> Tensor:
        """Class number of every cell, ``(N, rows, columns)`` int64, of a batch labelled by class numbers ``(N,)``."""
        if batch.y is None or batch.y.dim() != 1:
            raise ValueError("fastmix.GridMix.cell_labels: batch must be labelled by class numbers (N,)")
        own, partner = (labels.view(-1, 1, 1) for labels in (batch.y, batch.y_b))
        return torch.where(batch.mask > 0.5, own, partner)


def _open(begin: Tensor, length: Tensor, patch: Tensor, hole: Tensor, side: int) -> Tensor:
    """Which of ``side`` positions lie in a hole: the first ``hole`` of each ``patch`` from ``begin`` on."""
    offset = torch.arange(side, device=begin.device) - begin[..., None]
    return (offset >= 0) & (offset < length[..., None]) & (offset % patch[..., None] < hole[..., None])
