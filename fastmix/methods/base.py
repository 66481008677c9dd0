"""What all mixing methods share: the declaration, the random numbers where the batch lives, and the call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastmix.batch import MixBatch
from fastmix.losses import on_device
from fastmix.plan import Plan

Normalize = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]

MODES = ("batch", "pair", "sample")
PAIRINGS = ("perm", "flip", "roll", "derangement")

SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}

# Data sets of the AutoMix paper (Liu et al. 2022, Appendix A.1), for which every method names its alpha.
DATA_SETS = {
    "cifar": "CIFAR-10/100",
    "imagenet-r18": "Tiny-ImageNet, ImageNet: ResNet-18",
    "imagenet": "ImageNet: ResNet-34 and larger",
    "inat": "iNaturalist 2017/18",
    "imagenet-vit": "ImageNet: DeiT, RSB; Places205",
    "cub": "CUB-200, Aircraft",
}


def alphas(*values: float | None) -> dict[str, float | str]:
    """Alpha for each of ``DATA_SETS``, in their order; None where the paper has none."""
    return {name: value for name, value in zip(DATA_SETS, values, strict=True) if value is not None}


class Paper(NamedTuple):
    """Where a method was published."""

    title: str
    authors: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        place = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors} {self.year}{place}"


class MixMethod:
    """Base of the methods. A method is one file with one subclass, which declares itself and implements :meth:`plan`.

    Class attributes, the declaration:
        name: key in ``fastmix.methods.METHODS``.
        paper: where it was published, or None.
        ops: the operations of ``fastmix.ops`` it calls.
        alphas: alpha for each of ``DATA_SETS`` that a paper names, see :func:`alphas`.
        needs: what a call needs beside the batch: "saliency" (the gradient of a loss, keyword ``saliency``),
            "features" (a feature map, keyword ``saliency``) or "model" (the model must be run by :meth:`forward`).
        dims: numbers of dimensions ``x`` may have; None: any.
        combines: whether a ``Mixer`` may choose it, which takes one plan for the images of the batch.
        default_alpha, default_mode: of the constructor.
        uses_alpha: whether alpha has an effect with the default options.

    Args:
        alpha: parameter of the law Beta(alpha, alpha) of ``lam``, > 0.
        mode: "batch": one ``lam`` (and box, mask ...) for the batch, as in most published code; "sample": one for
            each image; "pair": one for each pair, so that ``lam[n] == lam[index[n]]`` where the partner of the
            partner is the image itself, as with ``pairing="flip"``. In general image n uses what was drawn for
            ``min(n, index[n])``.
        pairing: how partners are found: "perm" by a random permutation, "flip": n with N - 1 - n, "roll": n with
            n - 1, "derangement": by a random cycle through the batch, so that nobody is its own partner (N > 1).
        normalize: ``(mean, std)`` per channel, read once here, applied to the mixed images in the same pass; uint8
            images are scaled to ``[0, 1]`` first.
        dtype: dtype of the mixed images (default: that of the input, or float32 with ``normalize`` and uint8).
        backend: fixed backend of the operation (default: chosen by device).

    Raises:
        ValueError: ``alpha`` not positive, an unknown mode or pairing.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    ops: ClassVar[tuple[str, ...]] = ()
    alphas: ClassVar[dict[str, float | str]] = {}
    needs: ClassVar[str | None] = None
    dims: ClassVar[tuple[int, ...] | None] = (4,)
    combines: ClassVar[bool] = True
    default_alpha: ClassVar[float] = 1.0
    default_mode: ClassVar[str] = "batch"
    uses_alpha: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float | None = None,
        *,
        mode: str | None = None,
        pairing: str = "perm",
        normalize: Normalize | None = None,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
    ) -> None:
        self.alpha = self.default_alpha if alpha is None else alpha
        self.mode = self.default_mode if mode is None else mode
        self.pairing = pairing
        self._require(self.alpha > 0, "alpha must be > 0", alpha)
        self._require(self.mode in MODES, f"mode must be one of {', '.join(MODES)}", mode)
        self._require(pairing in PAIRINGS, f"pairing must be one of {', '.join(PAIRINGS)}", pairing)
        self.normalize = None if normalize is None else tuple(_numbers(part) for part in normalize)
        self.dtype, self.backend = dtype, backend

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        *,
        out: Tensor | None = None,
        **given: Any,
    ) -> MixBatch:
        """Mix ``x (N, C, H, W)`` with targets ``y``.

        Args:
            x: images; see ``dims`` for other shapes a method takes.
            y: ``(N,)`` int64 class numbers, or floating ``(N, K)`` (several labels, probabilities) or ``(N,)`` (values
                of a regression).
            generator: source of the randomness (default: torch's generator of the device of ``x``). A CPU
                generator may be used with a CUDA batch, at the price of a copy.
            lam: fixed weight of the own image, ``()`` or ``(N,)``, instead of a random one.
            index: fixed partners ``(N,)`` int64 instead of those of ``pairing``.
            out: takes the mixed images, of their shape and dtype and of the layout of ``x``.
            given: what else the method draws at random or needs, see its :meth:`plan`.

        Raises:
            TypeError: ``x`` or ``y`` not a tensor, or of a wrong dtype.
            ValueError: a wrong shape of ``x``, ``y``, ``lam`` or ``index``.
        """
        self._check(x, y)
        draw = self.draw(x, generator, lam, index)
        return self.finish(x, y, self.plan(x, draw, **given), out)

    def plan(self, x: Tensor, draw: Draw, **given: Any) -> Plan:
        """How the batch is mixed, from the random numbers of ``draw``. ``x`` is looked at, not mixed."""
        raise NotImplementedError

    def forward(self, model: nn.Module, batch: MixBatch) -> Tensor:
        """Output of ``model`` for a mixed batch: ``model(batch.x)``, unless the method mixes inside the model."""
        return model(batch.x)

    def draw(
        self,
        x: Tensor,
        generator: torch.Generator | None,
        lam: Tensor | float | None,
        index: Tensor | None,
    ) -> Draw:
        """Weights and partners, those given, checked, or random ones, and the source of all else."""
        size, where = x.shape[0], f"fastmix.{type(self).__name__}"
        if lam is not None:
            lam = on_device(lam, torch.float32, x.device)
            if lam.shape not in ((), (size,)):
                raise ValueError(f"{where}: lam must have shape () or ({size},), got {tuple(lam.shape)}")
        if index is not None and (not isinstance(index, Tensor) or index.shape != (size,)):
            got = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
            raise ValueError(f"{where}: index must be int64 of shape ({size},), got {got}")
        alpha = self.alpha if self.draws_lam else None
        return Draw(where, alpha, self.mode, self.pairing, size, x.device, generator, lam, index)

    @property
    def draws_lam(self) -> bool:
        """Whether the method uses a random ``lam ~ Beta(alpha, alpha)`` of its own."""
        return True

    def finish(self, x: Tensor, y: Tensor, plan: Plan, out: Tensor | None = None) -> MixBatch:
        """Mix ``x`` as planned."""
        mixed, plan.lam = plan.mix(x, out=out, **self.options(x))
        index = plan.index.flatten()
        own = y if plan.index.dim() == 1 else y.repeat(plan.index.shape[0], *[1] * (y.dim() - 1))
        lam, lam_b = (part if part is None or part.dim() < 2 else part.flatten() for part in (plan.lam, plan.lam_b))
        box = None if plan.box is None else plan.box.expand(*plan.index.shape, 4).reshape(-1, 4)
        mask = plan.mask
        if mask is not None:
            mask = mask.expand(*plan.index.shape, *mask.shape[-2:]).reshape(-1, *mask.shape[-2:])
        return MixBatch(mixed, own, y[index], lam, index, mask, box, lam_b=lam_b, plan=plan)

    def options(self, x: Tensor) -> dict[str, Any]:
        """Keyword arguments for the operation that mixes ``x``."""
        dtype = self.dtype
        if dtype is None and self.normalize is not None and x.dtype == torch.uint8:
            dtype = torch.float32
        return {"normalize": self.normalize, "dtype": dtype, "backend": self.backend}

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError where the method does not take batches of the shape of ``x``."""
        if self.dims is not None and x.dim() not in self.dims:
            shapes = " or ".join(SHAPES[dims] for dims in self.dims)
            raise ValueError(f"fastmix.{type(self).__name__}: x must have shape {shapes}, got {tuple(x.shape)}")

    def _check(self, x: Tensor, y: Tensor) -> None:
        where = f"fastmix.{type(self).__name__}"
        if not isinstance(x, Tensor) or x.dim() < 1:
            raise TypeError(f"{where}: x must be a tensor of shape (N, ...), got {type(x).__name__}")
        self.check_shape(x)
        if not isinstance(y, Tensor) or not (y.dtype is torch.int64 or y.is_floating_point()):
            got = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(
                f"{where}: y must be int64 of shape ({x.shape[0]},) or floating of shape ({x.shape[0]}, K), got {got}"
            )
        if y.shape[:1] != x.shape[:1] or y.dim() > 1 + y.is_floating_point():
            shapes = f"({x.shape[0]},)" + (f" or ({x.shape[0]}, K)" if y.is_floating_point() else "")
            raise ValueError(f"{where}: y must have shape {shapes}, got {tuple(y.shape)}")

    def _require(self, holds: bool, rule: str, got: object) -> None:
        if not holds:
            raise ValueError(f"fastmix.{type(self).__name__}: {rule}, got {got!r}")

    def __repr__(self) -> str:
        shown = {"alpha": self.alpha, "mode": self.mode}
        for kind in type(self).__mro__[:-1]:
            for name, parameter in inspect.signature(kind.__init__).parameters.items():
                own = name not in ("self", *shown) and parameter.kind is not parameter.VAR_KEYWORD
                if own and getattr(self, name, parameter.default) != parameter.default:
                    shown[name] = getattr(self, name)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Draw:
    """The random numbers of one call, drawn where the batch lives: a set for the batch, for each pair or each sample.

    Attributes:
        lam: ``()`` or ``(N,)`` float32, given or from Beta(alpha, alpha); None where ``alpha`` is None.
        index: ``(N,)`` int64 partners.
        given: whether ``lam`` was given.
        lead: shape of what is drawn: ``()``, or ``(N,)`` where each sample has its own.
        generator: source of the randomness, or None.
    """

    def __init__(
        self,
        where: str,
        alpha: float | None,
        mode: str,
        pairing: str,
        size: int,
        device: torch.device,
        generator: torch.Generator | None,
        lam: Tensor | None,
        index: Tensor | None,
    ) -> None:
        self.where, self.size, self.device, self.generator = where, size, device, generator
        self.given = lam is not None
        self.lead = () if mode == "batch" and (lam is None or lam.dim() == 0) else (size,)
        if lam is None and alpha is not None:
            lam = draw_beta(alpha, self.lead, generator, device)
        self.index = draw_partners(pairing, size, generator, device) if index is None else index
        # Both of a pair find the same number here.
        self._first = torch.minimum(self.index, torch.arange(size, device=device)) if mode == "pair" else None
        self.lam = lam if self.given or lam is None else self._paired(lam)

    def uniform(self, *shape: int, given: Tensor | float | None = None, name: str = "") -> Tensor:
        """Draws from ``[0, 1)``, ``(*lead, *shape)`` float32, or the ``given`` ones, ``shape`` or ``(N, *shape)``."""
        if given is not None:
            return self.check(given, name, shape)
        return self._paired(draw_uniform((*self.lead, *shape), self.generator, self.device))

    def normal(self, *shape: int, given: Tensor | None = None, name: str = "") -> Tensor:
        """The same from the standard normal law."""
        if given is not None:
            return self.check(given, name, shape)
        return self._paired(draw_normal((*self.lead, *shape), self.generator, self.device))

    def check(
        self, value: Tensor | float, name: str, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A given value on the device, of ``shape`` (None: any size) or with one such a sample."""
        value = on_device(value, dtype, self.device)
        for lead in ((), (self.size,)):
            wanted = (*lead, *shape)
            if value.dim() == len(wanted) and all(w in (None, n) for w, n in zip(wanted, value.shape, strict=True)):
                return value
        shown = ", ".join("any" if part is None else str(part) for part in shape)
        raise ValueError(
            f"{self.where}: {name} must have shape ({shown}) or the same for each of {self.size} samples, "
            f"got {tuple(value.shape)}"
        )

    def _paired(self, value: Tensor) -> Tensor:
        return value if self._first is None else value[self._first]


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


def draw_partners(pairing: str, size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Partners ``(size,)`` int64 by one of ``PAIRINGS``, on ``device``."""
    if pairing in ("flip", "roll"):
        order = torch.arange(size, device=device)
        return order.flip(0) if pairing == "flip" else order.roll(1)
    order = draw_permutation(size, generator, device)
    return order if pairing == "perm" else torch.empty_like(order).scatter_(0, order, order.roll(-1))


def draw_permutation(size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A random permutation ``(size,)`` int64 on ``device``."""
    source = generator.device if generator is not None else device
    return _to(torch.randperm(size, generator=generator, device=source), device)


def draw_uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float32 draws from ``[0, 1)`` on ``device``."""
    source = generator.device if generator is not None else device
    return _to(torch.rand(shape, generator=generator, device=source), device)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float32 draws from the standard normal law on ``device``."""
    source = generator.device if generator is not None else device
    return _to(torch.randn(shape, generator=generator, device=source), device)


def _to(value: Tensor, device: torch.device) -> Tensor:
    if value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
