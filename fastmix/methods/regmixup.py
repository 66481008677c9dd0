"""RegMixup: MixUp beside the clean images, as a regulariser (Pinto et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.batch import MixBatch
from fastmix.methods.base import Draw, MixMethod, Paper
from fastmix.plan import Plan


class RegMixup(MixMethod):
    """A batch of ``2 N``: the ``N`` images as they are, then their mixtures, written by one launch.

    The mean loss is ``(CE(clean) + eta * CE(mixed)) / (1 + eta)``: that of the published code with ``eta = 1``.
    Otherwise the label weights ``lam`` and ``lam_b`` of the batch contain the factors ``2 / (1 + eta)`` and
    ``2 eta / (1 + eta)``. ``index`` and ``y_b`` of a clean image are its own. What ``p`` leaves alone is in the batch
    twice as it is.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        eta: weight of the mixed half.

    Example:
        >>> batch = RegMixup(alpha=20, eta=1.0)(images, labels)
        >>> loss = batch.loss(model(batch.x))  # batch.x (2 N, C, H, W)
    """

    name = "regmixup"
    paper = Paper(
        "RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out Distribution Robustness",
        "Pinto et al.",
        2022,
        "2206.14502",
    )
    ops = ("blend",)
    dims = None
    combines = False
    default_alpha = 20.0

    def __init__(self, alpha: float | None = None, *, eta: float = 1.0, **options: Any) -> None:
        super().__init__(alpha, **options)
        self.eta = _settings.number(type(self).__name__, "eta", eta)

    def plan(self, x: Tensor, draw: Draw) -> Plan:
        own = torch.arange(draw.size, device=draw.device)
        lam = draw.lam.expand(draw.size)
        both = torch.stack((torch.ones_like(lam), lam))
        return Plan(torch.stack((own, draw.index)), both, weight=both)

    def finish(self, x: Tensor, y: Tensor | None, plan: Plan, out: Tensor | None = None) -> MixBatch:
        batch = super().finish(x, y, plan, out)
        if self.eta != 1:
            factors = torch.full_like(plan.lam, 2 / (1 + self.eta))
            factors[1:] *= self.eta
            batch.lam, batch.lam_b = (factors * plan.lam).flatten(), (factors * (1 - plan.lam)).flatten()
        return batch
