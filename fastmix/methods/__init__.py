"""Mixing methods: one file and one class each, all called ``method(x, y, generator=None, lam=None, index=None)``.

``python -m fastmix.methods`` prints them with their papers. PuzzleMix and AttentiveMix also need ``saliency=``, and
ManifoldMixup runs the model itself.

Each takes ``p``, the probability that it mixes at all (``mix_prob`` of Switch), and ``y=None`` for unlabelled images.
"""

from __future__ import annotations

from fastmix.methods.attentivemix import AttentiveMix
from fastmix.methods.base import MODES, PAIRINGS, MixMethod
from fastmix.methods.cutmix import CutMix
from fastmix.methods.fmix import FMix
from fastmix.methods.gridmix import GridMix
from fastmix.methods.manifoldmix import ManifoldMixup
from fastmix.methods.mixer import Mixer
from fastmix.methods.mixup import MixUp
from fastmix.methods.none import NoMix
from fastmix.methods.puzzlemix import PuzzleMix
from fastmix.methods.random_grids import RandomGrids
from fastmix.methods.regmixup import RegMixup
from fastmix.methods.resizemix import ResizeMix
from fastmix.methods.saliencymix import SaliencyMix
from fastmix.methods.smoothmix import SmoothMix
from fastmix.methods.switch import Switch

METHODS: dict[str, type[MixMethod]] = {
    method.name: method
    for method in (
        NoMix,
        MixUp,
        CutMix,
        ManifoldMixup,
        FMix,
        ResizeMix,
        SaliencyMix,
        AttentiveMix,
        GridMix,
        SmoothMix,
        RandomGrids,
        PuzzleMix,
        RegMixup,
        Switch,
        Mixer,
    )
}

__all__ = [
    "METHODS",
    "MODES",
    "PAIRINGS",
    "MixMethod",
    "create",
    *sorted(method.__name__ for method in METHODS.values()),
]


def create(name: str, **options) -> MixMethod:
    """The method called ``name`` (a key of ``METHODS``) with its constructor's ``options``.

    Raises:
        ValueError: no such method.

    Example:
        >>> create("cutmix", alpha=0.2)
        CutMix(alpha=0.2, mode='batch')
    """
    if name not in METHODS:
        raise ValueError(f"fastmix.methods.create: name must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name](**options)
