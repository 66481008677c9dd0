"""Which files of a folder are images: one rule for training, prediction and the gallery.

Names that begin with a dot (``.ipynb_checkpoints``, ``.DS_Store``, ``._0.jpg``) and the folders and files that systems
leave behind (``__MACOSX``, ``@eaDir``, ``$RECYCLE.BIN``, ``Thumbs.db`` and the others of `SYSTEM`) are passed over, at
any depth. What remains is an image if its name has one of `SUFFIXES`, in capitals or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastmix.train.errors import UserError, printable, reason

SUFFIXES = frozenset(
    (
        ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
        ".ppm", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip
SYSTEM = frozenset(
    (
        "__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found",
        "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    )
)  # fmt: skip


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is no data, wherever it lies."""
    return name.startswith(".") or name.lower() in SYSTEM


def subfolders(root: Path) -> list[Path]:
    """The folders in ``root`` that may be classes, sorted; not links to ``root`` itself or to what holds it."""
    above = (os.path.realpath(root),)
    return sorted(Path(entry.path) for entry in _entries(root) if _is_folder(entry) and not _leads_up(entry, above))


def images_in(root: Path) -> dict[str, Path]:
    """The images below ``root``, at any depth, in the order of their paths: real path -> path.

    Symbolic links are followed, but not to a folder that holds them, and a file that can be reached in several ways
    is listed once, by the first of its names.

    Raises:
        UserError: a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    for path, real in sorted(_walk(root, ())):
        found.setdefault(real, path)
    return found


def named_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files among ``paths`` and the images in the folders among them, each once, in the order given.

    The second list has what is passed over by its name, such as ``Thumbs.db`` out of ``photographs/*``.

    Raises:
        UserError: a folder without images, or nothing left.
    """
    chosen: dict[Path, None] = {}
    left_out = []
    for path in paths:
        if path.is_dir():
            inside = images_in(path)
            if not inside:
                raise UserError(f"{printable(path)}: no images in this folder")
            chosen |= dict.fromkeys(inside.values())
        elif passed_over(path.name):
            left_out.append(path)
        else:
            chosen[path] = None
    if left_out and not chosen:
        raise UserError(f"{printable(left_out[0])}: hidden files and those of the system are no images")
    return list(chosen), left_out


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    real = os.path.realpath(folder)
    above = (*above, real)
    for entry in _entries(folder):
        if _is_folder(entry):
            if not _leads_up(entry, above):
                yield from _walk(Path(entry.path), above)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield (
                Path(entry.path),
                os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name),
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # of links that lead to themselves `DirEntry.is_dir` raises an error
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _leads_up(entry: os.DirEntry[str], above: tuple[str, ...]) -> bool:
    """Whether a folder is a link to one of ``above``, the real paths of those it lies in, or to what holds them."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return any(os.path.commonpath((target, place)) == target for place in above)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not passed_over(entry.name)]
    except OSError as error:
        raise UserError(f"{printable(error.filename or folder)}: {reason(error)}") from None
