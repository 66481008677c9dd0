"""Cases of the losses against two labels: forward and backward of the mean."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops
from fastmix.bench.cases import GRADIENT, Case, Entry

LOGITS = {"imagenet": (256, 1000), "imagenet-21k": (1024, 21841)}
SMOOTHING, THRESHOLD = 0.1, 0.2


def entries() -> Iterator[Entry]:
    for size, shape in LOGITS.items():
        quick = size == "imagenet"
        for op, make in (
            ("mix_cross_entropy", cross_entropy_case),
            ("mix_binary_cross_entropy", binary_case),
            ("soft_cross_entropy", soft_case),
        ):
            name = f"{op}{GRADIENT}/{size}"
            yield Entry(name, partial(make, name, shape), quick)
        name = f"mix_cross_entropy{GRADIENT}/{size}-smoothing"
        yield Entry(name, partial(smoothed_case, name, shape))


def _inputs(shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Logits, two labels, one weight for the batch, and the gradient of the loss."""
    device = generator.device
    logits = 3 * torch.randn(shape, generator=generator, device=device)
    y, y_b = torch.randint(shape[1], (2, shape[0]), generator=generator, device=device)
    lam, cotangent = torch.rand(2, generator=generator, device=device)
    return logits, y, y_b, lam, cotangent


def _case(name: str, inputs: tuple[Tensor, ...], fast, eager) -> Case:
    # The backward pass reads the logits and writes their gradient.
    return Case(name, inputs, fast, eager, 2 * inputs[0].numel() * 4, wanted=(0,))


def cross_entropy_case(name: str, shape: tuple[int, int], generator: torch.Generator) -> Case:
    """Beside two weighted cross entropies."""

    def eager(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        return lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y_b)

    return _case(name, _inputs(shape, generator), ops.mix_cross_entropy, eager)


def _targets(y: Tensor, y_b: Tensor, lam: Tensor, classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Dense mixed labels, as timm makes them."""
    off = smoothing / classes
    own, partner = (
        torch.full((len(y), classes), off, dtype=dtype, device=y.device).scatter_(
            1, labels[:, None], 1 - smoothing + off
        )
        for labels in (y, y_b)
    )
    return own * lam + partner * (1 - lam)


def smoothed_case(name: str, shape: tuple[int, int], generator: torch.Generator) -> Case:
    """With label smoothing, beside timm's way: dense targets and the soft cross entropy."""

    def fast(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor, **options) -> Tensor:
        return ops.mix_cross_entropy(z, y, y_b, lam, SMOOTHING, **options)

    def eager(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        target = _targets(y, y_b, lam, z.shape[1], SMOOTHING, z.dtype)
        return torch.sum(-target * F.log_softmax(z, -1), -1).mean()

    return _case(name, _inputs(shape, generator), fast, eager)


def binary_case(name: str, shape: tuple[int, int], generator: torch.Generator) -> Case:
    """Thresholded, as in the RSB recipe, beside timm's way."""

    def fast(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor, **options) -> Tensor:
        return ops.mix_binary_cross_entropy(z, y, y_b, lam, threshold=THRESHOLD, **options)

    def eager(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        target = _targets(y, y_b, lam, z.shape[1], 0.0, z.dtype).gt(THRESHOLD).to(z.dtype)
        return F.binary_cross_entropy_with_logits(z, target)

    return _case(name, _inputs(shape, generator), fast, eager)


def soft_case(name: str, shape: tuple[int, int], generator: torch.Generator) -> Case:
    """Dense targets of both images, mixed on the way."""
    logits, _, _, lam, cotangent = _inputs(shape, generator)
    y, y_b = (torch.randn(shape, generator=generator, device=generator.device).softmax(1) for _ in range(2))

    def eager(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        return F.cross_entropy(z, lam * y + (1 - lam) * y_b)

    return _case(name, (logits, y, y_b, lam, cotangent), ops.soft_cross_entropy, eager)
