"""Data sets of the trainer: where images come from, which are used, and in which order.

An epoch is a slice of one endless stream of shuffled passes over the data, so every batch has the same size,
runs of different methods take equal steps, and the position in the stream is one number: the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix.train.config import MAX_PIXELS
from fastmix.train.errors import UserError

# name -> (module, function, takes a directory)
SOURCES = {
    "digits": ("digits", "digits", False),
    "cluttered-digits": ("digits", "cluttered_digits", False),
    "cifar10": ("cifar", "cifar10", True),
    "cifar100": ("cifar", "cifar100", True),
    "folder": ("folder", "folder", True),
}


class Dataset(Protocol):
    """A set of labelled images that gives whole batches."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, chosen: Tensor) -> Dataset:
        """The images with the numbers ``chosen (k,)``."""

    def loader(self, batches: list[Tensor], keys: list[int] | None, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each tensor of image numbers, ``images (B, C, H, W)`` uint8 and ``labels (B,)``.

        ``keys`` holds one number a batch that seeds its augmentation; None leaves it out.
        """


@dataclass
class Images:
    """Images in memory, uint8 ``(n, C, H, W)``, with labels ``(n,)`` and, if known, the labelled object's ink."""

    images: Tensor
    labels: Tensor
    object: Tensor | None = None
    shift: int = 0
    mirror: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Tensor) -> Images:
        ink = None if self.object is None else self.object[chosen]
        return Images(self.images[chosen], self.labels[chosen], ink, self.shift, self.mirror)

    def loader(self, batches, keys, workers) -> Iterator[tuple[Tensor, Tensor]]:
        for n, chosen in enumerate(batches):
            images = self.images[chosen]
            if keys is not None:
                images = augment(images, self.shift, self.mirror, np.random.default_rng(keys[n]))
            yield images, self.labels[chosen]


def image_batch(batch: object) -> tuple[Tensor, Tensor]:
    """What a loader gave, if it is a pair of images ``(B, C, H, W)`` uint8 and labels ``(B,)`` int64.

    Raises:
        TypeError: anything else, such as a dictionary or images without labels.
        ValueError: tensors of other dtypes or shapes.
    """
    where = "fastmix.Trainer: a batch of the data must be a pair (images, labels)"
    if isinstance(batch, Mapping):
        raise TypeError(f"{where}, got a dictionary with {', '.join(map(repr, batch))}")
    if isinstance(batch, Tensor):
        raise TypeError(f"{where}, got a tensor of shape {tuple(batch.shape)} without labels")
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TypeError(f"{where}, got {what}")
    images, labels = batch
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"{where} of tensors, got {type(images).__name__} and {type(labels).__name__}")
    if images.dtype is not torch.uint8 or images.dim() != 4:
        raise ValueError(f"{where}: images must be uint8 (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if labels.dtype is not torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"{where}: labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    return images, labels


@dataclass
class Splits:
    """A training and a test set with what both share: class names and the channel statistics in ``[0, 1]``.

    ``left_out`` says of each file that could not be read which it is and why.
    """

    train: Dataset
    test: Dataset
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: list[str] = field(default_factory=list)
    in_channels: int = field(init=False)
    image_size: int = field(init=False)

    def __post_init__(self) -> None:
        images, _ = image_batch(next(iter(self.test.loader([torch.zeros(1, dtype=torch.int64)], None, 0))))
        self.in_channels, self.image_size = images.shape[1], images.shape[2]


def open_data(
    spec: str, seed: int = 0, image_size: int = 224, unreadable: str = "stop", max_pixels: int = MAX_PIXELS
) -> Splits:
    """The data set named by ``spec``: a key of ``SOURCES``, with ``:DIR`` where it is read from a directory.

    ``image_size``, ``unreadable`` (``"stop"`` or ``"skip"``) and ``max_pixels`` are those of `folder`.

    Raises:
        UserError: unknown name, missing or broken file, naming it.
    """
    name, colon, place = spec.partition(":")
    if name not in SOURCES:
        raise UserError(f"--data {spec}: unknown data; choose {', '.join(_usage())}")
    module, function, needs_place = SOURCES[name]
    if needs_place and not place:
        raise UserError(f"--data {spec}: give the directory, as {name}:DIR")
    if colon and not needs_place:
        raise UserError(f"--data {spec}: {name} takes no directory")
    build = getattr(import_module(f"fastmix.train.{module}"), function)
    if name == "folder":
        return build(place, seed, image_size, unreadable, max_pixels)
    return build(place) if needs_place else build(seed)


def _usage() -> list[str]:
    return [f"{name}:DIR" if needs_place else name for name, (_, _, needs_place) in SOURCES.items()]


def choose_labelled(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Numbers of ``per_class`` images of every class, drawn with ``seed``, in ascending order.

    Raises:
        UserError: a class has fewer images.
    """
    order = torch.from_numpy(np.random.default_rng([seed, 3]).permutation(len(labels)))
    chosen = []
    for label in labels.unique():
        members = order[labels[order] == label]
        if len(members) < per_class:
            raise UserError(f"--labels-per-class {per_class}: class {int(label)} has only {len(members)} images")
        chosen.append(members[:per_class])
    return torch.cat(chosen).sort().values


class Stream:
    """The endless sequence of shuffled passes over ``count`` images, cut into batches.

    Batch ``step`` of rank ``r`` of ``world`` is the ``(step * world + r)``-th slice of ``batch_size`` numbers; it
    depends on nothing but these and ``seed``.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world = rank, world
        self._passes: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        """Image numbers ``(batch_size,)`` of a step."""
        first = (step * self.world + self.rank) * self.batch_size
        places = torch.arange(first, first + self.batch_size)
        number = places // self.count
        parts = [self._pass(int(p))[places[number == p] % self.count] for p in number.unique()]
        return torch.cat(parts)

    def key(self, step: int) -> int:
        """A 64-bit seed for everything random in a step, different for every seed, step and rank."""
        words = np.random.SeedSequence([self.seed, 5, step, self.rank]).generate_state(1, np.uint64)
        return int(words[0])

    def _pass(self, number: int) -> Tensor:
        if number not in self._passes:
            self._passes = {k: v for k, v in self._passes.items() if k >= number - 1}
            order = np.random.default_rng([self.seed, 4, number]).permutation(self.count)
            self._passes[number] = torch.from_numpy(order)
        return self._passes[number]


def augment(images: Tensor, shift: int, mirror: bool, rng: np.random.Generator) -> Tensor:
    """Each image ``(B, C, H, W)`` moved by up to ``shift`` pixels, zeros let in, and mirrored half of the time."""
    if not shift and not mirror:
        return images
    size, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4).permute(0, 2, 3, 1)
    moved = torch.from_numpy(rng.integers(0, 2 * shift + 1, (2, size, 1)))
    flip = torch.from_numpy(rng.random((size, 1)) < 0.5) & mirror
    across = torch.arange(width).expand(size, width)
    rows = moved[0] + torch.arange(height)  # [B, H]
    columns = moved[1] + torch.where(flip, width - 1 - across, across)  # [B, W]
    picked = padded[torch.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
