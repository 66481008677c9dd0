"""Any folder of class folders: ``DIR/train/<class>/*`` with ``DIR/val`` or ``DIR/test``, or ``DIR/<class>/*``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastmix.train.data import Splits
from fastmix.train.errors import UserError, need, reason

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
HELD_OUT = 0.2


def folder(place: str, seed: int, image_size: int) -> Splits:
    """Images of a directory. Without a ``train`` folder a fifth of each class, drawn with ``seed``, is the test set."""
    need("PIL.Image", "pillow", "--data folder:DIR")
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"{root}: no such directory")
    if (root / "train").is_dir():
        held = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        if held is None:
            raise UserError(f"{root}: has train/ but neither val/ nor test/")
        classes, train_paths, train_labels = _scan(root / "train")
        test_classes, test_paths, test_labels = _scan(held)
        if test_classes != classes:
            odd = sorted(set(test_classes) ^ set(classes))[0]
            raise UserError(f"{root}: class {odd} is not in both train/ and {held.name}/")
    else:
        classes, paths, labels = _scan(root)
        train_paths, train_labels, test_paths, test_labels = _hold_out(root, classes, paths, labels, seed)
    train, test = (
        Folder(paths, torch.tensor(labels), image_size)
        for paths, labels in ((train_paths, train_labels), (test_paths, test_labels))
    )
    return Splits(train, test, classes, IMAGENET_MEAN, IMAGENET_STD)


def _scan(root: Path) -> tuple[list[str], list[Path], list[int]]:
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if len(folders) < 2:
            raise UserError(f"{root}: needs at least two class folders, found {len(folders)}")
        paths, labels = [], []
        for label, place in enumerate(folders):
            images = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not images:
                raise UserError(f"{place}: class folder without images")
            paths += images
            labels += [label] * len(images)
    except OSError as error:
        raise UserError(f"{error.filename or root}: {reason(error)}") from None
    return [p.name for p in folders], paths, labels


def _hold_out(root, classes, paths, labels, seed):
    order = np.random.default_rng([seed, 6]).permutation(len(paths))
    numbers = np.asarray(labels)[order]
    test = []
    for label, name in enumerate(classes):
        members = order[numbers == label]
        if len(members) < 2:
            raise UserError(f"{root / name}: needs at least two images, one of them to test on")
        test += members[: max(1, round(HELD_OUT * len(members)))].tolist()
    held = set(test)
    pick = lambda chosen: ([paths[i] for i in chosen], [labels[i] for i in chosen])  # noqa: E731
    return *pick([i for i in range(len(paths)) if i not in held]), *pick(sorted(held))


class Folder:
    """Image files, decoded when asked for: a random crop and mirroring in training, the centre in evaluation."""

    def __init__(self, paths: list[Path], labels: Tensor, size: int) -> None:
        self.paths, self.labels, self.size = paths, labels, size

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, chosen: Tensor) -> Folder:
        return Folder([self.paths[i] for i in chosen.tolist()], self.labels[chosen], self.size)

    def loader(self, batches, keys, workers) -> Iterator[tuple[Tensor, Tensor]]:
        source = _Batches(self, batches, keys)
        options = {"num_workers": workers, "worker_init_fn": _ignore_interrupt} if workers else {}
        for item in DataLoader(source, batch_size=None, pin_memory=torch.cuda.is_available(), **options):
            if isinstance(item, str):
                raise UserError(item)
            yield item

    def load(self, number: int, rng: np.random.Generator | None) -> Tensor:
        """One image ``(3, size, size)`` uint8, cropped at random with ``rng`` or in the centre without."""
        from PIL import Image

        path = self.paths[number]
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable image"
            raise UserError(f"{path}: {text}") from None
        box = _centre_box(*image.size) if rng is None else _random_box(*image.size, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
        if rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class _Batches:
    """A data set of whole batches. A broken file travels as a text, since workers change what they raise."""

    def __init__(self, images: Folder, batches: list[Tensor], keys: list[int] | None) -> None:
        self.images, self.batches, self.keys = images, batches, keys

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, n: int):
        chosen = self.batches[n]
        rng = None if self.keys is None else np.random.default_rng(self.keys[n])
        try:
            return torch.stack([self.images.load(i, rng) for i in chosen.tolist()]), self.images.labels[chosen]
        except UserError as error:
            return str(error)


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of 8 % to 100 % of the area and sides 3:4 to 4:3 (Szegedy et al. 2015), after ten failures the centre."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return _centre_box(width, height)
