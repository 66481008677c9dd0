"""What the tests of the mixing methods share: how each is built and what it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix import methods

NAMES = list(methods.METHODS)
SIZE = (12, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, *SIZE, generator=generator(seed)), torch.arange(n) % 4


def build(name: str, **options) -> methods.MixMethod:
    if name == "puzzlemix":
        options = {"blocks": (2, 4), **options}
    return methods.create(name, **options)


def needed(name: str, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What a call of the method needs for these images."""
    needs = methods.METHODS[name].needs
    if needs == "saliency":
        return {"saliency": torch.randn(x.shape, generator=generator(seed + 9))}
    if needs == "features":
        return {"saliency": torch.randn(len(x), 5, 3, 4, generator=generator(seed + 9))}
    return {}
