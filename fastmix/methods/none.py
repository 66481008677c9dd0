"""No mixing: the plain baseline behind the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmix.batch import MixBatch
from fastmix.methods.base import Draw, MixMethod
from fastmix.plan import Plan


class NoMix(MixMethod):
    """The images as they are, with ``lam = 1`` and every image its own partner.

    Without ``normalize`` and ``dtype`` the returned ``x`` is the input tensor itself. ``p`` has no effect.

    Example:
        >>> batch = NoMix()(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    name = "none"
    ops = ("blend",)
    dims = None
    uses_alpha = False

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        *,
        out: Tensor | None = None,
        **given: Any,
    ) -> MixBatch:
        """Return ``x`` and ``y`` as a batch; what decides the mixing has no effect."""
        self._check(x, y)
        plan = self._alone(x)
        if self.normalize is not None or self.dtype is not None or out is not None:
            return self.finish(x, y, plan, out)
        return MixBatch(x, y, None if y is None else y.view_as(y), plan.lam, plan.index, plan=plan)

    @property
    def draws_lam(self) -> bool:
        return False

    def plan(self, x: Tensor, draw: Draw) -> Plan:
        return self._alone(x)

    def _alone(self, x: Tensor) -> Plan:
        return Plan(torch.arange(x.shape[0], device=x.device), torch.ones((), device=x.device))
