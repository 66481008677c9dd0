"""The one exception that the command line shows as a single line."""

from __future__ import annotations

import importlib
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
