"""Any folder of class folders: ``DIR/train/<class>/*`` with ``DIR/val`` or ``DIR/test``, or ``DIR/<class>/*``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastmix.train.config import MAX_PIXELS
from fastmix.train.data import Splits
from fastmix.train.distributed import current, split_work
from fastmix.train.errors import UserError, need, printable
from fastmix.train.listing import images_in, subfolders

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HELD_OUT = 0.2
CROP = 224 / 256  # of the shorter side, in evaluation
_NAMED = 10


def folder(place: str, seed: int, image_size: int, unreadable: str, max_pixels: int) -> Splits:
    """Images of a directory. Without a ``train`` folder a fifth of each class, drawn with ``seed``, is the test set.

    Which files count is said in :mod:`fastmix.train.listing`, how they are read in :mod:`fastmix.train.images`. All of
    them are read once before anything else, by all processes of a run together: those that cannot be are an error, or
    with ``unreadable="skip"`` left out of the data, before the test set is drawn.
    """
    root = Path(place)
    # A machine without the data must not leave the others waiting for its share of the reading.
    with current().together():
        need("PIL.Image", "pillow", "--data folder:DIR")
        from fastmix.train import images

        held, scans = _scans(root)
    files = [path for _, paths, _ in scans for path in paths]
    faults = split_work(files, lambda part: images.unreadable(part, max_pixels))
    if faults and unreadable == "stop":
        raise UserError(_complaint(faults, len(files)))
    scans = [_readable(part, faults) for part in scans]
    classes, paths, labels = scans[0]
    if held is None:
        train_paths, train_labels, test_paths, test_labels = _hold_out(root, classes, paths, labels, seed)
    else:
        train_paths, train_labels = paths, labels
        test_classes, test_paths, test_labels = scans[1]
        if test_classes != classes:
            odd = sorted(set(test_classes) ^ set(classes))[0]
            raise UserError(f"{printable(root)}: class {printable(odd)} is not in both train/ and {held.name}/")
    train, test = (
        Folder(paths, torch.tensor(labels), image_size, max_pixels)
        for paths, labels in ((train_paths, train_labels), (test_paths, test_labels))
    )
    return Splits(train, test, classes, IMAGENET_MEAN, IMAGENET_STD, list(faults.values()))


def _scans(root: Path) -> tuple[Path | None, list[tuple[list[str], list[Path], list[int]]]]:
    """The folder of the test images, if there is one, and what is in it and in that of the training images."""
    if not root.is_dir():
        raise UserError(f"{printable(root)}: no such directory")
    held = None
    if (root / "train").is_dir():
        held = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        if held is None:
            raise UserError(f"{printable(root)}: has train/ but neither val/ nor test/")
    return held, [_scan(part) for part in ([root] if held is None else [root / "train", held])]


def _scan(root: Path) -> tuple[list[str], list[Path], list[int]]:
    folders = subfolders(root)
    if len(folders) < 2:
        raise UserError(f"{printable(root)}: needs at least two class folders, found {len(folders)}")
    paths: dict[str, Path] = {}
    labels = []
    for label, place in enumerate(folders):
        found = images_in(place)
        if not found:
            raise UserError(f"{printable(place)}: class folder without images")
        twice = next((real for real in found if real in paths), None)
        if twice is not None:
            raise UserError(f"{printable(paths[twice])} and {printable(found[twice])} are one file of two classes")
        paths |= found
        labels += [label] * len(found)
    return [place.name for place in folders], list(paths.values()), labels


def _readable(scan, faults: dict[Path, str]) -> tuple[list[str], list[Path], list[int]]:
    classes, paths, labels = scan
    kept = [(path, label) for path, label in zip(paths, labels, strict=True) if path not in faults]
    lost = set(labels) - {label for _, label in kept}
    if lost:
        path = paths[labels.index(min(lost))]
        raise UserError(f"{faults[path]}; no image of class {printable(classes[min(lost)])} can be read")
    return classes, [path for path, _ in kept], [label for _, label in kept]


def _complaint(faults: dict[Path, str], count: int) -> str:
    first, *others = faults
    text = f"{faults[first]}; {len(faults)} of {count} images cannot be read"
    if others:
        text += ", the others are " + ", ".join(printable(path) for path in others[:_NAMED])
        text += f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return text + "; --unreadable skip leaves such files out"


def _hold_out(root, classes, paths, labels, seed):
    order = np.random.default_rng([seed, 6]).permutation(len(paths))
    numbers = np.asarray(labels)[order]
    test = []
    for label, name in enumerate(classes):
        members = order[numbers == label]
        if len(members) < 2:
            raise UserError(f"{printable(root / name)}: needs at least two images, one of them to test on")
        test += members[: max(1, round(HELD_OUT * len(members)))].tolist()
    held = set(test)
    pick = lambda chosen: ([paths[i] for i in chosen], [labels[i] for i in chosen])  # noqa: E731
    return *pick([i for i in range(len(paths)) if i not in held]), *pick(sorted(held))


class Folder:
    """Image files, decoded when asked for: a random crop and mirroring in training, the centre in evaluation."""

    def __init__(self, paths: list[Path], labels: Tensor, size: int, max_pixels: int = MAX_PIXELS) -> None:
        self.paths, self.labels, self.size, self.max_pixels = paths, labels, size, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, chosen: Tensor) -> Folder:
        return Folder([self.paths[i] for i in chosen.tolist()], self.labels[chosen], self.size, self.max_pixels)

    def loader(self, batches, keys, workers) -> Iterator[tuple[Tensor, Tensor]]:
        source = _Batches(self, batches, keys)
        options = {"num_workers": workers, "worker_init_fn": _ignore_stops} if workers else {}
        for item in DataLoader(source, batch_size=None, pin_memory=torch.cuda.is_available(), **options):
            if isinstance(item, str):
                raise UserError(item)
            yield item

    def load(self, number: int, rng: np.random.Generator | None) -> Tensor:
        """One image ``(3, size, size)`` uint8, cropped at random with ``rng`` or in the centre without."""
        from PIL import Image

        from fastmix.train.images import read_image

        image = read_image(self.paths[number], self.max_pixels)
        box = centre_box(*image.size, CROP) if rng is None else _random_box(*image.size, rng)
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


def _ignore_stops(_worker: int) -> None:
    """Ctrl-C, and what ends a session or a job, reach the whole group; the main process decides when workers end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def centre_box(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    """The square in the middle whose side is ``share`` of the shorter one, as left, top, right, bottom."""
    side = min(width, height) * share
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
    return centre_box(width, height, CROP)
