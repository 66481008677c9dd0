"""SaliencyMix: the box of CutMix around the most salient point of the partner (Uddin et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmix import _checks, ops
from fastmix.methods.base import Draw, MixMethod, Paper, alphas
from fastmix.methods.cutmix import share_outside
from fastmix.plan import Plan


class SaliencyMix(MixMethod):
    """CutMix with the centre of the box at the peak of the partner's fine-grained saliency.

    The box has sides ``floor(W r)`` and ``floor(H r)`` with ``r = sqrt(1 - lam)``, is clipped to the image and pasted
    at the same place; the returned ``lam (N,)`` is ``1 - box area / (H W)``. Each image has its own map and box, unless
    ``mode="batch"``, in which the box of the first partner serves the batch, as in the published code.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method; ``mode`` is "sample" by
            default.
        mean, std: of the normalisation that floating images have, see ``fastmix.ops.fine_grained_saliency``.

    Example:
        >>> batch = SaliencyMix(alpha=0.2)(images, labels)
    """

    name = "saliencymix"
    paper = Paper("SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization",
                  "Uddin et al.", 2021, "2006.01791")  # fmt: skip
    ops = ("fine_grained_saliency", "saliency_box", "box_blend")
    alphas = alphas(0.2, 0.2, 1, 1, 0.2, 0.2)
    default_mode = "sample"

    def __init__(
        self,
        alpha: float | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        self._require((mean is None) is (std is None), "mean and std must be given together", (mean, std))
        self.mean = None if mean is None else _checks.constants(type(self).__name__, "mean", mean)
        self.std = None if std is None else _checks.constants(type(self).__name__, "std", std, positive=True)

    def plan(self, x: Tensor, draw: Draw, saliency: Tensor | None = None) -> Plan:
        """See ``MixMethod.plan``.

        Args:
            saliency: maps ``(N, H, W)`` of the images instead of the fine-grained ones.
        """
        shared = draw.lead == ()
        seen = draw.index[:1] if shared else draw.index
        if saliency is None:
            maps = ops.fine_grained_saliency(x[seen] if shared else x, self.mean, self.std)
            maps = maps if shared else maps[seen]
        else:
            maps = draw.check(saliency, "saliency", tuple(x.shape[2:])).expand(draw.size, -1, -1)[seen]
        box = ops.saliency_box(maps, draw.lam).expand(draw.size, 4)
        return Plan(draw.index, share_outside(box, *x.shape[2:]), box=box)
