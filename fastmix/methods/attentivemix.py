"""AttentiveMix: the cells of an image that a network looks at most (Walawalkar et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix import _settings
from fastmix.methods.base import Draw, MixMethod, Paper
from fastmix.methods.random_grids import rank
from fastmix.plan import Plan


class AttentiveMix(MixMethod):
    """The most attentive cells of the own image are put onto the partner.

    The attention of an image is a feature map, averaged over its channels; its ``top_k`` largest cells show the own
    image, all others the partner. The returned ``lam (N,)`` is the share of the image that is shown. Of equal cells
    the first wins.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method. ``alpha`` matters with
            ``top_k=None``.
        features: module whose output for the images, in evaluation mode and without gradient, is the feature map
            ``(N, K, h, w)``, where a call gives no ``saliency``. It sees the images as the call got them.
        top_k: number of cells, 6 as published; None: ``max(1, floor(lam * cells))`` with ``lam ~ Beta(alpha, alpha)``,
            as in OpenMixup. A given ``lam`` decides it in this way too.
        grid: cells a side: the map is averaged to ``grid x grid``; None: the cells of the map.

    Example:
        >>> attentive = AttentiveMix(features=pretrained_trunk)
        >>> batch = attentive(images, labels)
    """

    name = "attentivemix"
    paper = Paper(
        "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image Classification",
        "Walawalkar et al.",
        2020,
        "2003.13048",
    )
    ops = ("mask_blend",)
    needs = "features"
    default_alpha = 2.0
    uses_alpha = False

    def __init__(
        self,
        alpha: float | None = None,
        *,
        features: nn.Module | None = None,
        top_k: int | None = 6,
        grid: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        where = type(self).__name__
        self._require(features is None or callable(features), "features must be a module or None", features)
        self.features = features
        self.top_k = None if top_k is None else _settings.whole(where, "top_k", top_k)
        self.grid = None if grid is None else _settings.whole(where, "grid", grid)

    @property
    def draws_lam(self) -> bool:
        return self.top_k is None

    def plan(self, x: Tensor, draw: Draw, saliency: Tensor | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            saliency: feature map ``(N, K, h, w)`` or attention ``(N, h, w)``.
        """
        attention = self._attention(x, saliency)
        cells = attention.shape[-2] * attention.shape[-1]
        if self.top_k is None or draw.given:
            count = (draw.lam.double() * cells).floor().clamp(min=1).expand(draw.size)[:, None]
        else:
            count = self.top_k
        mask = (rank(attention.flatten(1), descending=True) < count).float()
        return Plan(draw.index, None, mask=mask.view(attention.shape))

    def _attention(self, x: Tensor, saliency: Tensor | None) -> Tensor:
        where = "fastmix.AttentiveMix"
        if saliency is None:
            if self.features is None:
                raise ValueError(f"{where}: saliency is missing: pass a feature map, or give the method a module")
            saliency = _evaluated(self.features, x)
        if not isinstance(saliency, Tensor) or saliency.dim() not in (3, 4) or saliency.shape[0] != x.shape[0]:
            got = tuple(saliency.shape) if isinstance(saliency, Tensor) else type(saliency).__name__
            raise ValueError(
                f"{where}: saliency must have shape ({x.shape[0]}, K, h, w) or ({x.shape[0]}, h, w), got {got}"
            )
        attention = saliency.detach().float()
        attention = attention.mean(1) if attention.dim() == 4 else attention
        if self.grid is not None:
            attention = F.adaptive_avg_pool2d(attention.unsqueeze(1), self.grid).squeeze(1)
        return attention


def _evaluated(module: nn.Module, x: Tensor) -> Tensor:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(x)
    finally:
        module.train(training)
