"""CutMix: a rectangle of the partner pasted into the image (Yun et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.methods.base import Draw, MixMethod, Paper, alphas
from fastmix.plan import Plan


class CutMix(MixMethod):
    """Pixels inside a random box come from the partner.

    With ``lam ~ Beta(alpha, alpha)`` and ``r = sqrt(1 - lam)`` the box has sides ``floor(W r)`` and
    ``floor(H r)`` (halved towards zero on each side of the centre) around a uniform pixel and is clipped to the
    image; the returned ``lam`` is ``1 - box area / (H W)``, the share that the own image really keeps. One box
    serves the batch, as in the published code, unless ``mode`` or ``lam (N,)`` asks for more.

    Of one-dimensional ``(N, C, L)`` batches an interval of ``floor(L (1 - lam))`` is cut; of five-dimensional ones a
    box in the last two dimensions, the same through depth or time.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        minmax: ``(low, high)``: both sides of the box are uniform whole numbers from ``low`` to below ``high`` times
            the image's, and the box lies inside the image, as timm's ``cutmix_minmax``; ``alpha`` and a given ``lam``
            then have no effect.

    Example:
        >>> batch = CutMix(alpha=1.0)(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    name = "cutmix"
    paper = Paper(
        "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
        "Yun et al.",
        2019,
        "1905.04899",
    )
    ops = ("box_blend",)
    alphas = alphas(0.2, 0.2, 1, 1, 0.2, 1)
    dims = (3, 4, 5)

    def __init__(
        self, alpha: float | None = None, *, minmax: tuple[float, float] | None = None, **options: Any
    ) -> None:
        super().__init__(alpha, **options)
        self.minmax = None if minmax is None else _settings.interval(type(self).__name__, "minmax", minmax, 0, 1)

    @property
    def draws_lam(self) -> bool:
        return self.minmax is None

    def plan(
        self,
        x: Tensor,
        draw: Draw,
        centre: Tensor | None = None,
        box: Tensor | None = None,
        sides: Tensor | None = None,
    ) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            centre: row and column of the box's centre, ``(2,)`` or ``(N, 2)`` in [0, 1), as parts of the sides; with
                ``minmax`` of the places where the box fits.
            box: ``(4,)`` or ``(N, 4)`` int32 instead of a random one, clipped to the image; then ``lam`` has no effect.
            sides: with ``minmax``, height and width, ``(2,)`` or ``(N, 2)`` in [0, 1), within their range.
        """
        height, width = (1, *x.shape[2:])[-2:]
        if box is not None:
            box = draw.check(box, "box", (4,), torch.int32).clamp(min=0)
            ends = zip(box.unbind(-1), (height, width, height, width), strict=True)
            box = torch.stack([end.clamp(max=side) for end, side in ends], dim=-1)
        elif self.minmax is not None:
            sides = draw.uniform(2, given=sides, name="sides")
            box = box_within(self.minmax, sides, draw.uniform(2, given=centre, name="centre"), height, width)
        else:
            ratio = 1 - draw.lam.double() if x.dim() == 3 else (1 - draw.lam.double()).clamp(0, 1).sqrt()
            box = box_around(draw.uniform(2, given=centre, name="centre"), ratio, height, width)
            if x.dim() == 3:
                box = whole_height(box)
        return Plan(draw.index, share_outside(box, height, width), box=box)


def box_around(centre: Tensor, ratio: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``(..., 4)`` int32 ``(y0, x0, y1, x1)`` with sides ``ratio`` of the image's, clipped to the image.

    ``ratio`` is ``(...)`` float64 in [0, 1]; ``centre (..., 2)`` in ``[0, 1)`` gives row and column as parts of the
    sides.
    """
    sides = height + (width - height) * torch.arange(2, device=centre.device)
    half = (sides * ratio[..., None]).floor().long() // 2
    # float32 rounding can lift a draw just below 1 to the side itself
    middle = torch.minimum((centre * sides).long(), sides - 1)
    corners = torch.cat((middle - half, middle + half), dim=-1).clamp(min=0)
    return torch.minimum(corners, sides.repeat(2)).int()


def box_within(minmax: tuple[float, float], sides: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``(..., 4)`` int32 inside the image, their sides and places from ``(..., 2)`` draws in [0, 1)."""
    low, high = [], []
    for axis, side in enumerate((height, width)):
        least, most = (int(side * part) for part in minmax)
        size = least + (sides[..., axis] * (most - least)).long().clamp(max=max(most - least - 1, 0))
        begin = torch.minimum((place[..., axis] * (side - size + 1)).long(), side - size)
        low.append(begin)
        high.append(begin + size)
    return torch.stack((*low, *high), dim=-1).int()


def whole_height(box: Tensor) -> Tensor:
    """The boxes of a picture of one row, all of which it fills."""
    return torch.stack((torch.zeros_like(box[..., 0]), box[..., 1], torch.ones_like(box[..., 2]), box[..., 3]), dim=-1)


def share_outside(box: Tensor, height: int, width: int) -> Tensor:
    """Share of the image outside boxes ``(..., 4)`` that lie inside it, float32."""
    area = (box[..., 2:] - box[..., :2]).clamp(min=0).prod(dim=-1)
    return 1 - area.float() / max(height * width, 1)
