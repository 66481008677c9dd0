"""The one exception that the command line shows as a single line."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


class UserError(Exception):
    """A wrong path, option or file: something that the user can put right. Its text is one line."""


def need(module: str, package: str, purpose: str) -> ModuleType:
    """Import an optional ``module`` or raise :class:`UserError` with the command that installs ``package``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise UserError(f"{purpose} needs {package}, which is not installed: pip install {package}") from None


def reason(error: OSError) -> str:
    """Why a file operation failed, without Python's error number."""
    return error.strerror or str(error)


def printable(name: str | os.PathLike[str]) -> str:
    """A file's or a class's name as part of one line: line breaks, control signs and broken bytes are escaped."""
    text = os.fspath(name)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
