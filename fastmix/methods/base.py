"""What all mixing methods share: the random plan of a batch, drawn where the batch lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmix.batch import MixBatch
from fastmix.losses import on_device

Normalize = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]


class MixMethod:
    """Base of the methods: draws ``lam ~ Beta(alpha, alpha)`` and a permutation, then calls :meth:`mix`.

    A new method is one file with one subclass that implements :meth:`mix` and one entry in
    ``fastmix.methods.METHODS``.

    Args:
        alpha: parameter of the Beta law, > 0.
        per_sample: one ``lam`` (and box) for each image instead of one for the batch.
        normalize: ``(mean, std)`` per channel, read once here, applied to the mixed images in the same pass; uint8
            images are scaled to ``[0, 1]`` first.
        dtype: dtype of the mixed images (default: that of the input, or float32 with ``normalize`` and uint8).
        backend: fixed backend of the operation (default: chosen by device).

    Raises:
        ValueError: ``alpha`` not positive.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        per_sample: bool = False,
        *,
        normalize: Normalize | None = None,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:
        if not alpha > 0:
            raise ValueError(f"fastmix.{type(self).__name__}: alpha must be > 0, got {alpha}")
        self.alpha = alpha
        self.per_sample = per_sample
        self.normalize = None if normalize is None else tuple(_numbers(part) for part in normalize)
        self.dtype, self.backend = dtype, backend

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
    ) -> MixBatch:
        """Mix ``x (N, C, H, W)`` with labels ``y (N,)`` int64.

        Args:
            generator: source of the randomness (default: torch's generator of the device of ``x``). A CPU
                generator may be used with a CUDA batch, at the price of a copy.
            lam: fixed weight of the own image, ``()`` or ``(N,)``, instead of a random one.
            index: fixed partners ``(N,)`` int64 instead of a random permutation.

        Raises:
            TypeError: ``x`` or ``y`` not a tensor, ``y`` not int64.
            ValueError: ``y`` not ``(N,)`` or ``lam`` neither ``()`` nor ``(N,)``.
        """
        self._check(x, y)
        return self.mix(x, y, *self._draw(x, generator, lam, index), generator)

    def _draw(
        self, x: Tensor, generator: torch.Generator | None, lam: Tensor | float | None, index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weights and partners: those given, checked, or random ones."""
        size, device = x.shape[0], x.device
        if lam is None:
            lam = draw_beta(self.alpha, (size,) if self.per_sample else (), generator, device)
        else:
            lam = on_device(lam, torch.float32, device)
            if lam.shape not in ((), (size,)):
                raise ValueError(
                    f"fastmix.{type(self).__name__}: lam must have shape () or ({size},), got {tuple(lam.shape)}"
                )
        if index is None:
            index = draw_permutation(size, generator, device)
        return lam, index

    def mix(self, x: Tensor, y: Tensor, lam: Tensor, index: Tensor, generator: torch.Generator | None) -> MixBatch:
        """Mix with a given plan: ``lam`` float32 ``()`` or ``(N,)``, ``index (N,)`` int64."""
        raise NotImplementedError

    def options(self, x: Tensor) -> dict[str, Any]:
        """Keyword arguments for the operation that mixes ``x``."""
        dtype = self.dtype
        if dtype is None and self.normalize is not None and x.dtype == torch.uint8:
            dtype = torch.float32
        return {"normalize": self.normalize, "dtype": dtype, "backend": self.backend}

    def _check(self, x: Tensor, y: Tensor) -> None:
        where = f"fastmix.{type(self).__name__}"
        if not isinstance(x, Tensor) or x.dim() < 1:
            raise TypeError(f"{where}: x must be a tensor of shape (N, ...), got {type(x).__name__}")
        if not isinstance(y, Tensor) or y.dtype != torch.int64:
            got = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"{where}: y must be int64 of shape ({x.shape[0]},), got {got}")
        if y.shape != x.shape[:1]:
            raise ValueError(f"{where}: y must have shape ({x.shape[0]},), got {tuple(y.shape)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha}, per_sample={self.per_sample})"


def _numbers(values: Sequence[float] | Tensor) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())


def draw_beta(alpha: float, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A float32 tensor of draws from Beta(alpha, alpha) on ``device``, without a host synchronisation.

    As the ratio of two Gamma draws in float64, which keeps small ``alpha`` (0.1 and below) free of 0/0.
    """
    source = generator.device if generator is not None else device
    concentration = torch.full((2, *shape), float(alpha), dtype=torch.float64, device=source)
    gamma = torch._standard_gamma(concentration, generator=generator)
    return _to((gamma[0] / (gamma[0] + gamma[1])).float(), device)


def draw_permutation(size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A random permutation ``(size,)`` int64 on ``device``."""
    source = generator.device if generator is not None else device
    return _to(torch.randperm(size, generator=generator, device=source), device)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float32 draws from ``[0, 1)`` on ``device``."""
    source = generator.device if generator is not None else device
    return _to(torch.rand(shape, generator=generator, device=source), device)


def _to(value: Tensor, device: torch.device) -> Tensor:
    if value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
