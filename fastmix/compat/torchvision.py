"""Drop-in replacements for torchvision's `v2.MixUp` and `v2.CutMix`; neither imports torchvision nor needs it.

    - from torchvision.transforms.v2 import CutMix, MixUp
    + from fastmix.compat.torchvision import CutMix, MixUp

For the same state of torch's global CPU generator they draw the same numbers in the same order as torchvision >= 0.28,
and boxes, labels, cut pixels of any dtype and blended float32 and float64 pixels are bit-equal. They are plain modules
that `v2.RandomChoice`, `v2.Compose` and collate functions take, and can be pickled. What differs, on purpose:

* uint8 images may be blended, rounded half to even; float16 and bfloat16 ones are rounded once.
* Segmentation masks, `tv_tensors.Mask` of shape (B, H, W) or (B, K, H, W), are mixed as the images are, where
  torchvision raises: cut, or with MixUp blended if they are floating and otherwise taken from the image that weighs
  more.
* Labels are float32 (float64 if they came so), also where they came as probabilities in half precision.
* The labels are never taken for the images, where torchvision takes the first plain tensor of the input.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastmix import _checks, _settings, ops
from fastmix.batch import MixBatch
from fastmix.plan import Plan


class _Mixer(nn.Module):
    """Finds images, masks and labels in any nest of containers, and mixes each sample with the one before it."""

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Callable[[Any], Any] | str | None = "default",
        soft: bool = True,
        backend: str | None = None,
        check_layout: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        if unknown:
            _settings.keywords(where, unknown, _settings.parameters(type(self)))
        if labels_getter is not None and labels_getter != "default" and not callable(labels_getter):
            raise ValueError(
                f"fastmix.{where}: labels_getter must be 'default', a callable or None, got {labels_getter!r}"
            )
        self.alpha = float(_settings.number(where, "alpha", alpha, above=True))
        self.num_classes = None if num_classes is None else _settings.whole(where, "num_classes", num_classes)
        self.labels_getter, self.backend = labels_getter, backend
        self.soft = _settings.flag(where, "soft", soft)
        self.check_layout = _settings.flag(where, "check_layout", check_layout)
        concentration = torch.tensor([self.alpha])
        self._dist = torch.distributions.Beta(concentration, concentration)

    def forward(self, *inputs: Any) -> Any:
        """The inputs, in the containers they came in, with images, masks and labels mixed."""
        inputs = inputs if len(inputs) > 1 else inputs[0]
        leaves, spec = tree_flatten(inputs)
        self._check_kinds(leaves)
        labels = self._labels(inputs)
        at = next((i for i, leaf in enumerate(leaves) if leaf is labels), None)
        if at is None:
            raise ValueError(f"fastmix.{type(self).__name__}: labels_getter must return one of the inputs")
        mixed = {i: leaves[i] for i in self._to_mix(leaves, labels)}
        params = self.make_params(list(mixed.values()))
        images = None
        for i, leaf in mixed.items():
            leaves[i] = self._mix(leaf, labels.shape[0], params)
            images = leaves[i] if images is None and not _is(leaf, "Mask") else images
        lam = params["lam_adjusted"] if "box" in params else params["lam"]
        leaves[at] = self._mixed_labels(labels, lam) if self.soft else self._batch(images, labels, params)
        return tree_unflatten(leaves, spec)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The draw for the images and masks `flat_inputs`."""
        raise NotImplementedError

    def _check_kinds(self, leaves: list[Any]) -> None:
        pil = getattr(sys.modules.get("PIL.Image"), "Image", None)
        for leaf in leaves:
            if _is(leaf, "BoundingBoxes", "KeyPoints") or (pil is not None and isinstance(leaf, pil)):
                raise ValueError(
                    f"fastmix.{type(self).__name__}: inputs must be tensors, without PIL images, bounding boxes and "
                    f"keypoints, got {type(leaf).__name__}"
                )

    def _labels(self, inputs: Any) -> Tensor:
        """The labels, checked."""
        where = f"fastmix.{type(self).__name__}"
        if self.labels_getter is None:
            labels = None
        else:
            labels = (_find_labels if self.labels_getter == "default" else self.labels_getter)(inputs)
        if not isinstance(labels, Tensor):
            raise ValueError(f"{where}: labels must be a tensor, got {type(labels).__name__}")
        if labels.dim() not in (1, 2):
            raise ValueError(f"{where}: labels must have shape (B,) or (B, num_classes), got {tuple(labels.shape)}")
        if labels.dim() == 1 and self.num_classes is None:
            raise ValueError(f"{where}: num_classes must be given for labels of shape (B,), got None")
        if labels.dim() == 1 and not labels.is_floating_point() and not labels.is_complex():
            last = self.num_classes - 1
            _checks.given_range(type(self).__name__, f"labels for num_classes={last + 1}", labels, 0, last)
        if labels.dim() == 2 and self.num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"{where}: labels must have shape (B, {self.num_classes}) for num_classes={self.num_classes}, "
                f"got {tuple(labels.shape)}"
            )
        return labels

    def _to_mix(self, leaves: list[Any], labels: Tensor) -> list[int]:
        """Positions of images, videos and masks. Without an image or video the first plain tensor is the images."""
        found, plain = [], not any(_is(leaf, "Image", "Video") for leaf in leaves)
        for i, leaf in enumerate(leaves):
            if leaf is labels or not isinstance(leaf, Tensor):
                continue
            if _is(leaf, "Image", "Video", "Mask"):
                found.append(i)
            elif plain and not _is(leaf, "TVTensor"):
                found.append(i)
                plain = False
        return found

    def _mix(self, leaf: Tensor, batch_size: int, params: dict[str, Any]) -> Tensor:
        x = leaf.as_subclass(Tensor) if _is(leaf, "TVTensor") else leaf
        mask = _is(leaf, "Mask")
        self._check_shape(leaf, (3, 4) if mask else (5,) if _is(leaf, "Video") else (4,), batch_size)
        mixed = self._mix_mask(x, params) if mask else self._mix_images(x, params)
        return mixed if x is leaf else sys.modules["torchvision.tv_tensors"].wrap(mixed, like=leaf)

    def _check_shape(self, leaf: Tensor, dims: tuple[int, ...], batch_size: int) -> None:
        where, kind = f"fastmix.{type(self).__name__}", type(leaf).__name__.lower()
        if leaf.dim() not in dims:
            wanted = " or ".join(map(str, dims))
            raise ValueError(f"{where}: a batch of {kind}s must have {wanted} dimensions, got {tuple(leaf.shape)}")
        if self.check_layout and not _is(leaf, "Mask"):
            _checks.channels_first(type(self).__name__, leaf)
        if leaf.shape[0] != batch_size:
            raise ValueError(f"{where}: {kind}s must be as many as labels, {batch_size}, got {leaf.shape[0]}")

    def _mix_images(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _mix_mask(self, mask: Tensor, params: dict[str, Any]) -> Tensor:
        return self._plan(mask, params).apply(mask, mask.shape[-2:])

    def _plan(self, x: Tensor, params: dict[str, Any]) -> Plan:
        raise NotImplementedError

    def _batch(self, images: Tensor | None, labels: Tensor, params: dict[str, Any]) -> MixBatch:
        if images is None:
            raise ValueError(f"fastmix.{type(self).__name__}: inputs must hold images, got none")
        plan = self._plan(images, params)
        y = labels if labels.is_floating_point() else labels.float() if labels.dim() == 2 else labels.long()
        box = None if plan.box is None else plan.box.expand(len(y), 4)
        return MixBatch(images, y, y.roll(1, 0), plan.lam, plan.index, box=box, plan=plan)

    def _mixed_labels(self, labels: Tensor, lam: float) -> Tensor:
        if labels.dim() == 2:
            labels = labels if labels.dtype is torch.float64 else labels.float()
            return labels.roll(1, 0).mul_(1.0 - lam).add_(labels.mul(lam))
        if labels.is_floating_point() or labels.is_complex():
            raise RuntimeError(
                f"fastmix.{type(self).__name__}: labels of shape (B,) must be class numbers, got {labels.dtype}"
            )
        y = labels.long().unsqueeze(1)
        own, other = (torch.full(y.shape, share, dtype=torch.float32, device=y.device) for share in (lam, 1.0 - lam))
        mixed = torch.zeros(len(y), self.num_classes, dtype=torch.float32, device=y.device)
        return mixed.scatter_(1, y, own).scatter_add_(1, y.roll(1, 0), other)

    def extra_repr(self) -> str:
        shown = {"alpha": self.alpha, "num_classes": self.num_classes, "soft": self.soft}
        return ", ".join(f"{name}={value}" for name, value in shown.items() if value is not None)


class MixUp(_Mixer):
    """torchvision's `v2.MixUp`: blends every image of a batch with the one before it, and their labels.

    `lam * x + (1 - lam) * x.roll(1, 0)` with one `lam ~ Beta(alpha, alpha)` (Zhang et al., 2018).

    Args:
        alpha: parameter of the Beta law, > 0.
        num_classes: number of classes; None where labels come as probabilities (B, num_classes).
        labels_getter: finds the labels in the input: a callable, or "default" for the second of two inputs, or what
            this or a dictionary holds under "labels" or a key with "label" in it.
        soft: put dense labels (B, num_classes) in the place of the labels; else a `fastmix.batch.MixBatch`, whose
            `loss(logits)` needs none.
        backend: fixed backend of the operation (default: chosen by device).
        check_layout: refuse images that look like (B, H, W, C), see `fastmix.methods.MixMethod`.

    Inputs are any nest of containers that holds images (B, C, H, W), plain or `tv_tensors.Image`, or a
    `tv_tensors.Video` (B, T, C, H, W), labels, and perhaps `tv_tensors.Mask`s; everything else passes through. The
    inputs are left as they are.

    Draws, from torch's global CPU generator: one Beta.

    Raises:
        TypeError: a keyword there is not.
        ValueError: `alpha` not positive and finite, another setting out of its range; on call, inputs of a kind, shape
            or batch size that does not fit, images that look like (B, H, W, C), labels not found, class numbers outside
            [0, num_classes) (on CUDA they are not read).
        RuntimeError: labels (B,) that are no whole numbers, with `soft`.

    Example:
        >>> mixup = MixUp(alpha=0.2, num_classes=10)
        >>> images, labels = mixup(images, labels)
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """`lam`, the weight of the own image."""
        return {"lam": float(self._dist.sample(()))}

    def _mix_images(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        return ops.blend(x, _before(x), params["lam"], backend=self.backend)

    def _plan(self, x: Tensor, params: dict[str, Any]) -> Plan:
        lam = torch.full((), params["lam"], dtype=torch.float32, device=x.device)
        return Plan(_before(x), lam, weight=lam)


class CutMix(_Mixer):
    """torchvision's `v2.CutMix`: pastes a box of the image before into every image of a batch, and mixes their labels.

    One box of sides `H * sqrt(1 - lam)`, `W * sqrt(1 - lam)` with `lam ~ Beta(alpha, alpha)`, halved towards zero on
    either side of a uniform pixel and clipped to the image; labels are weighted by the area that is left (Yun et al.,
    2019).

    Args, inputs and errors are those of `MixUp`; images may have any dtype. In addition:

    Raises:
        ValueError: on call, images and masks of several sizes.
        TypeError: on call, no image.

    Draws, from torch's global CPU generator: one Beta, the column and the row of the centre.

    Example:
        >>> cutmix_or_mixup = v2.RandomChoice([CutMix(num_classes=10), MixUp(num_classes=10)])
        >>> images, labels = cutmix_or_mixup(images, labels)
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """`box` as `(x0, y0, x1, y1)` and `lam_adjusted`, the share of the image that it leaves."""
        lam = float(self._dist.sample(()))
        sizes = {tuple(x.shape[-2:]) for x in flat_inputs}
        if len(sizes) != 1:
            kind, what = (ValueError, "must have one size") if sizes else (TypeError, "must hold images")
            raise kind(f"fastmix.CutMix: inputs {what}, got {sorted(sizes) or 'none'}")
        height, width = sizes.pop()
        column, row = (int(torch.randint(side, size=(1,))) for side in (width, height))
        ratio = 0.5 * math.sqrt(1.0 - lam)
        half_width, half_height = int(ratio * width), int(ratio * height)
        x0, x1 = max(column - half_width, 0), min(column + half_width, width)
        y0, y1 = max(row - half_height, 0), min(row + half_height, height)
        return {"box": (x0, y0, x1, y1), "lam_adjusted": float(1.0 - (x1 - x0) * (y1 - y0) / (width * height))}

    def _mix_images(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        values = x if x.dtype in _KINDS else x.view(_BITS[x.element_size()])
        flat = values if x.dim() == 4 else values.flatten(1, -3)
        mixed = ops.box_blend(flat, _before(x), _box(x, params), backend=self.backend)
        return mixed.view(x.shape).view(x.dtype) if values is not x or flat is not x else mixed

    def _plan(self, x: Tensor, params: dict[str, Any]) -> Plan:
        lam = torch.full((), params["lam_adjusted"], dtype=torch.float32, device=x.device)
        return Plan(_before(x), lam, box=_box(x, params))


_KINDS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BITS = {1: torch.uint8, 2: torch.float16, 4: torch.float32, 8: torch.float64}


def _before(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device).roll(1, 0)


def _box(x: Tensor, params: dict[str, Any]) -> Tensor:
    x0, y0, x1, y1 = params["box"]
    box = torch.tensor([y0, x0, y1, x1], dtype=torch.int32)
    return box.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else box.to(x.device)


def _is(leaf: Any, *names: str) -> bool:
    """Whether a leaf is one of these `torchvision.tv_tensors`, of which there is none before that is imported."""
    kinds = sys.modules.get("torchvision.tv_tensors")
    return kinds is not None and isinstance(leaf, tuple(getattr(kinds, name) for name in names if hasattr(kinds, name)))


def _find_labels(inputs: Any) -> Any:
    """The second of several inputs, or what it (or the only input) holds under a key that says labels."""
    found = inputs[1] if isinstance(inputs, (tuple, list)) else inputs
    if isinstance(found, Tensor) and not _is(found, "TVTensor"):
        return found
    if not isinstance(found, Mapping):
        raise ValueError(
            "fastmix.labels_getter: with 'default' the input must be a dictionary, or a pair whose second part is a "
            f"dictionary or a tensor, got {type(found).__name__}"
        )
    keys = [key for key in found if "label" in key.lower()]
    keys.sort(key=lambda key: key.lower() != "labels")
    if not keys:
        raise ValueError("fastmix.labels_getter: with 'default' a key of the dictionary must hold 'label', got none")
    return found[keys[0]]
