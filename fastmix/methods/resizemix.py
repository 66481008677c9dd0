"""ResizeMix: the whole partner, made small, pasted into the image (Qin et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.methods.base import Draw, MixMethod, Paper, alphas
from fastmix.methods.cutmix import box_around, share_outside, whole_height
from fastmix.plan import Plan

LAWS = ("uniform", "beta")
RESIZES = ("nearest", "bilinear")


class ResizeMix(MixMethod):
    """The partner is resized by ``tau`` and pasted at a random place.

    The box has sides ``floor(W tau)`` and ``floor(H tau)`` (halved towards zero on each side of the centre) around a
    uniform pixel and is clipped to the image; the whole partner is then resized to what is left of it. The returned
    ``lam`` is ``1 - box area / (H W)``. A box without area pastes nothing.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method; ``alpha`` of the law
            "beta".
        scope: range of ``tau``.
        law: "uniform": ``tau`` is uniform in the scope, as published; "beta": ``tau ~ Beta(alpha, alpha)``, and uniform
            where that lies outside the scope, as in OpenMixup.
        resize: "nearest" or "bilinear".

    Example:
        >>> batch = ResizeMix(mode="sample")(images, labels)
    """

    name = "resizemix"
    paper = Paper("ResizeMix: Mixing Data with Preserved Object Information and True Labels", "Qin et al.", 2020,
                  "2012.11101")  # fmt: skip
    ops = ("box_blend",)
    alphas = alphas(1, 0.2, 1, 1, 0.2, 1)
    dims = (3, 4, 5)
    uses_alpha = False

    def __init__(
        self,
        alpha: float | None = None,
        *,
        scope: tuple[float, float] = (0.1, 0.8),
        law: str = "uniform",
        resize: str = "nearest",
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        where = type(self).__name__
        self.scope = _settings.interval(where, "scope", scope, 0, 1)
        self.law = _settings.one_of(where, "law", law, LAWS)
        self.resize = _settings.one_of(where, "resize", resize, RESIZES)

    @property
    def draws_lam(self) -> bool:
        return self.law == "beta"

    def plan(self, x: Tensor, draw: Draw, tau: Tensor | float | None = None, centre: Tensor | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            tau: ``()`` or ``(N,)`` in [0, 1]. A given ``lam`` stands for ``tau = sqrt(1 - lam)``.
            centre: row and column, ``(2,)`` or ``(N, 2)`` in [0, 1), as parts of the sides.
        """
        height, width = (1, *x.shape[2:])[-2:]
        if tau is not None:
            tau = draw.check(tau, "tau", (), low=0, high=1)
        elif draw.given:
            tau = 1 - draw.lam if x.dim() == 3 else (1 - draw.lam).clamp(0, 1).sqrt()
        else:
            tau = self._tau(draw)
        box = box_around(draw.uniform(2, given=centre, name="centre"), tau.double(), height, width)
        if x.dim() == 3:
            box = whole_height(box)
        source = torch.zeros_like(box)
        source[..., 2].fill_(height)
        source[..., 3].fill_(width)
        return Plan(draw.index, share_outside(box, height, width), box=box, source=source, resize=self.resize)

    def _tau(self, draw: Draw) -> Tensor:
        low, high = self.scope
        tau = low + draw.uniform() * (high - low)
        if self.law == "uniform":
            return tau
        return torch.where((draw.lam < low) | (draw.lam > high), tau, draw.lam)
