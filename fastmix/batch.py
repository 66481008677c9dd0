"""What every mixing method returns: the mixed images with all that is known about their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastmix import _checks, labels
from fastmix.ops import mix_binary_cross_entropy, mix_cross_entropy, soft_cross_entropy
from fastmix.plan import Choice, Plan, register_tree
from fastmix.reference.mix_cross_entropy import one_hot, reduced, weighted

KINDS = ("ce", "bce")
REDUCTIONS = ("none", "mean", "sum")


@register_tree
@dataclass(eq=False)
class MixBatch:
    """A mixed batch of ``N`` images with the labels of both images of each pair.

    Attributes:
        x: the mixed images, ``(N, ...)``.
        y: labels of the own images, of one of the kinds below; None: unlabelled.
        y_b: labels of their partners, ``y[index]``; None: unlabelled.
        lam: weight of the own image, float32 ``()`` or ``(N,)`` in ``[0, 1]``; where a method cuts, the share of
            the area that the own image really keeps.
        index: the partner of each image, ``(N,)`` int64.
        mask: weight of the own image for each position, ``(N, h, w)`` in ``[0, 1]``, where the method has one.
        box: rectangle taken from the partner, ``(N, 4)`` int32 ``(y0, x0, y1, x1)``, where the method has one.
        lam_b: weight of the partner, as ``lam``, where the two need not sum to 1; None: ``1 - lam``.
        plan: how the images were mixed, see :meth:`apply`.
        layer: name of the module inside which the images are yet to be mixed, for ``ManifoldMixup``.

    Labels, for ``K`` logits a sample (:meth:`loss`, :meth:`soft`, :meth:`accuracy`):

    * integers of any width, or bool, ``(N,)`` or ``(N, 1)``: class numbers in ``[0, K)`` or ``ignore_index``. A number
      out of range raises ValueError on the CPU; on CUDA, where values are not read, its row is NaN.
    * any dtype ``(N, K)``, ``K > 1``: dense targets, several labels or probabilities.
    * any dtype ``(N,)`` or ``(N, 1)`` with the ``kind`` "bce" and one logit, ``(N, 1)`` or ``(N,)``: targets in
      ``[0, 1]``, NaN (for integers ``ignore_index``) where there is none.
    * anything else, the values of a regression among it: with a ``criterion`` only, see :meth:`loss`. :meth:`apply`
      mixes the values themselves.

    A weight of exactly 0 takes its label out: whatever it holds, it adds nothing to a loss or a gradient.

    A batch is a pytree of its tensors, and moves as a whole: :meth:`to`, :meth:`cpu`, :meth:`cuda`, :meth:`pin_memory`.

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

    def to(self, *args: Any, **kwargs: Any) -> MixBatch:
        """The batch on another device, with the arguments of ``Tensor.to``, without ``copy``.

        A dtype and a memory format are those of the images ``x``; labels, weights and masks keep theirs.

        Example:
            >>> batch = batch.to("cuda", non_blocking=True)
        """
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {} if memory_format is None else {"memory_format": memory_format}
        x = self.x.to(device, dtype, non_blocking, **options)
        moved = self if device is None else self._each(lambda t: t.to(device, non_blocking=non_blocking), {self.x: x})
        return replace(moved, x=x)

    def cpu(self) -> MixBatch:
        """The batch on the CPU."""
        return self.to("cpu")

    def cuda(self, device: torch.device | int | str | None = None, non_blocking: bool = False) -> MixBatch:
        """The batch on a CUDA device, the current one by default."""
        device = torch.device("cuda", device) if isinstance(device, int) else device or "cuda"
        return self.to(device, non_blocking=non_blocking)

    def pin_memory(self) -> MixBatch:
        """The batch in page-locked memory, as the workers of a ``DataLoader`` ask for it."""
        return self._each(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of all CUDA tensors from being used again before ``stream`` has reached this point."""

        def record(t: Tensor) -> Tensor:
            if t.is_cuda:
                t.record_stream(stream)
            return t

        self._each(record)

    def _each(self, function: Callable[[Tensor], Tensor], done: dict[Tensor, Tensor] | None = None) -> MixBatch:
        """The batch of ``function(t)`` for its tensors; batch and plan go on sharing those that they share."""
        made = dict(done or {})

        def once(t: Tensor) -> Tensor:
            if t not in made:
                made[t] = function(t)
            return made[t]

        return tree_map_only(Tensor, once, self)

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

    def soft(
        self, num_classes: int, smoothing: float = 0.0, kind: str = "ce", *, ignore_index: int = labels.IGNORED
    ) -> Tensor:
        """Dense mixed labels ``(N, num_classes)`` in the dtype of ``lam``: what :meth:`loss` compares with.

        Rounded as timm's ``mixup_target`` rounds them: with label smoothing ``e`` both one-hot labels become
        ``e / num_classes``, and ``1 - e + e / num_classes`` at the class, before they are weighted. Dense targets
        become ``(1 - e) * y + e / num_classes``, or for the ``kind`` "bce" ``(1 - e) * y + e / 2``. A label that is
        ``ignore_index`` is left out with its weight: the row of a sample without a label is 0.

        Raises:
            TypeError, ValueError: labels that do not fit ``num_classes``; class numbers out of range.

        Example:
            >>> target = batch.soft(10, smoothing=0.1)
            >>> loss = torch.nn.functional.cross_entropy(model(batch.x), target)
        """
        _one_of("soft", "kind", kind, KINDS)
        own, partner = self._targets("soft", num_classes, kind, ignore_index)
        counts, (lam, lam_b) = self._counted(own, partner, ignore_index)
        if own.dim() == 2:
            own, partner = (_smoothed(y.to(lam.dtype), smoothing, kind) for y in (own, partner))
            return weighted(lam[:, None], own) + weighted(lam_b[:, None], partner)
        inside = [(y >= 0) & (y < num_classes) for y in (own, partner)]
        # Of class numbers that cannot be read, on CUDA, those out of range make their row NaN.
        lam, lam_b = (
            torch.where(ok | ~count, weight, torch.nan)
            for ok, count, weight in zip(inside, counts, (lam, lam_b), strict=True)
        )
        # A label that is left out, of weight 0, goes where the other one is.
        own = torch.where(inside[0], own, torch.where(inside[1], partner, 0))
        partner = torch.where(inside[1], partner, own)
        off = smoothing / num_classes
        on = 1 - smoothing + off
        both = on * lam + on * lam_b
        values = [torch.where(own == partner, both, one) for one in (on * lam + off * lam_b, off * lam + on * lam_b)]
        rest = (off * lam + off * lam_b)[:, None].expand(-1, num_classes)
        return rest.scatter(1, torch.stack((own, partner), 1), torch.stack(values, 1))

    def loss(
        self,
        logits: Tensor,
        smoothing: float = 0.0,
        reduction: str = "mean",
        kind: str = "ce",
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        ignore_index: int = labels.IGNORED,
        **options: Any,
    ) -> Tensor:
        """Loss of ``logits (N, K)`` against both labels, weighted by ``lam`` and ``lam_b``.

        Args:
            kind: "ce": :func:`fastmix.ops.mix_cross_entropy`, or :func:`fastmix.ops.soft_cross_entropy` for dense
                targets; "bce": :func:`fastmix.ops.mix_binary_cross_entropy`, for one logit too.
            criterion: any loss instead, ``lam * criterion(logits, y) + lam_b * criterion(logits, y_b)``, with class
                numbers as int64 and values in the shape of ``logits``. It must not reduce over samples
                (``torch.nn.MSELoss(reduction="none")``): of ``(N, ...)`` the mean is taken over all but the samples,
                then weighted, then reduced. One that returns ``()`` is taken where ``lam`` is ``()`` too.
            weight: of the classes, ``(K,)``. The loss is ``F.cross_entropy(logits, batch.soft(K, e), weight)``, or
                ``F.binary_cross_entropy_with_logits``: without smoothing a row is
                ``lam * weight[y] * CE(y) + lam_b * weight[y_b] * CE(y_b)``, and the mean is over rows, as PyTorch has
                it for dense targets. (For class numbers it divides by the sum of ``weight[y]``: take "sum" for that.)
            pos_weight: of a target of 1, ``(K,)``, with the ``kind`` "bce".
            ignore_index: class numbers left out with their weights; a row without a label is not in the mean.
            options: further arguments of the function, such as ``decouple``, ``threshold`` or ``backend``.

        Raises:
            TypeError, ValueError: labels that do not fit the logits, see :class:`MixBatch`; a criterion that reduces
                where each sample has its own ``lam``; options that do not go together.

        Example:
            >>> loss = batch.loss(logits, kind="bce", threshold=0.2)
            >>> loss = batch.loss(model(batch.x), criterion=torch.nn.SmoothL1Loss(reduction="none"))
        """
        if criterion is not None:
            if smoothing or kind != "ce" or options or weight is not None or pos_weight is not None:
                raise ValueError(
                    "fastmix.MixBatch.loss: criterion= cannot be combined with smoothing, kind, weight, pos_weight or "
                    f"options of the built-in losses, got {', '.join(options) or 'one of the first four'}"
                )
            return self._criterion_loss(criterion, logits, reduction)
        _one_of("loss", "kind", kind, KINDS)
        binary = kind == "bce"
        if not isinstance(logits, Tensor) or logits.dim() not in ((1, 2) if binary else (2,)):
            raise ValueError(f"fastmix.MixBatch.loss: logits must have shape (N, K), got {_checks.describe(logits)}")
        logits = logits[:, None] if logits.dim() == 1 else logits
        single = binary and logits.shape[1] == 1
        # The ops look at class numbers themselves.
        own, partner = self._targets("loss", logits.shape[1], kind, ignore_index if single else None)
        if weight is not None or pos_weight is not None:
            classes = {"weight": weight, "pos_weight": pos_weight}
            return self._class_weighted_loss(
                logits, own, partner, smoothing, reduction, kind, ignore_index, classes, options
            )
        if single:
            counts, (lam, lam_b) = self._counted(own, partner, ignore_index)
            own, partner = (torch.where(count[:, None], y, 0) for count, y in zip(counts, (own, partner), strict=True))
            rows = mix_binary_cross_entropy(logits, own, partner, lam, smoothing, "none", lam_b=lam_b, **options)
            return _reduced("loss", rows, counts[0] | counts[1], reduction)
        if own.dim() == 1:
            options["ignore_index"] = ignore_index
        labelled = mix_cross_entropy if own.dim() == 1 else soft_cross_entropy
        function = mix_binary_cross_entropy if binary else labelled
        return function(logits, own, partner, self.lam, smoothing, reduction, lam_b=self.lam_b, **options)

    def _class_weighted_loss(
        self,
        logits: Tensor,
        own: Tensor,
        partner: Tensor,
        smoothing: float,
        reduction: str,
        kind: str,
        ignore_index: int,
        classes: dict[str, Tensor | None],
        options: dict[str, Any],
    ) -> Tensor:
        count = logits.shape[1]
        acc = torch.float64 if logits.dtype is torch.float64 else torch.float32
        given = {name: _class_weight(name, value, logits, acc) for name, value in classes.items() if value is not None}
        known = ("backend",) if kind == "ce" else ("threshold", "sum_classes")
        extra = [name for name in options if name not in known] + ["pos_weight"] * (
            kind == "ce" and "pos_weight" in given
        )
        if extra:
            raise ValueError(
                f"fastmix.MixBatch.loss: class weights of the kind {kind!r} cannot be combined with {', '.join(extra)}"
            )
        counts, (lam, lam_b) = self._counted(own, partner, ignore_index)
        if kind == "bce":
            soft = self.soft(count, smoothing, kind, ignore_index=ignore_index).to(acc)
            if options.get("threshold") is not None:
                soft = (soft > options["threshold"]).to(acc)
            terms = F.binary_cross_entropy_with_logits(logits.to(acc), soft, **given, reduction="none")
            rows = terms.sum(1) if options.get("sum_classes") else terms.mean(1)
            return _reduced("loss", rows, counts[0] | counts[1], reduction)
        weight = given["weight"]
        if own.dim() == 1 and not smoothing:
            lam, lam_b = (
                part * weight[torch.where((y >= 0) & (y < count), y, 0)]
                for part, y in zip((lam, lam_b), (own, partner), strict=True)
            )
            options["ignore_index"] = ignore_index
            return mix_cross_entropy(logits, own, partner, lam, 0.0, reduction, lam_b=lam_b, **options)
        if own.dim() == 1:
            self._targets("loss", count, kind, ignore_index)  # looks at the class numbers
            own, partner = (one_hot(y, logits).to(acc) for y in (own, partner))
        own, partner = (_smoothed(y.to(acc), smoothing, kind) * weight for y in (own, partner))
        rows = soft_cross_entropy(logits, own, partner, lam, reduction="none", lam_b=lam_b, **options)
        return _reduced("loss", rows, counts[0] | counts[1], reduction)

    def _criterion_loss(self, criterion: Callable, logits: Tensor, reduction: str) -> Tensor:
        where, total = "MixBatch.loss", 0
        self._need_labels("loss")
        if not callable(criterion):
            raise TypeError(f"fastmix.{where}: criterion must be callable, got {_checks.describe(criterion)}")
        for name, y, weight in zip(("y", "y_b"), (self.y, self.y_b), self._weights(), strict=True):
            rows = criterion(logits, labels.like_outputs(where, name, y, logits))
            if not isinstance(rows, Tensor) or rows.shape[:1] not in ((), (len(self),)):
                raise ValueError(
                    f"fastmix.{where}: criterion must return () or ({len(self)}, ...), got {_checks.describe(rows)}"
                )
            if rows.dim() == 0 and (weight.dim() or reduction != "mean"):
                raise ValueError(
                    f"fastmix.{where}: criterion has reduced over the samples, but "
                    + ("each has its own lam" if weight.dim() else f"reduction is {reduction!r}")
                    + '; give it reduction="none"'
                )
            rows = rows.flatten(1).mean(1) if rows.dim() > 1 else rows
            total = total + weighted(weight, rows)
        counted = torch.ones_like(total, dtype=torch.bool)
        return total if total.dim() == 0 else _reduced("loss", total, counted, reduction)

    def accuracy(self, logits: Tensor, *, ignore_index: int = labels.IGNORED) -> Tensor:
        """Weighted top-1 accuracy ``mean(lam * [p == y] + lam_b * [p == y_b])``, a float32 ``()``.

        It cannot reach 1 on mixed images: the best prediction scores ``mean(max(lam, 1 - lam))``. Of dense targets the
        value at the predicted class takes the place of ``[p == y]``; one logit predicts 1 where it is above 0. A label
        that is ``ignore_index`` is left out with its weight, and a row without a label takes no part in the mean.

        Raises:
            TypeError, ValueError: labels that do not fit the logits, see :class:`MixBatch`.
        """
        with torch.no_grad():
            logits = logits[:, None] if logits.dim() == 1 else logits
            kind = "bce" if logits.shape[1] == 1 else "ce"
            own, partner = self._targets("accuracy", logits.shape[1], kind, ignore_index)
            counts, weights = self._counted(own, partner, ignore_index)
            predicted = logits.argmax(1)
            score = 0
            for count, weight, y in zip(counts, weights, (own, partner), strict=True):
                if y.dim() == 1:
                    right = predicted == y
                elif kind == "bce":
                    right = torch.where(logits > 0, y, 1 - y)[:, 0]
                else:
                    right = y.gather(1, predicted[:, None])[:, 0]
                score = score + weight * torch.where(count, right, 0)
            return reduced(score, counts[0] | counts[1], "mean").float()

    def _targets(self, where: str, classes: int, kind: str, ignore_index: int | None) -> tuple[Tensor, Tensor]:
        """Both labels as the losses read them."""
        self._need_labels(where)
        named = (("y", self.y), ("y_b", self.y_b))
        own, partner = (
            labels.targets(f"MixBatch.{where}", name, y, classes, kind == "bce", ignore_index) for name, y in named
        )
        return own, partner

    def _counted(self, own: Tensor, partner: Tensor, ignore_index: int) -> tuple[list[Tensor], list[Tensor]]:
        """Which labels count, and the weights ``(N,)`` with 0 for the others."""
        counts = [labels.counted(y, ignore_index) for y in (own, partner)]
        weights = [torch.where(count, weight, 0) for count, weight in zip(counts, self._weights(), strict=True)]
        return counts, weights

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.lam, 1 - self.lam if self.lam_b is None else self.lam_b

    def _need_labels(self, what: str) -> None:
        if self.y is None:
            raise ValueError(
                f"fastmix.MixBatch.{what}: the batch has no labels: it was mixed with y=None; "
                "its x, lam, index and apply are all there is"
            )


def _one_of(where: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    _checks.one_of(f"MixBatch.{where}", name, value, allowed)


def _reduced(where: str, rows: Tensor, counted: Tensor, reduction: str) -> Tensor:
    _one_of(where, "reduction", reduction, REDUCTIONS)
    return reduced(rows, counted, reduction)


def _smoothed(y: Tensor, smoothing: float, kind: str) -> Tensor:
    """Dense targets with label smoothing."""
    return y * (1 - smoothing) + (0.5 * smoothing if kind == "bce" else smoothing / y.shape[1])


def _class_weight(name: str, value: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor:
    _checks.floating("MixBatch.loss", name, value, (logits.shape[1],), logits)
    return value.to(dtype)
