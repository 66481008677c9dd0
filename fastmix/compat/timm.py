"""Drop-in replacements for timm's `Mixup` and `FastCollateMixup`; neither imports timm nor needs it.

    - from timm.data import Mixup
    + from fastmix.compat.timm import Mixup

For the same state of numpy's global generator they draw the same numbers in the same order as timm >= 1.0.29 (whose
boxes differ from those of earlier versions): boxes, labels, cut pixels of any dtype and blended float32 and collated
uint8 pixels are bit-equal. What differs, on purpose:

* Odd batches are allowed. The middle sample of one is its own partner: it keeps its image and label, and no box is
  drawn for it.
* Labels are float32 and weighted in float32 whatever the images are. timm weights those of "pair" and "elem" in the
  dtype of the images, so that uint8 images get the partner's label alone, and half-precision ones rows that are off by
  up to 3e-3.
* uint8 images may be blended in every mode, rounded half to even; float16 and bfloat16 ones are rounded once.
* Images of more than four dimensions are cut in the last two.
* `FastCollateMixup` leaves the images it is given alone; timm's "pair" mode writes to them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from fastmix import _checks, _settings, ops
from fastmix.batch import MixBatch
from fastmix.plan import Plan

MODES = ("batch", "pair", "elem")


def one_hot(x: Tensor, num_classes: int, on_value: float = 1.0, off_value: float = 0.0) -> Tensor:
    """`x` class numbers, any shape of N values, as (N, num_classes) float32 of `off_value` and one `on_value` a row.

    Raises:
        ValueError: class numbers outside [0, num_classes); on CUDA they are not read, and the device asserts.
    """
    _checks.given_range("one_hot", f"class numbers for num_classes={num_classes}", x, 0, num_classes - 1)
    x = x.long().reshape(-1, 1)
    off = torch.full((x.shape[0], num_classes), off_value, dtype=torch.float32, device=x.device)
    return off.scatter_(1, x, on_value)


def mixup_target(
    target: Tensor,
    num_classes: int,
    lam: float | Tensor = 1.0,
    smoothing: float = 0.0,
    multi_label: bool = False,
) -> Tensor:
    """Labels mixed with those of the flipped batch: `y * lam + y.flip(0) * (1 - lam)`, (N, num_classes) float32.

    Args:
        target: (N,) class numbers; with `multi_label` dense (N, num_classes) labels in [0, 1].
        lam: weight of the own label, a number or (N, 1).
        smoothing: e, which makes of a one-hot y `(1 - e) * y + e / num_classes`, of a dense one `(1 - e) * y + e / 2`.

    Raises:
        ValueError: `multi_label` without dense targets; class numbers outside [0, num_classes).
    """
    lam = lam.float() if isinstance(lam, Tensor) else float(lam)
    if multi_label:
        y = _smoothed(target, num_classes, smoothing)
    else:
        off_value = smoothing / num_classes
        y = one_hot(target, num_classes, 1.0 - smoothing + off_value, off_value)
    return y.flip(0).mul_(1.0 - lam).add_(y.mul_(lam))


def _smoothed(target: Tensor, num_classes: int, smoothing: float) -> Tensor:
    if target.dim() != 2 or target.shape[1] != num_classes:
        raise ValueError(
            f"fastmix.mixup_target: target must be dense (N, {num_classes}) with multi_label, got {tuple(target.shape)}"
        )
    return target.float() * (1.0 - smoothing) + 0.5 * smoothing


def rand_bbox(img_shape: Sequence[int], lam: float, margin: float = 0.0, count: int | None = None) -> tuple:
    """CutMix's box of area share `1 - lam` around a uniform pixel, clipped to the image: (y0, y1, x0, x1).

    Args:
        img_shape: (..., H, W).
        margin: share of the box's sides by which its centre keeps away from the border.
        count: None for one box of numbers, else arrays of so many.
    """
    ratio = np.sqrt(1 - lam)
    ends = []
    for side in img_shape[-2:]:
        cut = int(side * ratio)
        edge = int(margin * cut)
        middle = np.random.randint(edge, side - edge, size=count)
        low, high = middle - cut // 2, middle + (cut + 1) // 2
        # numpy is slow on single numbers.
        ends += [max(low, 0), min(high, side)] if count is None else [np.maximum(low, 0), np.minimum(high, side)]
    return tuple(ends)


def rand_bbox_minmax(img_shape: Sequence[int], minmax: Sequence[float], count: int | None = None) -> tuple:
    """A box anywhere in the image whose sides are a uniform share in `minmax` of the image's: (y0, y1, x0, x1)."""
    assert len(minmax) == 2
    sides = img_shape[-2:]
    cuts = [np.random.randint(int(side * minmax[0]), int(side * minmax[1]), size=count) for side in sides]
    starts = [np.random.randint(0, side - cut + 1, size=count) for side, cut in zip(sides, cuts, strict=True)]
    (y0, x0), (height, width) = starts, cuts
    return y0, y0 + height, x0, x0 + width


def cutmix_bbox_and_lam(
    img_shape: Sequence[int],
    lam: float,
    ratio_minmax: Sequence[float] | None = None,
    correct_lam: bool = True,
    count: int | None = None,
) -> tuple[tuple, float]:
    """A box, and `lam` or (always with `ratio_minmax`) the share of the image that the box leaves."""
    if ratio_minmax is not None:
        y0, y1, x0, x1 = rand_bbox_minmax(img_shape, ratio_minmax, count=count)
    else:
        y0, y1, x0, x1 = rand_bbox(img_shape, lam, count=count)
    if correct_lam or ratio_minmax is not None:
        lam = 1.0 - (y1 - y0) * (x1 - x0) / float(img_shape[-2] * img_shape[-1])
    return (y0, y1, x0, x1), lam


class _Draw(NamedTuple):
    """One draw for a batch of N: numbers for all of it, or arrays (N,) float32 and (N, 4) int32."""

    lam: float | np.ndarray  # weight of the own label
    weight: float | np.ndarray | None  # weight of the own pixels outside the box; None: 1
    box: np.ndarray | None


class _Parameters:
    """Constructor, attributes and draws of timm's objects."""

    _modes: tuple[str, ...] = MODES

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        check_layout: bool = True,
        **unknown: Any,
    ) -> None:
        where = type(self).__name__
        if unknown:
            _settings.keywords(where, unknown, _settings.parameters(type(self)))
        for name, value in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            _settings.number(where, name, value)
        for name, value in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            _settings.number(where, name, value, 0, 1)
        if cutmix_minmax is not None:
            _settings.interval(where, "cutmix_minmax", cutmix_minmax, 0, 1)
        _settings.one_of(where, "mode", mode, self._modes)
        _settings.whole(where, "num_classes", num_classes)
        self.check_layout = _settings.flag(where, "check_layout", check_layout)
        self.mixup_alpha = mixup_alpha
        # Sides drawn from minmax need no Beta law, but its draw is made.
        self.cutmix_alpha = cutmix_alpha if cutmix_minmax is None else 1.0
        self.cutmix_minmax = cutmix_minmax
        self.mix_prob = prob
        self.switch_prob = switch_prob
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.mode = mode
        self.correct_lam = correct_lam
        self.mixup_enabled = True

    def _check_batch(self, x: Tensor, target: Tensor) -> None:
        """Before anything is written: as many labels as images, class numbers in range, channels before pixels."""
        where, classes = type(self).__name__, self.num_classes
        _checks.samples(where, x, target, "target")
        if self.check_layout:
            if x.dim() == 3 and x.shape[0] in (1, 3):  # timm's own takes even batches only
                raise ValueError(
                    f"fastmix.{where}: x looks like a single image (C, H, W), got {tuple(x.shape)}; it needs a batch "
                    "dimension, x[None], or check_layout=False if it is a batch"
                )
            _checks.channels_first(where, x)
        if self.multi_label:
            if target.dim() != 2 or target.shape[1] != classes:
                raise ValueError(
                    f"fastmix.{where}: target must be dense (N, {classes}) with multi_label, got {tuple(target.shape)}"
                )
            return
        if target.numel() != x.shape[0] or target.is_complex():
            raise ValueError(
                f"fastmix.{where}: target must hold one class number an image, ({x.shape[0]},), or be dense with "
                f"multi_label=True, got {_checks.describe(target)}"
            )
        _checks.given_range(where, f"class numbers for num_classes={classes}", target, 0, classes - 1)

    def _params_per_elem(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights (N,) float32, 1 for samples left alone, and which of them are cut (N,) bool."""
        lam, use_cutmix = np.ones(batch_size, dtype=np.float32), np.zeros(batch_size, dtype=bool)
        if not self.mixup_enabled:
            return lam, use_cutmix
        blends, cuts = self._active()
        if blends and cuts:
            use_cutmix = np.random.rand(batch_size) < self.switch_prob
        elif cuts:
            use_cutmix = np.ones(batch_size, dtype=bool)
        drawn = []
        for alpha, active in ((self.cutmix_alpha, cuts), (self.mixup_alpha, blends)):
            if active:
                drawn.append(np.random.beta(alpha, alpha, size=batch_size))
        mixed = np.where(use_cutmix, drawn[0], drawn[-1]).astype(np.float32)
        return np.where(np.random.rand(batch_size) < self.mix_prob, mixed, lam), use_cutmix

    def _params_per_batch(self) -> tuple[float, bool]:
        """One weight, 1 for a batch left alone, and whether the batch is cut."""
        if not self.mixup_enabled or np.random.rand() >= self.mix_prob:
            return 1.0, False
        blends, cuts = self._active()
        use_cutmix = cuts and (not blends or np.random.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        return float(np.random.beta(alpha, alpha)), bool(use_cutmix)

    def _active(self) -> tuple[bool, bool]:
        blends, cuts = self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0
        if not blends and not cuts:
            raise ValueError(
                f"fastmix.{type(self).__name__}: mixup_alpha or cutmix_alpha must be > 0, or cutmix_minmax given, "
                f"got {self.mixup_alpha} and {self.cutmix_alpha}"
            )
        return blends, cuts

    def _draw(self, shape: Sequence[int]) -> _Draw:
        """For images of `shape` (N, ..., H, W)."""
        if self.mode == "batch":
            return self._draw_batch(shape)
        return self._draw_pair(shape) if self.mode == "pair" else self._draw_elem(shape, shape[0])

    def _draw_batch(self, shape: Sequence[int]) -> _Draw:
        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0 or not use_cutmix:
            return _Draw(lam, lam, None)
        return self._draw_one_box(shape, lam)

    def _draw_one_box(self, shape: Sequence[int], lam: float) -> _Draw:
        (y0, y1, x0, x1), lam = cutmix_bbox_and_lam(shape, lam, self.cutmix_minmax, self.correct_lam)
        return _Draw(float(lam), None, np.array([y0, x0, y1, x1], dtype=np.int32))

    def _draw_elem(self, shape: Sequence[int], count: int) -> _Draw:
        """Weights and boxes of the first `count` samples; the others are left alone."""
        lam, use_cutmix = self._params_per_elem(count)
        if shape[0] % 2:
            lam = np.where(np.arange(count) == shape[0] // 2, np.float32(1), lam)
        lam, weight, box = self._cut(shape, lam, use_cutmix)
        rest = np.ones(shape[0] - count, dtype=np.float32)
        box = None if box is None else np.concatenate((box, np.zeros((len(rest), 4), dtype=np.int32)))
        return _Draw(np.concatenate((lam, rest)), np.concatenate((weight, rest)), box)

    def _draw_pair(self, shape: Sequence[int]) -> _Draw:
        lam, weight, box = self._cut(shape, *self._params_per_elem(shape[0] // 2))
        middle = np.ones(shape[0] % 2, dtype=np.float32)
        lam, weight = (np.concatenate((half, middle, half[::-1])) for half in (lam, weight))
        if box is not None:
            box = np.concatenate((box, np.zeros((len(middle), 4), dtype=np.int32), box[::-1]))
        return _Draw(lam, weight, box)

    def _cut(self, shape: Sequence[int], lam: np.ndarray, use_cutmix: np.ndarray) -> _Draw:
        """Draws the boxes of the samples to be cut, in their order, and corrects their weights."""
        lam = np.array(lam, dtype=np.float32)
        cut = np.flatnonzero(use_cutmix & (lam != 1))
        if not len(cut):
            return _Draw(lam, lam, None)
        weight = lam.copy()
        weight[cut] = 1
        if self.cutmix_minmax is None:
            boxes = _clipped_boxes(shape, lam[cut])
        else:
            boxes = np.array([rand_bbox_minmax(shape, self.cutmix_minmax) for _ in cut])[:, [0, 2, 1, 3]]
        if self.correct_lam or self.cutmix_minmax is not None:
            lam[cut] = 1.0 - (boxes[:, 2:] - boxes[:, :2]).prod(1) / float(shape[-2] * shape[-1])
        box = np.zeros((len(lam), 4), dtype=np.int32)
        box[cut] = boxes
        return _Draw(lam, weight, box)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({shown})"


def _clipped_boxes(shape: Sequence[int], lam: np.ndarray) -> np.ndarray:
    """What `rand_bbox` draws for each of the weights in turn, (K, 4) as (y0, x0, y1, x1)."""
    sides = np.array(shape[-2:])
    cut = (sides.astype(np.float32) * np.sqrt(1 - lam)[:, None]).astype(np.int64)
    middle = np.random.randint(0, np.tile(sides, (len(lam), 1)))
    low, high = middle - cut // 2, middle + (cut + 1) // 2
    return np.concatenate((low.clip(0, sides), high.clip(0, sides)), axis=1)


class Mixup(_Parameters):
    """timm's `Mixup`: MixUp and CutMix of every sample n with sample N - 1 - n, in one pass over the batch.

    Args:
        mixup_alpha: parameter of MixUp's Beta law; 0 switches MixUp off.
        cutmix_alpha: parameter of CutMix's Beta law; 0 switches CutMix off.
        cutmix_minmax: smallest and largest side of the box as a share of the image's; replaces `cutmix_alpha`.
        prob: probability that a batch ("elem": a sample, "pair": a pair) is mixed.
        switch_prob: probability of CutMix where both are on.
        mode: "batch" for one draw, "pair" for one for the samples n and N - 1 - n, "elem" for one a sample.
        correct_lam: weight labels by the area that the clipped box really takes.
        label_smoothing, num_classes: of the targets, see `mixup_target`.
        multi_label: targets are dense (N, num_classes).
        inplace: write the mixed images to the images given, as timm does; else to new memory.
        soft: return dense targets; else a `fastmix.batch.MixBatch`, whose `loss(logits, smoothing=...)` needs none.
            The label smoothing is then not applied to class numbers, which it is to dense multi-label targets.
        backend: fixed backend of the operation (default: chosen by device).
        check_layout: refuse a single image (C, H, W), and images that look like (N, H, W, C), see
            `fastmix.methods.MixMethod`.

    Attributes of the same names as in timm (`prob` is `mix_prob`) may be changed at any time; `mixup_enabled = False`
    turns mixing off, not the smoothing. Subclasses may override `_params_per_batch` and `_params_per_elem`, and the
    `_mix_*` of a mode, which mix in place and return the weights of the labels.

    Draws, from numpy's global generator: "batch" takes rand (mixed?), rand (cut?, if both are on), beta, and for
    CutMix the row and the column of the centre; "elem" and "pair" take rand(n) (cut?, if both are on), beta(n) for
    CutMix and for MixUp, as they are on, rand(n) (mixed?), then row and column of each box.

    Raises:
        TypeError: a keyword there is not; on call, `x` or `target` not a tensor.
        ValueError: a setting of a wrong kind or out of its range; on call, before anything is written, other than one
            label an image, class numbers outside [0, num_classes) (on CUDA they are not read), images that look like
            (N, H, W, C), both alphas 0.

    Example:
        >>> mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=1000)
        >>> images, targets = mixup(images, labels)
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        inplace: bool = True,
        soft: bool = True,
        backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            mixup_alpha,
            cutmix_alpha,
            cutmix_minmax,
            prob,
            switch_prob,
            mode,
            correct_lam,
            label_smoothing,
            num_classes,
            multi_label,
            **options,
        )
        self.inplace = _settings.flag("Mixup", "inplace", inplace)
        self.soft = _settings.flag("Mixup", "soft", soft)
        self.backend = backend

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | MixBatch]:
        """Mix `x` (N, ...) with labels `target` (N,), or (N, num_classes) with `multi_label`.

        Returns:
            The mixed images, `x` itself if `inplace`, and targets (N, num_classes) float32 or a `MixBatch`.
        """
        self._check_batch(x, target)
        if self.inplace and self.soft:
            lam = getattr(self, f"_mix_{self.mode}")(x)
            return x, mixup_target(target, self.num_classes, lam, self.label_smoothing, self.multi_label)
        draw = self._draw(x.shape)
        mixed = _mix(x, draw, x if self.inplace else None, self.backend)
        if self.soft:
            lam = _label_weight(draw.lam, x.device)
            return mixed, mixup_target(target, self.num_classes, lam, self.label_smoothing, self.multi_label)
        return mixed, self._batch(mixed, target, draw)

    def _batch(self, mixed: Tensor, target: Tensor, draw: _Draw) -> MixBatch:
        y = _smoothed(target, self.num_classes, self.label_smoothing) if self.multi_label else target.long()
        lam, weight, box = (_uploaded(part, mixed.device) for part in draw)
        index = torch.arange(len(mixed), device=mixed.device).flip(0)
        plan = Plan(index, lam, weight=weight, box=box)
        return MixBatch(mixed, y, y.flip(0), lam, index, box=None if box is None else box.expand(len(y), 4), plan=plan)

    def _mix_batch(self, x: Tensor) -> float:
        return self._mix_drawn(x, self._draw_batch(x.shape))

    def _mix_pair(self, x: Tensor) -> Tensor:
        return self._mix_drawn(x, self._draw_pair(x.shape))

    def _mix_elem(self, x: Tensor) -> Tensor:
        return self._mix_drawn(x, self._draw_elem(x.shape, len(x)))

    def _mix_drawn(self, x: Tensor, draw: _Draw) -> float | Tensor:
        _mix(x, draw, x, self.backend)
        return _label_weight(draw.lam, x.device)


def _mix(x: Tensor, draw: _Draw, out: Tensor | None, backend: str | None) -> Tensor:
    """One launch; a batch that is not mixed at all is not touched in place."""
    lam, lam_b = draw.weight, None
    if isinstance(lam, np.ndarray):
        lam = None if draw.box is None and (lam == 1).all() else _uploaded(lam, x.device)
    elif lam is not None:
        # timm rounds both weights of a batch to float32, each by itself.
        lam, lam_b = (None, None) if lam == 1 else (lam, 1.0 - lam)
    if lam is None and draw.box is None and out is x:
        return x
    box = _uploaded(draw.box, x.device)
    if out is not None and torch.is_grad_enabled() and x.requires_grad:
        return out.copy_(ops.flip_blend(x, lam, box, lam_b=lam_b, backend=backend))
    return ops.flip_blend(x, lam, box, lam_b=lam_b, out=out, backend=backend)


def _label_weight(lam: float | np.ndarray, device: torch.device) -> float | Tensor:
    """As timm's `_mix_*` return it: a number, or (N, 1)."""
    return _uploaded(lam, device).unsqueeze(1) if isinstance(lam, np.ndarray) else lam


def _uploaded(value: float | np.ndarray | None, device: torch.device) -> Tensor | None:
    """On the device without waiting for it."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        return torch.full((), value, dtype=torch.float32, device=device)
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class FastCollateMixup(_Parameters):
    """timm's `FastCollateMixup`: collates uint8 images and mixes them where they land, in the workers of a loader.

    Arguments and attributes are those of `Mixup`, and a fourth mode: "half" makes of 2 B samples a batch of B, sample n
    mixed with sample 2 B - 1 - n (the middle one of an odd batch stays, unmixed). Blended pixels are rounded half to
    even. Instances can be pickled, and are instances of `timm.data.FastCollateMixup` once timm is imported, so that
    `timm.data.loader.PrefetchLoader` finds their `mixup_enabled`.

    Draws are those of `Mixup`, with one difference as in timm: a batch that is cut draws its box even where the weight
    drawn is exactly 1.

    Raises:
        ValueError: as `Mixup`; images of unequal shapes, or of other than three dimensions.
        TypeError: on call, images that are not uint8.

    Example:
        >>> collate = FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem")
        >>> loader = DataLoader(dataset, batch_size=64, collate_fn=collate)
    """

    _modes = (*MODES, "half")

    def __call__(self, batch: Sequence[tuple], _: Any = None) -> tuple[Tensor, Tensor]:
        """Collate `(image, label)` pairs: images (C, H, W) uint8 numpy arrays or tensors.

        Returns:
            (N, C, H, W) uint8 images and (N, num_classes) float32 targets; half as many with "half".
        """
        images = _stacked([sample[0] for sample in batch])
        target = default_collate([sample[1] for sample in batch])
        self._check_batch(images, target)
        draw = self._draw(images.shape)
        _mix(images, draw, images, None)
        lam = _label_weight(draw.lam, images.device)
        target = mixup_target(target, self.num_classes, lam, self.label_smoothing, self.multi_label)
        if self.mode == "half":
            kept = self._kept(len(batch))
            return images[:kept].clone(), target[:kept]
        return images, target

    def _draw(self, shape: Sequence[int]) -> _Draw:
        return self._draw_elem(shape, self._kept(shape[0])) if self.mode == "half" else super()._draw(shape)

    def _draw_batch(self, shape: Sequence[int]) -> _Draw:
        lam, use_cutmix = self._params_per_batch()
        return self._draw_one_box(shape, lam) if use_cutmix else _Draw(lam, lam, None)

    def _kept(self, count: int) -> int:
        return (count + 1) // 2

    @property
    def __class__(self) -> type:
        # `isinstance` asks here when the type itself is no subclass.
        theirs = getattr(sys.modules.get("timm.data.mixup"), "FastCollateMixup", None)
        return type(self) if theirs is None else _joined(type(self), theirs)

    def __reduce__(self) -> tuple:
        return _restored, (type(self), vars(self))


@functools.cache
def _joined(ours: type, theirs: type) -> type:
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__})


def _restored(kind: type, state: dict[str, Any]) -> FastCollateMixup:
    collate = kind.__new__(kind)
    vars(collate).update(state)
    return collate


def _stacked(images: Sequence[np.ndarray | Tensor]) -> Tensor:
    for image in images:
        if not isinstance(image, (np.ndarray, Tensor)) or image.dtype not in (np.uint8, torch.uint8):
            got = getattr(image, "dtype", type(image).__name__)
            raise TypeError(f"fastmix.FastCollateMixup: images must be uint8 arrays or tensors, got {got}")
        if image.ndim < 3 or image.shape != images[0].shape:
            raise ValueError(
                f"fastmix.FastCollateMixup: images must have one shape (C, H, W), got {tuple(images[0].shape)} and "
                f"{tuple(image.shape)}"
            )
    if isinstance(images[0], Tensor):
        return torch.stack(tuple(images))
    batch = torch.empty((len(images), *images[0].shape), dtype=torch.uint8)
    np.stack(images, out=batch.numpy())
    return batch
