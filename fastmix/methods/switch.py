"""MixUp or CutMix, drawn for each batch, as DeiT and RSB train (Touvron et al. 2021)."""

from __future__ import annotations

from typing import Any

from fastmix.methods.base import MixMethod, Paper
from fastmix.methods.cutmix import CutMix
from fastmix.methods.mixer import Mixer
from fastmix.methods.mixup import MixUp


class Switch(Mixer):
    """Mixes a batch by the second of two methods with probability ``p``, else by the first.

    The defaults are DeiT's: MixUp with alpha 0.8, CutMix with alpha 1, each half the time. ``alpha=0.1`` is RSB's
    (Wightman et al. 2021, arXiv:2110.00476). The choice is made on the device, and either way is one launch.

    Args:
        first, second: methods; None: MixUp and CutMix.
        p: probability of the second.
        alpha: of that MixUp.
        mode: "batch" as published, "pair" or "sample"; also of that MixUp and CutMix.
        pairing, normalize, dtype, backend: as for every method. timm pairs by "flip".

    Example:
        >>> switch = Switch(MixUp(0.8), CutMix(1.0), p=0.5)
        >>> loss = switch(images, labels).loss(logits, smoothing=0.1)
    """

    name = "switch"
    paper = Paper(
        "Training Data-Efficient Image Transformers & Distillation Through Attention",
        "Touvron et al.",
        2021,
        "2012.12877",
    )
    ops = ("box_blend",)
    alphas = {"imagenet-vit": "0.8 and 1 (DeiT), 0.1 and 1 (RSB)"}  # noqa: RUF012
    default_alpha = 0.8
    default_mode = "batch"
    uses_alpha = True

    def __init__(
        self,
        first: MixMethod | None = None,
        second: MixMethod | None = None,
        p: float = 0.5,
        *,
        alpha: float | None = None,
        mode: str | None = None,
        **options: Any,
    ) -> None:
        self._require(0 <= p <= 1, "p must be in [0, 1]", p)
        mode = self.default_mode if mode is None else mode
        first = MixUp(self.default_alpha if alpha is None else alpha, mode=mode) if first is None else first
        second = CutMix(1.0, mode=mode) if second is None else second
        super().__init__((first, second), (1 - p, p), alpha=alpha, mode=mode, **options)
        self.p = p
