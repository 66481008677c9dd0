"""What every mixing method returns: the mixed images with all that is known about their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmix.ops import mix_binary_cross_entropy, mix_cross_entropy, soft_cross_entropy
from fastmix.plan import Choice, Plan


@dataclass(eq=False)
class MixBatch:
    """A mixed batch of ``N`` images with the labels of both images of each pair.

    Attributes:
        x: the mixed images, ``(N, ...)``.
        y: class numbers of the own images, ``(N,)`` int64; or dense targets ``(N, K)``, floating. None: unlabelled.
        y_b: class numbers of their partners, ``y[index]``; None: unlabelled.
        lam: weight of the own image, float32 ``()`` or ``(N,)`` in ``[0, 1]``; where a method cuts, the share of
            the area that the own image really keeps.
        index: the partner of each image, ``(N,)`` int64.
        mask: weight of the own image for each position, ``(N, h, w)`` in ``[0, 1]``, where the method has one.
        box: rectangle taken from the partner, ``(N, 4)`` int32 ``(y0, x0, y1, x1)``, where the method has one.
        lam_b: weight of the partner, as ``lam``, where the two need not sum to 1; None: ``1 - lam``.
        plan: how the images were mixed, see :meth:`apply`.
        layer: name of the module inside which the images are yet to be mixed, for ``ManifoldMixup``.

    Example:
        >>> batch = fastmix.methods.CutMix()(images, labels)
        >>> loss = batch.loss(model(batch.x))
    """

    x: Tensor
    y: Tensor | None
    y_b: Tensor | None
    lam: Tensor
    index: Tensor
    mask: Tensor | None = None
    box: Tensor | None = None
    lam_b: Tensor | None = None
    plan: Plan | Choice | None = None
    layer: str | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def apply(self, t: Tensor, mode: str | None = None) -> Tensor:
        """Mix another tensor of the same ``N`` samples as the images were.

        Args:
            t: a map ``(N, H, W)`` or ``(N, K, H, W)`` of the size of the images: labels of a segmentation, of any
                dtype, a depth, a second view; or ``(N,)``, ``(N, K)``: dense labels, values of a regression, mixed by
                ``lam``. Of one-dimensional batches ``(N, C, L)`` the maps are ``(N, L)`` and ``(N, K, L)``.
            mode: "nearest": every position is copied from the image that weighs more there, the own one where both
                weigh 1/2; "bilinear": weighted as the images are. None: "nearest" for integers and bool, else
                "bilinear".

        Raises:
            TypeError: integers, other than uint8, with "bilinear".
            ValueError: a shape that does not fit the images.

        Example:
            >>> batch = fastmix.methods.CutMix()(images, labels)
            >>> segmentation = batch.apply(masks)
        """
        return self._plan().apply(t, self.x.shape[2:], mode)

    def pixel_weight(self) -> Tensor:
        """Weight of the own image at every pixel, ``(N, H, W)`` float32."""
        size = (1, 1, *self.x.shape[2:])[-2:]
        return self._plan().pixel_weight(*size)

    def _plan(self) -> Plan | Choice:
        if self.plan is not None:
            return self.plan
        flat = self.box is None and self.mask is None
        return Plan(self.index, self.lam, self.lam_b, weight=self.lam if flat else None, box=self.box, mask=self.mask)

    def soft(self, num_classes: int, smoothing: float = 0.0, kind: str = "ce") -> Tensor:
        """Dense mixed labels ``(N, num_classes)`` in the dtype of ``lam``: what :meth:`loss` compares with.

        Rounded as timm's ``mixup_target`` rounds them: with label smoothing ``e`` both one-hot labels become
        ``e / num_classes``, and ``1 - e + e / num_classes`` at the class, before they are weighted. Dense targets
        become ``(1 - e) * y + e / num_classes``, or for the ``kind`` "bce" ``(1 - e) * y + e / 2``.

        Raises:
            ValueError: dense targets of another number of classes.

        Example:
            >>> target = batch.soft(10, smoothing=0.1)
            >>> loss = torch.nn.functional.cross_entropy(model(batch.x), target)
        """
        self._need_labels("soft")
        lam, lam_b = (weight.expand(len(self)) for weight in self._weights())
        off = smoothing / num_classes
        on = 1 - smoothing + off
        if self.y.dim() == 2:
            if self.y.shape[1] != num_classes:
                raise ValueError(
                    f"fastmix.MixBatch.soft: num_classes must be {self.y.shape[1]}, that of the targets, "
                    f"got {num_classes}"
                )
            even = 0.5 * smoothing if kind == "bce" else off
            own, partner = (y.to(lam.dtype) * (1 - smoothing) + even for y in (self.y, self.y_b))
            return own * lam[:, None] + partner * lam_b[:, None]
        both = on * lam + on * lam_b
        values = [
            torch.where(self.y == self.y_b, both, one) for one in (on * lam + off * lam_b, off * lam + on * lam_b)
        ]
        rest = (off * lam + off * lam_b)[:, None].expand(-1, num_classes)
        return rest.scatter(1, torch.stack((self.y, self.y_b), 1), torch.stack(values, 1))

    def loss(
        self, logits: Tensor, smoothing: float = 0.0, reduction: str = "mean", kind: str = "ce", **options: Any
    ) -> Tensor:
        """Loss of ``logits (N, K)`` against both labels, weighted by ``lam`` and ``lam_b``.

        Args:
            kind: "ce": :func:`fastmix.ops.mix_cross_entropy`, or :func:`fastmix.ops.soft_cross_entropy` for dense
                targets; "bce": :func:`fastmix.ops.mix_binary_cross_entropy`.
            options: further arguments of that function, such as ``decouple``, ``threshold`` or ``ignore_index``.

        Example:
            >>> loss = batch.loss(logits, kind="bce", threshold=0.2)
        """
        self._need_labels("loss")
        if kind not in ("ce", "bce"):
            raise ValueError(f"fastmix.MixBatch.loss: kind must be one of ce, bce, got {kind!r}")
        labelled = mix_cross_entropy if self.y.dim() == 1 else soft_cross_entropy
        function = labelled if kind == "ce" else mix_binary_cross_entropy
        return function(logits, self.y, self.y_b, self.lam, smoothing, reduction, lam_b=self.lam_b, **options)

    def accuracy(self, logits: Tensor) -> Tensor:
        """Weighted top-1 accuracy ``mean(lam * [p == y] + lam_b * [p == y_b])``, a float32 ``()``.

        It cannot reach 1 on mixed images: the best prediction scores ``mean(max(lam, 1 - lam))``. Of dense targets the
        value at the predicted class takes the place of ``[p == y]``.
        """
        self._need_labels("accuracy")
        with torch.no_grad():
            predicted = logits.argmax(dim=1)
            lam, lam_b = self._weights()
            if self.y.dim() == 2:
                own, partner = (y.gather(1, predicted[:, None])[:, 0] for y in (self.y, self.y_b))
            else:
                own, partner = predicted == self.y, predicted == self.y_b
            return (lam * own + lam_b * partner).mean()

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.lam, 1 - self.lam if self.lam_b is None else self.lam_b

    def _need_labels(self, what: str) -> None:
        if self.y is None:
            raise ValueError(
                f"fastmix.MixBatch.{what}: the batch has no labels: it was mixed with y=None; "
                "its x, lam, index and apply are all there is"
            )
