"""No mixing: the plain baseline behind the same call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import ops
from fastmix.batch import MixBatch
from fastmix.methods.base import MixMethod


class NoMix(MixMethod):
    """The images as they are, with ``lam = 1`` and every image its own partner.

    Without ``normalize`` and ``dtype`` the returned ``x`` is the input tensor itself.

    Example:
        >>> batch = NoMix()(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
    ) -> MixBatch:
        """Return ``x`` and ``y`` as a batch; ``generator``, ``lam`` and ``index`` have no effect."""
        self._check(x, y)
        lam = torch.ones((), device=x.device)
        index = torch.arange(x.shape[0], device=x.device)
        if self.normalize is not None or self.dtype is not None:
            x = ops.blend(x, index, lam, **self.options(x))
        return MixBatch(x, y, y, lam, index)
