"""Files of a run: written whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import pickle
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastmix.train.errors import UserError, printable, reason

CHECKPOINT = "checkpoint.pt"
FORMAT = 1
LOCK = ".lock"
# What a run writes, through files of the same name with a dot in front and the process's number behind.
WRITTEN = frozenset((CHECKPOINT, "config.yaml", "curves.png", "log.csv", "mixes.png", "unreadable.txt", ".probe"))

# Locks of this process: real path of the folder -> open file and how often it was claimed.
_claims: dict[str, tuple[int, int]] = {}


def make_folder(path: Path) -> None:
    """Create a folder that can be written to.

    Raises:
        UserError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{printable(path)}: is a file, not a folder to write to") from None
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot create the output folder: {reason(error)}") from None
    write_atomic(path / ".probe", b"")
    (path / ".probe").unlink(missing_ok=True)


@contextlib.contextmanager
def claim(path: Path, new: bool = False) -> Iterator[Path]:
    """Have a folder for this process alone, creating it; one that this created and that stayed empty is removed.

    The lock is the kernel's, on the file ``.lock``, and ends with the process however that ends. The parts of files
    that killed runs left behind are removed. Within a process claims of a folder may be nested.

    Args:
        path: the folder.
        new: it must not exist.

    Raises:
        FileExistsError: it exists, with ``new``.
        UserError: another process has it, or it cannot be created or written to.
    """
    made = [place for place in (path, *path.parents) if not place.exists()]
    if new:
        path.mkdir(parents=True)
    make_folder(path)
    key = os.path.realpath(path)
    try:
        descriptor, depth = _claims.get(key) or (_lock(path), 0)
        _claims[key] = descriptor, depth + 1
        try:
            if depth == 0:
                _remove_leftovers(path)
            yield path
        finally:
            if depth:
                _claims[key] = descriptor, depth
            else:
                del _claims[key]
                # Removed before it is unlocked: who waits for it finds out by `_lock` that it is no longer there.
                (path / LOCK).unlink(missing_ok=True)
                os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()


def _lock(folder: Path) -> int:
    """The open and locked file ``folder/.lock``, which says whose it is."""
    path = folder / LOCK
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(f"{printable(path)}: cannot write: {reason(error)}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise UserError(
                f"{printable(folder)}: process {owner} is writing its run there; wait for it or choose another --out"
            ) from None
        except OSError as error:
            text = f"{printable(path)}: cannot be locked ({reason(error)}), so other runs are not kept out"
            warnings.warn(text, stacklevel=4)
        # Between the opening and the locking the run before may have removed the file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    """The process that has the lock; it may be about to write its number."""
    for _ in range(20):
        if text := os.pread(descriptor, 20, 0).strip():
            return text.decode(errors="replace")
        time.sleep(0.01)
    return "of unknown number"


def _forget_locks() -> None:
    """In a forked child, such as a worker of a loader: it must not keep the lock when its parent is killed."""
    for descriptor, _ in _claims.values():
        os.close(descriptor)
    _claims.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        found = re.fullmatch(r"\.(.+)\.(\d+)", path.name)
        if found and found[1] in WRITTEN and not _runs(int(found[2])):
            with contextlib.suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether another process of this number runs."""
    if process == os.getpid():  # a new container numbers its processes as the one before did
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replace ``path`` in one step: a reader or a crash sees the old file or the new one, never a part.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot write: {reason(error)}") from None
        raise


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values so that :func:`load_checkpoint` gives them back bit for bit."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomic(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        UserError: no such file, or not a checkpoint of this program.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{printable(path)}: is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about archives of other kinds
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: no checkpoint to resume from") from None
    except OSError as error:
        raise UserError(f"{printable(path)}: {reason(error)}") from None
    except pickle.UnpicklingError:
        # Torch's own text tells how to load it unsafely.
        raise UserError(
            f"{printable(path)}: damaged checkpoint, or one that holds more than tensors and plain values, "
            "which is not loaded"
        ) from None
    except Exception as error:  # a damaged archive raises nearly anything
        text = " ".join(str(error).split("\n")[0].split())[:200] or type(error).__name__
        raise UserError(f"{printable(path)}: damaged checkpoint ({text})") from None
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != FORMAT:
        raise UserError(f"{printable(path)}: not a fastmix checkpoint of format {FORMAT}")
    return state


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line for each row; the columns are those of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode())
