"""Cases of the ops that make masks and boxes: spectral masks, saliency maps, boxes from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops, reference
from fastmix.bench.cases import IMAGES, Case, Entry

SIZES = ("cifar", "tiny", "imagenet")


def entries() -> Iterator[Entry]:
    for size in SIZES:
        shape, quick = IMAGES[size], size == "cifar"
        for spectrum in ("paper", "reference"):
            name = f"spectral_mask/{size}-{spectrum}"
            yield Entry(name, partial(spectral_case, name, shape, spectrum), quick)
        for op, make in (("fine_grained_saliency", saliency_case), ("saliency_box", box_case)):
            yield Entry(f"{op}/{size}", partial(make, f"{op}/{size}", shape), quick)


def saliency_case(name: str, shape: tuple, generator: torch.Generator) -> Case:
    """Of images of coarse spots with some noise."""
    n, _, height, width = shape
    x = torch.randn(shape, generator=generator, device=generator.device)
    spots = F.interpolate(x[:, :, ::8, ::8], (height, width), mode="bicubic")
    images = (255 * (0.8 * spots + 0.2 * x).sigmoid()).byte()
    moved = images.numel() + 4 * n * height * width
    return Case(name, (images,), ops.fine_grained_saliency, reference.fine_grained_saliency, moved, compiles=False)


def box_case(name: str, shape: tuple, generator: torch.Generator) -> Case:
    n, _, height, width = shape
    saliency = torch.rand(n, height, width, generator=generator, device=generator.device)
    lam = torch.rand(n, generator=generator, device=generator.device)

    def eager(saliency: Tensor, lam: Tensor) -> Tensor:
        return reference.saliency_box(saliency, lam, None, (height, width))

    def agree(found: Tensor, case: Case) -> str:
        return "" if torch.equal(found, eager(*case.args)) else "boxes differ from the reference"

    moved = saliency.numel() * 4
    return Case(name, (saliency, lam), ops.saliency_box, eager, moved, agree=agree, compiles=False)


def spectral_case(name: str, shape: tuple, spectrum: str, generator: torch.Generator) -> Case:
    n, _, *size = shape
    size, device = tuple(size), generator.device
    noise = torch.randn(n, *ops.spectral_mask_noise_shape(size, spectrum), generator=generator, device=device)
    count = torch.randint(0, size[0] * size[1] + 1, (n,), generator=generator, device=device)

    def call(op: Callable) -> Callable:
        return lambda noise, count, **options: op(noise, count, size, 3.0, spectrum, **options)

    def agree(found: Tensor, case: Case) -> str:
        """Pixels of nearly the same value may change places by rounding."""
        if not torch.equal(found.sum((1, 2)).long(), count):
            return "a mask has a wrong number of pixels"
        share = (found != call(reference.spectral_mask)(noise.double(), count)).double().mean().item()
        return "" if share <= 1e-3 else f"{100 * share:.2g} % of the pixels differ from the reference"

    moved = noise.numel() * 4 + 4 * n * size[0] * size[1]
    fast, eager = call(ops.spectral_mask), call(reference.spectral_mask)
    return Case(name, (noise, count), fast, eager, moved, agree=agree, compiles=False)
