"""Mixing methods: one file and one class each, all called ``method(x, y, generator=None, lam=None, index=None)``.

PuzzleMix also needs ``saliency=``.
"""

from __future__ import annotations

from fastmix.methods.base import MixMethod
from fastmix.methods.cutmix import CutMix
from fastmix.methods.mixup import MixUp
from fastmix.methods.none import NoMix
from fastmix.methods.puzzlemix import PuzzleMix

METHODS: dict[str, type[MixMethod]] = {
    "none": NoMix,
    "mixup": MixUp,
    "cutmix": CutMix,
    "puzzlemix": PuzzleMix,
}

__all__ = ["METHODS", "CutMix", "MixMethod", "MixUp", "NoMix", "PuzzleMix", "create"]


def create(name: str, **options) -> MixMethod:
    """The method called ``name`` (a key of ``METHODS``) with its constructor's ``options``.

    Raises:
        ValueError: no such method.

    Example:
        >>> create("cutmix", alpha=0.2)
        CutMix(alpha=0.2, per_sample=False)
    """
    if name not in METHODS:
        raise ValueError(f"fastmix.methods.create: name must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name](**options)
