"""SmoothMix: the partner fades in around a random point (Lee et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastmix.methods.base import Draw, MixMethod, Paper
from fastmix.plan import Plan


class SmoothMix(MixMethod):
    """The partner's weight is a Gaussian around a random pixel: ``1 - mask = exp(-d^2 / (2 sigma^2))``.

    ``sigma`` is uniform in [1/4, 1/2] of the shorter side; the returned ``lam (N,)`` is the mean of the mask. ``alpha``
    has no effect. A given ``lam`` sets ``sigma`` so that the whole of the Gaussian has the area ``1 - lam`` of the
    image; what lies outside the image is lost.

    Example:
        >>> batch = SmoothMix(mode="sample")(images, labels)
    """

    name = "smoothmix"
    paper = Paper("SmoothMix: A Simple Yet Effective Data Augmentation to Train Robust Classifiers", "Lee et al.", 2020)
    ops = ("mask_blend",)
    dims = (4, 5)
    uses_alpha = False

    @property
    def draws_lam(self) -> bool:
        return False

    def plan(self, x: Tensor, draw: Draw, centre: Tensor | None = None, sigma: Tensor | float | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            centre: row and column, ``(2,)`` or ``(N, 2)`` in [0, 1), as parts of the sides.
            sigma: ``()`` or ``(N,)``, as part of the shorter side.
        """
        height, width = x.shape[-2:]
        centre = draw.uniform(2, given=centre, name="centre")
        if sigma is not None:
            sigma = draw.check(sigma, "sigma", (), low=0) * min(height, width)
        elif draw.given:
            sigma = ((1 - draw.lam) * (height * width / (2 * math.pi))).clamp(min=0).sqrt()
        else:
            sigma = (0.25 + draw.uniform() / 4) * min(height, width)
        mask = 1 - gaussian(centre, sigma, height, width)
        return Plan(draw.index, None, mask=mask.expand(draw.size, -1, -1))


def gaussian(centre: Tensor, sigma: Tensor, height: int, width: int) -> Tensor:
    """``exp(-d^2 / (2 sigma^2))`` around the pixels of ``centre (..., 2)``, ``(..., H, W)`` float32; 0 for sigma 0."""
    parts = []
    for axis, side in enumerate((height, width)):
        middle = (centre[..., axis] * side).floor().clamp(max=max(side - 1, 0))
        distance = torch.arange(side, device=centre.device) - middle[..., None]
        parts.append(torch.exp(-(distance**2) / (2 * sigma.clamp(min=1e-6)[..., None] ** 2)))
    bell = parts[0][..., :, None] * parts[1][..., None, :]
    return torch.where((sigma > 0)[..., None, None], bell, 0)
