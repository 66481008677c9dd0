"""What all mixing methods share: the declaration, the random numbers where the batch lives, and the call."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastmix import _checks, _settings
from fastmix.batch import MixBatch
from fastmix.losses import on_device
from fastmix.plan import Choice, Plan

Normalize = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]

MODES = ("batch", "pair", "sample")
PAIRINGS = ("perm", "flip", "roll", "derangement")

# Gamma draws of a smaller shape may be 0 in float64: G < 1e-308 has the probability 1e-31 at 0.1, and 0.24 at 0.002.
SMALL_ALPHA = 0.1

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
        alpha: parameter of the law Beta(alpha, alpha) of ``lam``, finite and > 0.
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
        p: probability that the batch is mixed at all; in the modes "sample" and "pair" that each image or pair is. The
            others stay as they are: ``lam`` 1, their own partners, a box without area, a mask of ones. The coin is
            tossed on the device, after all else is drawn, also where ``lam`` or ``index`` is given.
        check_layout: refuse images that look like ``(N, H, W, C)``: the last side is 1, 3 or 4, the others are longer
            and none of these. No batch ``(N, C, H, W)`` with 1, 3 or 4 channels does, but feature maps 1, 3 or 4 wide
            may: mix those with False.

    Raises:
        ValueError: a setting of a wrong kind or out of its range; unequal lengths of ``normalize``, a ``std`` not > 0.
        TypeError: a keyword the method does not have; ``normalize`` not a pair of sequences of numbers.
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
        p: float = 1.0,
        check_layout: bool = True,
        **unknown: Any,
    ) -> None:
        where = type(self).__name__
        if unknown:
            _settings.keywords(where, unknown, _settings.parameters(type(self)))
        self.alpha = _settings.number(where, "alpha", self.default_alpha if alpha is None else alpha, above=True)
        self.mode = _settings.one_of(where, "mode", self.default_mode if mode is None else mode, MODES)
        self.pairing = _settings.one_of(where, "pairing", pairing, PAIRINGS)
        self.normalize = None if normalize is None else _constants(where, normalize)
        self.dtype, self.backend = dtype, backend
        self.p = self.mix_prob = _settings.number(where, "p", p, 0, 1)
        self.check_layout = _settings.flag(where, "check_layout", check_layout)

    def __init_subclass__(cls) -> None:
        cls._takes = tuple(inspect.signature(cls.plan).parameters)[3:]

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
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
            y: ``(N,)`` class numbers, or floating ``(N, K)`` (several labels, probabilities) or ``(N,)`` (values of a
                regression); they go into the batch as they are. None: an unlabelled batch, which has no loss.
            generator: source of the randomness (default: torch's generator of the device of ``x``). A CPU
                generator may be used with a CUDA batch, at the price of a copy.
            lam: fixed weight of the own image, ``()`` or ``(N,)`` in [0, 1], instead of a random one.
            index: fixed partners ``(N,)`` int64 in [0, N), on the device of ``x``, instead of those of ``pairing``.
            out: takes the mixed images, of their shape and dtype and of the layout of ``x``.
            given: what else the method draws at random or needs, see its :meth:`plan`.

        Raises:
            TypeError: ``x`` or ``y`` not a tensor, or of a wrong dtype; a keyword that the method does not take.
            ValueError: a wrong shape of ``x``, ``y``, ``lam`` or ``index``, images that look like ``(N, H, W, C)``;
                values of ``lam``, ``index`` or what else is given that are out of their range. Those of CUDA tensors
                are not read: they are the caller's care.
        """
        self._check(x, y)
        unknown = [name for name in given if name not in self._takes]
        _settings.keywords(type(self).__name__, unknown, ("generator", "lam", "index", "out", *self._takes))
        draw = self.draw(x, generator, lam, index)
        return self.finish(x, y, self._alone_or(self.plan(x, draw, **given), draw), out)

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
        where = type(self).__name__
        lam = None if lam is None else _weight(where, lam, x)
        if index is not None:
            _check_index(where, index, x)
        return self._draw(x, generator, lam, index)

    def _draw(self, x: Tensor, generator: torch.Generator | None, lam: Tensor | None, index: Tensor | None) -> Draw:
        alpha, where = self.alpha if self.draws_lam else None, type(self).__name__
        return Draw(where, alpha, self.mode, self.pairing, x.shape[0], x.device, generator, lam, index)

    def _alone_or(self, plan: Plan | Choice, draw: Draw) -> Plan | Choice:
        """The plan with probability ``p``, and otherwise no mixing."""
        if self.mix_prob == 1:
            return plan
        mixed = draw.coin(self.mix_prob)
        return plan.where(mixed, torch.where(mixed, plan.index, torch.arange(draw.size, device=draw.device)))

    @property
    def draws_lam(self) -> bool:
        """Whether the method uses a random ``lam ~ Beta(alpha, alpha)`` of its own."""
        return True

    def finish(self, x: Tensor, y: Tensor | None, plan: Plan, out: Tensor | None = None) -> MixBatch:
        """Mix ``x`` as planned."""
        mixed, plan.lam = plan.mix(x, out=out, **self.options(x))
        index, own = plan.index.flatten(), y
        if y is not None and plan.index.dim() == 2:
            own = y.repeat(plan.index.shape[0], *[1] * (y.dim() - 1))
        lam, lam_b = (part if part is None or part.dim() < 2 else part.flatten() for part in (plan.lam, plan.lam_b))
        box = None if plan.box is None else plan.box.expand(*plan.index.shape, 4).reshape(-1, 4)
        mask = plan.mask
        if mask is not None:
            mask = mask.expand(*plan.index.shape, *mask.shape[-2:]).reshape(-1, *mask.shape[-2:])
        return MixBatch(mixed, own, labels_of(y, index), lam, index, mask, box, lam_b=lam_b, plan=plan)

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

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        where = type(self).__name__
        _checks.samples(where, x, y)
        self.check_shape(x)
        if self.check_layout:
            _checks.channels_first(where, x)
        if y is not None and (y.dim() > 2 or y.is_complex()):
            raise ValueError(
                f"fastmix.{where}: y must have shape ({x.shape[0]},) or ({x.shape[0]}, K), got {_checks.describe(y)}"
            )

    def _require(self, holds: bool, rule: str, got: object) -> None:
        if not holds:
            raise ValueError(f"fastmix.{type(self).__name__}: {rule}, got {got!r}")

    def __repr__(self) -> str:
        shown = {"alpha": self.alpha, "mode": self.mode}
        for name, parameter in _settings.parameters(type(self)).items():
            if name not in shown and getattr(self, name, parameter.default) != parameter.default:
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
        self.mode = mode
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
            return self.check(given, name, shape, low=0, high=1)
        return self._paired(draw_uniform((*self.lead, *shape), self.generator, self.device))

    def normal(self, *shape: int, given: Tensor | None = None, name: str = "") -> Tensor:
        """The same from the standard normal law."""
        if given is not None:
            return self.check(given, name, shape)
        return self._paired(draw_normal((*self.lead, *shape), self.generator, self.device))

    def coin(self, p: float) -> Tensor:
        """True with probability ``p``: ``()``, or ``(N,)`` in the modes "sample" and "pair"."""
        shape = () if self.mode == "batch" else (self.size,)
        drawn = draw_uniform(shape, self.generator, self.device) < p
        return drawn if self._first is None else drawn[self._first]

    def check(
        self,
        value: Tensor | float,
        name: str,
        shape: tuple[int | None, ...],
        dtype: torch.dtype = torch.float32,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Tensor:
        """A given value on the device, of ``shape`` (None: any size) or with one such a sample, in ``[low, high]``."""
        if not isinstance(value, (Tensor, numbers.Real)):
            raise TypeError(f"fastmix.{self.where}: {name} must be a number or a tensor, got {type(value).__name__}")
        if not dtype.is_floating_point and isinstance(value, Tensor) and value.is_floating_point():
            raise TypeError(f"fastmix.{self.where}: {name} must be {dtype}, got {value.dtype}")
        if (low, high) != (-math.inf, math.inf):
            _checks.given_range(self.where, name, value, low, high)
        value = on_device(value, dtype, self.device)
        for lead in ((), (self.size,)):
            wanted = (*lead, *shape)
            if value.dim() == len(wanted) and all(w in (None, n) for w, n in zip(wanted, value.shape, strict=True)):
                return value
        shown = ", ".join("any" if part is None else str(part) for part in shape)
        raise ValueError(
            f"fastmix.{self.where}: {name} must have shape ({shown}) or the same for each of {self.size} samples, "
            f"got {tuple(value.shape)}"
        )

    def _paired(self, value: Tensor) -> Tensor:
        return value if self._first is None else value[self._first]


def labels_of(y: Tensor | None, index: Tensor) -> Tensor | None:
    """Labels of the partners, if there are labels."""
    return None if y is None else y[index]


def _constants(where: str, normalize: Normalize) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numbers of a `(mean, std)`."""
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 2:
        raise TypeError(f"fastmix.{where}: normalize must be a pair (mean, std), got {_checks.describe(normalize)}")
    mean = _checks.constants(where, "the mean of normalize", normalize[0])
    std = _checks.constants(where, "the std of normalize", normalize[1], positive=True)
    mean, std = (part.double().flatten().tolist() if isinstance(part, Tensor) else part for part in (mean, std))
    if len(mean) != len(std):
        raise ValueError(f"fastmix.{where}: normalize must hold as many means as stds, got {len(mean)} and {len(std)}")
    return tuple(mean), tuple(std)


def _weight(where: str, lam: Tensor | float, x: Tensor) -> Tensor:
    """A given ``lam`` on the device of `x`."""
    number = isinstance(lam, numbers.Real) and not isinstance(lam, bool)
    if not number and not (isinstance(lam, Tensor) and lam.is_floating_point()):
        raise TypeError(f"fastmix.{where}: lam must be a number or a floating tensor, got {_checks.describe(lam)}")
    if not number and lam.shape not in ((), x.shape[:1]):
        raise ValueError(f"fastmix.{where}: lam must have shape () or ({x.shape[0]},), got {tuple(lam.shape)}")
    _checks.given_range(where, "lam", lam, 0, 1)
    return on_device(lam, torch.float32, x.device)


def _check_index(where: str, index: Tensor, x: Tensor) -> None:
    """(N,) int64 on the device of `x`, in [0, N)."""
    typed = isinstance(index, Tensor) and index.dtype is torch.int64
    if not typed or index.shape != x.shape[:1] or index.device != x.device:
        raise (ValueError if typed else TypeError)(
            f"fastmix.{where}: index must be int64 of shape ({x.shape[0]},) on {x.device}, "
            f"got {_checks.describe(index)}"
        )
    _checks.given_range(where, "index", index, 0, x.shape[0] - 1)


def draw_beta(alpha: float, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A float32 tensor of draws from Beta(alpha, alpha) on ``device``, without a host synchronisation.

    The share of one of two Gamma(alpha) draws, in float64. A small ``alpha`` makes draws that are less than any number
    there: of those the logarithm is drawn, ``log G(alpha) = log G(alpha + 1) + log(U) / alpha`` with a uniform U
    (Marsaglia and Tsang 2000), and the share is the sigmoid of a difference. Much of such a law is 0 and 1 in float32.
    """
    source = generator.device if generator is not None else device
    alpha = min(float(alpha), 1e300)  # two draws of a larger shape have no sum
    small = alpha < SMALL_ALPHA
    concentration = torch.full((2, *shape), alpha + small, dtype=torch.float64, device=source)
    gamma = torch._standard_gamma(concentration, generator=generator)
    if not small:
        return _to((gamma[0] / (gamma[0] + gamma[1])).float(), device)
    uniform = torch.rand((2, *shape), generator=generator, dtype=torch.float64, device=source)
    own, partner = gamma.log().unbind()
    own_boost, partner_boost = torch.log1p(-uniform).unbind()  # of (0, 1]
    logit = own - partner + (own_boost - partner_boost) / alpha
    return _to(logit.sigmoid().float(), device)


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
