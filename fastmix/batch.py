"""What every mixing method returns: the mixed images with all that is known about their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmix.losses import mix_cross_entropy


@dataclass(eq=False)
class MixBatch:
    """A mixed batch of ``N`` images with the labels of both images of each pair.

    Attributes:
        x: the mixed images, ``(N, ...)``.
        y: class numbers of the own images, ``(N,)`` int64.
        y_b: class numbers of their partners, ``y[index]``.
        lam: weight of the own image, float32 ``()`` or ``(N,)`` in ``[0, 1]``; where a method cuts, the share of
            the area that the own image really keeps.
        index: the partner of each image, ``(N,)`` int64.
        mask: weight of the own image for each position, ``(N, h, w)`` in ``[0, 1]``, where the method has one.
        box: rectangle taken from the partner, ``(N, 4)`` int32 ``(y0, x0, y1, x1)``, where the method has one.

    Example:
        >>> batch = fastmix.methods.CutMix()(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    x: Tensor
    y: Tensor
    y_b: Tensor
    lam: Tensor
    index: Tensor
    mask: Tensor | None = None
    box: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def soft(self, num_classes: int, smoothing: float = 0.0) -> Tensor:
        """Dense mixed labels ``(N, num_classes)`` in the dtype of ``lam``, each row summing to 1.

        Label smoothing ``e`` as in timm: both one-hot labels become ``(1 - e) * one_hot + e / num_classes``.

        Example:
            >>> target = batch.soft(10, smoothing=0.1)
            >>> loss = torch.nn.functional.cross_entropy(model(batch.x), target)
        """
        lam = self.lam.expand(len(self))
        values = torch.stack((lam, 1 - lam), dim=1) * (1 - smoothing)  # [N, 2]
        pair = torch.stack((self.y, self.y_b), dim=1)
        target = torch.full((len(self), num_classes), smoothing / num_classes, dtype=lam.dtype, device=lam.device)
        return target.scatter_add(1, pair, values)

    def loss(self, logits: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        """:func:`fastmix.losses.mix_cross_entropy` of ``logits (N, K)`` against both labels."""
        return mix_cross_entropy(logits, self.y, self.y_b, self.lam, smoothing, reduction)

    def accuracy(self, logits: Tensor) -> Tensor:
        """Weighted top-1 accuracy ``mean(lam * [p == y] + (1 - lam) * [p == y_b])``, a float32 ``()`` in ``[0, 1]``.

        It cannot reach 1 on mixed images: the best prediction scores ``mean(max(lam, 1 - lam))``.
        """
        with torch.no_grad():
            predicted = logits.argmax(dim=1)
            hits = self.lam * (predicted == self.y) + (1 - self.lam) * (predicted == self.y_b)
            return hits.mean()
