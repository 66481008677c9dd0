"""CIFAR-10 and CIFAR-100 from the official files on disk, the Python or the binary version."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastmix.train.data import Images, Splits
from fastmix.train.errors import UserError, reason

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_Part = tuple[np.ndarray, np.ndarray]


def cifar10(place: str) -> Splits:
    """CIFAR-10 in ``place``: ``data_batch_1`` ... ``test_batch``, or the same names with ``.bin``."""
    names = [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]
    return _open(place, "cifar-10-batches", names, label_bytes=1, label_key=b"labels", meta=("batches", b"label_names"))


def cifar100(place: str) -> Splits:
    """CIFAR-100 in ``place``: ``train`` and ``test``, or the same names with ``.bin``; the 100 fine classes."""
    names = ["train"], ["test"]
    return _open(place, "cifar-100", names, label_bytes=2, label_key=b"fine_labels", meta=("meta", b"fine_label_names"))


def _open(
    place: str,
    folder: str,
    names: tuple[list[str], list[str]],
    label_bytes: int,
    label_key: bytes,
    meta: tuple[str, bytes],
) -> Splits:
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"{root}: no such directory")
    first = names[0][0]
    suffixes = {"batches": ("-py", "-bin"), "100": ("-python", "-binary")}[folder.rpartition("-")[2]]
    for candidate in (root, *(root / (folder + suffix) for suffix in suffixes)):
        if (candidate / first).is_file():
            read: Callable[[Path], _Part] = lambda path: _read_pickle(path, label_key)  # noqa: E731
            break
        if (candidate / f"{first}.bin").is_file():
            names = tuple([f"{name}.bin" for name in part] for part in names)
            read = lambda path: _read_binary(path, label_bytes)  # noqa: E731
            break
    else:
        raise UserError(f"{root}: neither {first} nor {first}.bin is there, nor in {folder}{suffixes[0]}/ below it")
    train, test = (_join([read(candidate / name) for name in part]) for part in names)
    train.shift, train.mirror = 4, True
    classes = 10 if label_bytes == 1 else 100
    for part in (train, test):
        if part.labels.max() >= classes:
            raise UserError(f"{candidate}: label {int(part.labels.max())} found, expected 0 to {classes - 1}")
    pixels = train.images.float().div_(255)
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))
    return Splits(train, test, _class_names(candidate, meta, classes), tuple(mean.tolist()), tuple(std.tolist()))


def _join(parts: list[_Part]) -> Images:
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    images = torch.from_numpy(pixels).view(-1, 3, _SIDE, _SIDE)
    return Images(images, torch.from_numpy(labels.astype(np.int64)))


def _read_binary(path: Path, label_bytes: int) -> _Part:
    data = np.frombuffer(_read(path), np.uint8)
    record = label_bytes + _PIXELS
    if len(data) == 0 or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes is not a whole number of {record}-byte records")
    table = data.reshape(-1, record)
    return table[:, label_bytes:].copy(), table[:, label_bytes - 1]


def _read_pickle(path: Path, label_key: bytes) -> _Part:
    content = _unpickle(path)
    try:
        pixels, labels = np.asarray(content[b"data"]), np.asarray(content[label_key])
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a CIFAR file, {label_key.decode()} or data is missing") from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS) or len(labels) == 0:
        raise UserError(f"{path}: data must be uint8 ({len(labels)}, {_PIXELS}), got {pixels.dtype} {pixels.shape}")
    return pixels, labels


def _class_names(folder: Path, meta: tuple[str, bytes], count: int) -> list[str]:
    path = folder / f"{meta[0]}.meta" if meta[0] == "batches" else folder / meta[0]
    if path.is_file():
        return [name.decode() for name in _unpickle(path)[meta[1]]]
    for text in (folder / "batches.meta.txt", folder / "fine_label_names.txt"):
        if text.is_file():
            return _read(text).decode().split()
    return [str(k) for k in range(count)]


class _ArraysOnly(pickle.Unpickler):
    """Loads numpy arrays and plain values: a file from elsewhere must not be able to run code."""

    _ALLOWED = frozenset(
        (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module, name)


def _unpickle(path: Path):
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path}: damaged or not a CIFAR file ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
