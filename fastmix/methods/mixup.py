"""MixUp: a convex combination of two images (Zhang et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from fastmix.methods.base import Draw, MixMethod, Paper, alphas
from fastmix.plan import Plan


class MixUp(MixMethod):
    """``lam * x + (1 - lam) * x[index]`` with ``lam ~ Beta(alpha, alpha)``. ``x`` may have any shape ``(N, ...)``.

    Example:
        >>> batch = MixUp(alpha=0.2)(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    name = "mixup"
    paper = Paper("mixup: Beyond Empirical Risk Minimization", "Zhang et al.", 2018, "1710.09412")
    ops = ("blend",)
    alphas = alphas(1, 0.2, 1, 0.2, 0.2, 1)
    dims = None

    def plan(self, x: Tensor, draw: Draw) -> Plan:
        return Plan(draw.index, draw.lam, weight=draw.lam)
