"""Files of a run, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from pathlib import Path
from typing import Any

import torch

from fastmix.train.errors import UserError, reason

CHECKPOINT = "checkpoint.pt"
FORMAT = 1


def make_folder(path: Path) -> None:
    """Create a folder that can be written to.

    Raises:
        UserError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create the output folder: {reason(error)}") from None
    write_atomic(path / ".probe", b"")
    (path / ".probe").unlink(missing_ok=True)


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
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{path}: cannot write: {reason(error)}") from None


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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no checkpoint to resume from") from None
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except Exception as error:  # a damaged archive raises nearly anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged checkpoint ({text})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a fastmix checkpoint of format {FORMAT}")
    return state


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line for each row; the columns are those of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode())
