"""PuzzleMix: a mask and a transport of blocks that keep what is salient in both images (Kim et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmix import _checks, _settings, ops
from fastmix.batch import MixBatch
from fastmix.methods.base import Draw, MixMethod, Paper, alphas, draw_uniform, labels_of
from fastmix.plan import Plan

_CIFAR = {"mean": (129.3 / 255, 124.1 / 255, 112.4 / 255), "std": (68.2 / 255, 65.4 / 255, 70.4 / 255)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "neighborhood": 2}

# The published settings, where they differ from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar100": {**_CIFAR, "t_size": 4},
    "tiny_imagenet": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "imagenet": _IMAGENET,
    "imagenet_fast": {**_IMAGENET, "beta": 1.5},
}


class Noise(NamedTuple):
    """Adversarial noise of a batch, in units of images in [0, 1].

    Attributes:
        delta: ``(N, C, H, W)``, added to the images.
        own, partner: whether the own images and the partners are mixed with it.
    """

    delta: Tensor
    own: bool
    partner: bool


class PuzzleMix(MixMethod):
    """Blocks of both images, chosen by a minimum cut over their saliency and moved to where they stay visible.

    An image is cut into B x B blocks. The mask, with ``n_labels`` levels a block, minimises the saliency that is
    hidden, plus penalties for unequal neighbours and for a share of the own image other than ``lam ~ Beta(alpha,
    alpha)``. Each image's blocks then move, at a price by the distance, so that salient ones lie where the mask shows
    the image. The returned ``lam (N,)`` is the mean of each mask. Operations: ``saliency_pool``, ``puzzle_energy``,
    ``grid_cut``, ``transport``, ``mask_blend``. Square images or others; B is the same along both sides.

    Deviations from the published code, all for the better: the cut is exact for every number of labels
    (``solver="swap"`` restores the published one); nothing overflows, so that a very salient block is kept, not lost;
    a saliency of zeros, or one that is not finite, counts as uniform, where the published code spoils the image.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        blocks: numbers B to draw from, uniformly, one for the batch. Each must divide the sides of the images.
        blocks_per_sample: draw B for each image. All of ``blocks``, which must divide the largest of them, are then
            worked out for the whole batch, which costs what so many batches cost (but no copy to the host). ``mask``
            and moves are those of the finest grid.
        n_labels: levels of the mask, 2 to 4.
        beta: weight of unequal neighbours.
        gamma: weight of the difference between the pixels on the two sides of a boundary, below 1.
        eta: weight of the prior on the share of the own image.
        neighborhood: side of the cells those pixels are pooled to; the next smaller that divides the block where it
            does not.
        transport: whether blocks move at all.
        t_eps: price of a move, relative to saliency.
        t_size: side of the blocks that move, in pixels, where it is less than that of the mask's blocks; None: always
            the latter. It must divide them.
        solver: of ``grid_cut``, "exact" or "swap".
        assignment: ``method`` of ``transport``, "reference" (published) or "exact".
        adv_prob: probability that a batch's own images, and that its partners, get adversarial noise, see
            ``start_noise``.
        adv_eps: bound of the noise, in 1 / 255.
        mean, std: of the normalisation that floating images have; None: they are in [0, 1]. uint8 images have none.

    Raises:
        ValueError: a setting out of its range.

    Example:
        >>> method = PuzzleMix.preset("cifar100")
        >>> (grad,) = torch.autograd.grad(loss, images)
        >>> batch = method(images, labels, saliency=grad)
        >>> loss = batch.loss(model(batch.x))
    """

    name = "puzzlemix"
    paper = Paper("Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", "Kim et al.", 2020,
                  "2009.06962")  # fmt: skip
    ops = ("saliency_pool", "puzzle_energy", "grid_cut", "transport", "mask_blend")
    alphas = alphas(1, 1, 1, 1, 1, 1)
    needs = "saliency"

    def __init__(
        self,
        alpha: float | None = None,
        *,
        blocks: int | Sequence[int] = (2, 4, 8, 16),
        blocks_per_sample: bool = False,
        n_labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        neighborhood: int = 4,
        transport: bool = True,
        t_eps: float = 0.8,
        t_size: int | None = None,
        solver: str = "exact",
        assignment: str = "reference",
        adv_prob: float = 0.0,
        adv_eps: float = 10.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(alpha, **options)
        self.blocks = tuple(blocks) if isinstance(blocks, Sequence) else (blocks,)
        self.blocks_per_sample = blocks_per_sample
        self.n_labels, self.beta, self.gamma, self.eta = n_labels, beta, gamma, eta
        self.neighborhood = neighborhood
        self.transport, self.t_eps, self.t_size = transport, t_eps, t_size
        self.solver, self.assignment = solver, assignment
        self.adv_prob, self.adv_eps = adv_prob, adv_eps
        self.mean = None if mean is None else _channel_numbers("mean", mean)
        self.std = None if std is None else _channel_numbers("std", std)
        self._check_settings()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> PuzzleMix:
        """The published settings for "cifar100", "tiny_imagenet", "imagenet" (300 epochs) or "imagenet_fast" (100).

        What belongs to the training step is in ``fastmix.train.PuzzleMixStep.preset``.

        Example:
            >>> method = PuzzleMix.preset("imagenet", solver="swap")
        """
        if name not in PRESETS:
            raise ValueError(f"fastmix.PuzzleMix.preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **overrides})

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        *,
        saliency: Tensor | None = None,
        blocks: int | None = None,
        noise: Noise | None = None,
        out: Tensor | None = None,
    ) -> MixBatch:
        """Mix ``x (N, C, H, W)`` with labels ``y (N,)`` int64.

        Args:
            generator, lam, index: as for every method; ``lam`` is what the prior asks for. Block sizes of a batch are
                drawn on the host: by a CUDA generator they are not decided.
            saliency: the gradient of a loss with respect to the images, ``(N, C, H, W)``, or a saliency map, ``(N, H,
                W)``; its scale does not matter.
            blocks: B to use instead of a random one.
            noise: from ``finish_noise``. The masks are those of the clean images.

        Raises:
            TypeError, ValueError: as for every method; no saliency, or block sizes that do not fit the images.
        """
        self._check(x, y)
        draw = self.draw(x, generator, lam, index)
        plan = self._alone_or(self.plan(x, draw, saliency, blocks), draw)
        if noise is None or noise.own == noise.partner:
            return self.finish(x if noise is None or not noise.own else self.with_noise(x, noise), y, plan, out)
        mixed, plan.lam = self._noisy(x, plan, noise)
        mixed = mixed if out is None else out.copy_(mixed)
        return MixBatch(mixed, y, labels_of(y, plan.index), plan.lam, plan.index, mask=plan.mask, plan=plan)

    def plan(self, x: Tensor, draw: Draw, saliency: Tensor | None = None, blocks: int | None = None) -> Plan:
        saliency = self._check_saliency(saliency, x)
        mask, *moves = self._puzzle(x, saliency, draw.lam, draw.index, self._counts(x, blocks), draw.generator)
        return Plan(draw.index, None, mask=mask, moves=moves[0], partner_moves=moves[1])

    def start_noise(self, x: Tensor, generator: torch.Generator | None = None) -> Noise | None:
        """Random noise for normalised ``x``, or None where the coins say so: both sides are tossed with ``adv_prob``.

        Uniform within ``adv_eps / 255`` and so that the images stay in [0, 1]. The saliency of a batch with noise is
        taken from ``with_noise(x, noise)``.
        """
        if self.adv_prob == 0:
            return None
        own, partner = (torch.rand(2, generator=_on_host(generator)) < self.adv_prob).tolist()
        if not own and not partner:
            return None
        clean, bound = self._unit(x), self.adv_eps / 255
        delta = (2 * draw_uniform(tuple(x.shape), generator, x.device) - 1) * bound
        return Noise((clean + delta).clamp(0, 1) - clean, own, partner)

    def finish_noise(self, noise: Noise, grad: Tensor, generator: torch.Generator | None = None) -> Noise:
        """One step from ``noise`` along the sign of the loss's gradient, within the bound, times a random length."""
        bound = self.adv_eps / 255
        delta = (noise.delta + (self.adv_eps + 2) / 255 * grad.sign()).clamp(-bound, bound)
        return noise._replace(delta=delta * draw_uniform((), generator, grad.device))

    def with_noise(self, x: Tensor, noise: Noise) -> Tensor:
        """Normalised ``x`` with the noise, limited to [0, 1] before normalisation."""
        noisy = (self._unit(x) + noise.delta).clamp(0, 1)
        mean, std = self._constants(x)
        return ((noisy - mean) / std).to(x.dtype)

    def _counts(self, x: Tensor, blocks: int | None) -> tuple[int, ...]:
        """The numbers of blocks to draw from, all of which fit the images."""
        counts = self.blocks if blocks is None else (_settings.whole(type(self).__name__, "blocks", blocks, 1, 32),)
        for count in counts:
            if x.shape[2] % count or x.shape[3] % count:
                fit = [b for b in (2, 4, 8, 16) if x.shape[2] % b == 0 and x.shape[3] % b == 0]
                raise ValueError(
                    f"fastmix.PuzzleMix: {count} blocks do not divide images of {x.shape[2]} x {x.shape[3]} pixels"
                    + (f"; of 2, 4, 8 and 16 these do: {', '.join(map(str, fit))}" if fit else "")
                )
            self._fine(x, count)
        return counts

    def _fine(self, x: Tensor, count: int) -> int:
        """How many blocks a side move where the mask has `count`."""
        block = min(x.shape[2:]) // count
        if self.t_size is None or self.t_size >= block:
            return count
        if block % self.t_size:
            raise ValueError(
                f"fastmix.PuzzleMix: t_size must divide the {block} pixels of {count} blocks a side, got {self.t_size}"
            )
        return count * block // self.t_size

    def _puzzle(self, x, saliency, lam, index, counts, generator) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mask and both plans, for one block size or one for each image."""
        host = _on_host(generator)
        if not self.blocks_per_sample or len(counts) == 1:
            chosen = counts[int(torch.randint(len(counts), (), generator=host))] if len(counts) > 1 else counts[0]
            return self._solve(x, saliency, lam, index, chosen)
        finest, fine = max(counts), max(self._fine(x, count) for count in counts)
        drawn = (draw_uniform((x.shape[0], 1, 1), generator, x.device) * len(counts)).long().clamp(max=len(counts) - 1)
        found = None
        for k, count in enumerate(counts):
            mask, *plans = self._solve(x, saliency, lam, index, count)
            parts = [_enlarged(mask, finest), *(plan if plan is None else _refined(plan, fine) for plan in plans)]
            found = parts if found is None else [
                new if new is None else torch.where((drawn == k).view(-1, *[1] * (new.dim() - 1)), new, old)
                for new, old in zip(parts, found, strict=True)
            ]  # fmt: skip
        return tuple(found)

    def _solve(self, x, saliency, lam, index, count) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mask ``(N, B, B)`` and, unless nothing moves, plans ``(N, T * T)`` of the own images and the partners."""
        share = ops.saliency_pool(saliency, count, backend=self.backend)
        normalized = {} if x.dtype is torch.uint8 else {"mean": self.mean, "std": self.std}
        energy = ops.puzzle_energy(
            x.detach(), share, index, lam, self.n_labels, self.beta, self.gamma, self.eta, self._cell(x, count),
            backend=self.backend, **normalized,
        )  # fmt: skip
        labels, _ = ops.grid_cut(*energy, self.solver, backend=self.backend)
        mask = 1 - labels.float() / (self.n_labels - 1)
        if not self.transport:
            return mask, None, None
        fine = self._fine(x, count)
        if fine != count:
            share = ops.saliency_pool(saliency, fine, backend=self.backend)
        shown = _enlarged(mask, fine)
        visible, shares = torch.cat((shown > 0, shown < 1)), torch.cat((share, share[index]))
        plans = ops.transport(visible, shares, self.t_eps, self.assignment, backend=self.backend)
        return mask, *plans.chunk(2)

    def _cell(self, x: Tensor, count: int) -> int:
        height, width = x.shape[2] // count, x.shape[3] // count
        most = min(self.neighborhood, height, width)
        return max(side for side in range(1, most + 1) if height % side == 0 and width % side == 0)

    def _noisy(self, x: Tensor, plan: Plan, noise: Noise) -> tuple[Tensor, Tensor]:
        """One side has noise: own images and partners come from different tensors, put one behind the other."""
        n, noisy = x.shape[0], self.with_noise(x, noise)
        both = torch.cat((noisy, x) if noise.own else (x, noisy))
        parts = (plan.index + n, plan.mask, plan.moves, plan.partner_moves)
        index, mask, *moves = (None if part is None else torch.cat((part, part)) for part in parts)
        twice = Plan(index, None, mask=mask, moves=moves[0], partner_moves=moves[1])
        mixed, lam = twice.mix(both, **self.options(x))
        return mixed[:n], lam[:n]

    def _unit(self, x: Tensor) -> Tensor:
        """The images in [0, 1], float32 or float64."""
        mean, std = self._constants(x)
        return x * std + mean

    def _constants(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point():
            raise TypeError(f"fastmix.PuzzleMix: adversarial noise needs floating images, got {x.dtype}")
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        mean, std = (0.0, 1.0) if self.mean is None else (self.mean, self.std)
        return tuple(torch.tensor(part, dtype=dtype, device=x.device).view(-1, 1, 1) for part in (mean, std))

    def _check_settings(self) -> None:
        where = type(self).__name__
        for name in ("blocks_per_sample", "transport"):
            _settings.flag(where, name, getattr(self, name))
        self._require(len(self.blocks) > 0, "blocks must be numbers from 1 to 32", self.blocks)
        for count in self.blocks:
            _settings.whole(where, "blocks", count, 1, 32)
        if self.blocks_per_sample:
            fits = all(max(self.blocks) % count == 0 for count in self.blocks)
            self._require(fits, "with blocks_per_sample all blocks must divide the largest", self.blocks)
        _settings.whole(where, "n_labels", self.n_labels, 2, 4)
        for name in ("beta", "gamma", "eta", "t_eps", "adv_eps"):
            _settings.number(where, name, getattr(self, name))
        _settings.number(where, "adv_prob", self.adv_prob, 0, 1)
        _settings.whole(where, "neighborhood", self.neighborhood)
        if self.t_size is not None:
            _settings.whole(where, "t_size", self.t_size)
        _settings.one_of(where, "solver", self.solver, ("exact", "swap"))
        _settings.one_of(where, "assignment", self.assignment, ("reference", "exact"))
        self._require((self.mean is None) is (self.std is None), "mean and std must be given together", None)

    def _check_saliency(self, saliency: Tensor | None, x: Tensor) -> Tensor:
        """As (N, C, H, W), detached."""
        if x.dim() != 4:
            raise ValueError(f"fastmix.PuzzleMix: x must have shape (N, C, H, W), got {tuple(x.shape)}")
        if saliency is None:
            raise ValueError(
                "fastmix.PuzzleMix: saliency is missing: pass the gradient of the loss with respect to the images, "
                "or use fastmix.train.PuzzleMixStep, which computes it"
            )
        if not isinstance(saliency, Tensor) or not saliency.is_floating_point():
            raise TypeError(f"fastmix.PuzzleMix: saliency must be a floating tensor, got {_checks.describe(saliency)}")
        size = (x.shape[0], *x.shape[2:])
        if saliency.shape == size:
            return saliency.detach().unsqueeze(1)
        if saliency.dim() != 4 or (saliency.shape[0], *saliency.shape[2:]) != size:
            raise ValueError(
                f"fastmix.PuzzleMix: saliency must have shape {tuple(x.shape)} or {size}, got {tuple(saliency.shape)}"
            )
        return saliency.detach()


def _channel_numbers(name: str, value: Sequence[float] | Tensor) -> tuple[float, ...]:
    value = value.tolist() if isinstance(value, Tensor) else value
    return _checks.constants("PuzzleMix", name, value, positive=name == "std")


def _on_host(generator: torch.Generator | None) -> torch.Generator | None:
    return generator if generator is not None and generator.device.type == "cpu" else None


def _enlarged(mask: Tensor, count: int) -> Tensor:
    """`mask (N, B, B)` with each block repeated so that there are `count` a side."""
    times = count // mask.shape[1]
    return mask if times == 1 else mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _refined(plan: Tensor, count: int) -> Tensor:
    """A plan ``(N, T * T)`` for blocks cut up further, `count` a side; blocks without a source keep their own."""
    side = math.isqrt(plan.shape[1])
    times, place = count // side, torch.arange(count, device=plan.device, dtype=plan.dtype)
    plan = torch.where(plan < 0, torch.arange(side * side, device=plan.device, dtype=plan.dtype), plan)
    source = _enlarged(plan.view(-1, side, side), count)
    rows, columns = source // side * times + place.view(-1, 1) % times, source % side * times + place % times
    return (rows * count + columns).flatten(1)
