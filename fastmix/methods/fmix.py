"""FMix: masks of arbitrary shape, cut out of random low-frequency images (Harris et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import _settings, ops
from fastmix.methods.base import Draw, MixMethod, Paper, alphas
from fastmix.ops.spectral_mask import CYCLES, SPECTRA, spectral_mask_noise_shape
from fastmix.plan import Plan


class FMix(MixMethod):
    """The largest pixels of a random image of low frequencies show the own image, all others the partner.

    With ``lam ~ Beta(alpha, alpha)`` exactly ``lam H W`` pixels, rounded up or down by a coin, are the own image's. The
    returned ``lam (N,)`` is their share.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        decay: how fast frequencies fade.
        spectrum: "paper": the same in all directions; "reference": what the released code makes, which has only the
            lowest frequencies along the width.
        softness: width of a soft edge, as a share of all pixels, ``max_soft`` of the released code.
        cycles: highest frequency of "paper", see ``fastmix.ops.spectral_mask``; None: all there are.

    Example:
        >>> batch = FMix(alpha=0.2, mode="sample")(images, labels)
    """

    name = "fmix"
    paper = Paper("FMix: Enhancing Mixed Sample Data Augmentation", "Harris et al.", 2020, "2002.12047")
    ops = ("spectral_mask", "mask_blend")
    alphas = alphas(0.2, 0.2, 1, 1, 0.2, 0.2)
    dims = (4, 5)

    def __init__(
        self,
        alpha: float | None = None,
        *,
        decay: float = 3.0,
        spectrum: str = "paper",
        softness: float = 0.0,
        cycles: int | None = CYCLES,
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        where = type(self).__name__
        self.decay = _settings.number(where, "decay", decay)
        self.spectrum = _settings.one_of(where, "spectrum", spectrum, SPECTRA)
        self.softness = _settings.number(where, "softness", softness, 0, 0.5)
        self.cycles = None if cycles is None else _settings.whole(where, "cycles", cycles)

    def plan(self, x: Tensor, draw: Draw, noise: Tensor | None = None, coin: Tensor | float | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            noise: normal numbers, one set or one for each sample, as ``fastmix.ops.spectral_mask`` takes them.
            coin: ``()`` or ``(N,)`` in [0, 1): below 1/2 the number of pixels is rounded down.
        """
        size = tuple(x.shape[-2:])
        if noise is None:
            noise = draw.normal(*spectral_mask_noise_shape(size, self.spectrum, self.cycles))
        else:
            noise = draw.check(noise, "noise", (None, None, 2))
        noise = noise.unsqueeze(0) if noise.dim() == 3 else noise
        pixels = draw.lam.double() * (size[0] * size[1])
        down = draw.uniform(given=coin, name="coin") < 0.5
        count = torch.where(down, pixels.floor(), pixels.ceil()).long()
        # One noise and one number of pixels may serve all, or either of the two.
        many = noise.shape[0] if count.dim() == 0 else count.shape[0]
        noise, count = noise.expand(many, -1, -1, -1), count.expand(many)
        mask = ops.spectral_mask(noise, count, size, self.decay, self.spectrum, self.softness)
        return Plan(draw.index, None, mask=mask.expand(draw.size, -1, -1))
