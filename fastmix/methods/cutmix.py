"""CutMix: a rectangle of the partner pasted into the image (Yun et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import ops
from fastmix.batch import MixBatch
from fastmix.methods.base import MixMethod, draw_uniform


class CutMix(MixMethod):
    """Pixels inside a random box come from the partner.

    With ``lam ~ Beta(alpha, alpha)`` and ``r = sqrt(1 - lam)`` the box has sides ``floor(W r)`` and
    ``floor(H r)`` (halved towards zero on each side of the centre) around a uniform pixel and is clipped to the
    image; the returned ``lam`` is ``1 - box area / (H W)``, the share that the own image really keeps. One box
    serves the batch, as in the published code, unless ``per_sample`` or ``lam (N,)`` asks for one an image.

    Raises:
        ValueError: images not ``(N, C, H, W)``.

    Example:
        >>> batch = CutMix(alpha=1.0)(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    def mix(self, x: Tensor, y: Tensor, lam: Tensor, index: Tensor, generator: torch.Generator | None) -> MixBatch:
        if x.dim() != 4:
            raise ValueError(f"fastmix.CutMix: x must have shape (N, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        centre = draw_uniform((2, *lam.shape), generator, x.device)
        box = random_box(lam, centre, height, width)  # [4] or [N, 4]
        size = (box[..., 2:] - box[..., :2]).prod(dim=-1)
        lam = 1 - size.float() / max(height * width, 1)
        box = box.expand(x.shape[0], 4).contiguous()
        mixed = ops.box_blend(x, index, box, **self.options(x))
        return MixBatch(mixed, y, y[index], lam, index, box=box)


def random_box(lam: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``(..., 4)`` int32 ``(y0, x0, y1, x1)`` of area share ``1 - lam``, clipped to the image.

    ``lam`` is ``(...)``; ``centre (2, ...)`` in ``[0, 1)`` gives row and column as parts of the sides.
    """
    ratio = (1 - lam.double()).clamp(0, 1).sqrt()
    low, high = [], []
    for side, place in ((height, centre[0]), (width, centre[1])):
        half = (side * ratio).floor().long() // 2
        # float32 rounding can lift a draw just below 1 to the side itself
        middle = (place * side).long().clamp(max=max(side - 1, 0))
        low.append((middle - half).clamp(0, side))
        high.append((middle + half).clamp(0, side))
    return torch.stack((*low, *high), dim=-1).int()
