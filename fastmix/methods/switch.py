"""MixUp or CutMix, drawn for each batch, as DeiT and RSB train (Touvron et al. 2021)."""

from __future__ import annotations

from typing import Any

from fastmix import _settings
from fastmix.methods.base import MODES, MixMethod, Paper
from fastmix.methods.cutmix import CutMix
from fastmix.methods.mixer import Mixer
from fastmix.methods.mixup import MixUp


class Switch(Mixer):
    """Mixes a batch by the second of two methods with probability ``p``, else by the first.

    The defaults are DeiT's: MixUp with alpha 0.8, CutMix with alpha 1, each half the time. ``alpha=0.1`` is RSB's
    (Wightman et al. 2021, arXiv:2110.00476). The choice is made on the device, and either way is one launch.

    Args:
        first, second: methods; None: MixUp and CutMix.
        p: probability of the second, timm's ``switch_prob``.
        mix_prob: probability that the batch (image, pair) is mixed at all, timm's ``prob``: the ``p`` of other methods.
        alpha: of that MixUp.
        mode: "batch" as published, "pair" or "sample"; also of that MixUp and CutMix.
        pairing, normalize, dtype, backend, check_layout: as for every method. timm pairs by "flip".

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
        mix_prob: float = 1.0,
        **options: Any,
    ) -> None:
        where = type(self).__name__
        _settings.number(where, "p", p, 0, 1)
        _settings.number(where, "mix_prob", mix_prob, 0, 1)
        for name, method in (("first", first), ("second", second)):
            self._require(method is None or isinstance(method, MixMethod), f"{name} must be a method or None", method)
        mode = _settings.one_of(where, "mode", self.default_mode if mode is None else mode, MODES)
        alpha = _settings.number(where, "alpha", self.default_alpha if alpha is None else alpha, above=True)
        first = MixUp(alpha, mode=mode) if first is None else first
        second = CutMix(1.0, mode=mode) if second is None else second
        super().__init__((first, second), (1 - p, p), alpha=alpha, mode=mode, p=mix_prob, **options)
        self.p = p
