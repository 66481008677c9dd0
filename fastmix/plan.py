"""How a batch is mixed, apart from what is mixed: one plan serves images, label maps and dense targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node

from fastmix import ops
from fastmix.reference.box_blend import inside
from fastmix.reference.upsample import upsample

MODES = ("nearest", "bilinear")


def register_tree(cls: type) -> type:
    """Decorate a dataclass: its tensors, and those of the plans it holds, become the leaves of a pytree."""

    def parts(node: Any) -> tuple[list[str], list[Any], dict[str, Any]]:
        given = {field.name: getattr(node, field.name) for field in fields(cls)}
        names = [name for name, value in given.items() if isinstance(value, (Tensor, Plan, Choice, list))]
        return names, [given[name] for name in names], {k: v for k, v in given.items() if k not in names}

    def flatten(node: Any) -> tuple[list[Any], Any]:
        names, children, rest = parts(node)
        return children, (names, rest)

    def flatten_with_keys(node: Any) -> tuple[list[Any], Any]:
        names, children, rest = parts(node)
        return [(GetAttrKey(name), child) for name, child in zip(names, children, strict=True)], (names, rest)

    def unflatten(children: Any, context: Any) -> Any:
        names, rest = context
        return cls(**dict(zip(names, children, strict=True)), **rest)

    name = f"fastmix.{cls.__name__}"
    register_pytree_node(cls, flatten, unflatten, serialized_type_name=name, flatten_with_keys_fn=flatten_with_keys)
    return cls


@register_tree
@dataclass(eq=False)
class Plan:
    """Partners and weights of a batch of ``N`` images.

    With neither ``box`` nor ``mask``, pixels are blended by ``weight``. A box takes the partner's pixels inside it and
    blends by ``weight`` outside; a mask weighs every pixel by itself.

    Attributes:
        index: partners ``(N,)`` int64, or ``(D, N)`` for D mixed batches of one, which lie one behind the other.
        lam: weight of the own image's label, float32 ``()`` or as ``index``; None: the mean of ``mask``.
        lam_b: weight of the partner's label; None: ``1 - lam``.
        weight: weight of the own pixels, ``()`` or as ``index``; None: 1.
        box: ``(4,)`` or ``(N, 4)`` int32 ``(y0, x0, y1, x1)``.
        source: the region of the partner that fills the box, as ``box``; None: the same place.
        resize: how the region is fitted to the box, "nearest" or "bilinear".
        mask: ``(N, h, w)`` float, weight of the own image.
        upsample: how the mask is brought to the size of the image.
        moves, partner_moves: transport of blocks before the mask is applied, see ``fastmix.ops.mask_blend``.
    """

    index: Tensor
    lam: Tensor | None
    lam_b: Tensor | None = None
    weight: Tensor | None = None
    box: Tensor | None = None
    source: Tensor | None = None
    resize: str = "nearest"
    mask: Tensor | None = None
    upsample: str = "nearest"
    moves: Tensor | None = None
    partner_moves: Tensor | None = None

    @property
    def flat(self) -> bool:
        """Whether all pixels of an image are mixed alike, so that anything of any shape can be."""
        return self.box is None and self.mask is None

    def mix(
        self,
        x: Tensor,
        *,
        normalize: tuple | None = None,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix ``x`` in one launch; returns the mixed tensor and ``lam``.

        ``x`` is ``(N, C, H, W)``, ``(N, C, L)`` or five-dimensional, where boxes and masks lie in the last two
        dimensions; of any shape where the plan is ``flat``. ``out`` has the shape of the result.
        """
        options: dict[str, Any] = {"dtype": dtype, "backend": backend}
        plain = self.flat and (x.dim() != 5 or normalize is None)
        images = x if plain else as_images(x)
        options["normalize"] = normalize if images is x else _repeated(normalize, x)
        buffer = self._buffer(images, dtype, out)
        if buffer is not None:
            options["out"] = buffer
        mixed, lam = self._launch(images, options)
        if buffer is not None:
            mixed = buffer.flatten(0, 1) if self.index.dim() == 2 else buffer
        elif isinstance(mixed, tuple):
            mixed = torch.cat(mixed)
        if out is not None:
            return out, lam
        return mixed if images is x else mixed.reshape(-1, *x.shape[1:]), lam

    def _launch(self, x: Tensor, options: dict[str, Any]) -> tuple[Any, Any]:
        if self.mask is not None:
            mixed, mean = ops.mask_blend(
                x, self.index, self.mask.expand(*self.index.shape, *self.mask.shape[-2:]), self.upsample,
                plan=self.moves, partner_plan=self.partner_moves, **options,
            )  # fmt: skip
            if self.lam is not None:
                return mixed, self.lam
            return mixed, (torch.stack(mean) if isinstance(mean, tuple) else mean).float()
        if self.box is not None:
            if self.source is not None:
                options |= {"source": self.source, "resize": self.resize}
            return ops.box_blend(x, self.index, self.box, self.weight, **options), self.lam
        return ops.blend(x, self.index, 1.0 if self.weight is None else self.weight, **options), self.lam

    def _buffer(self, x: Tensor, dtype: torch.dtype | None, out: Tensor | None) -> Tensor | None:
        """Where the op is to write: `out`, or memory for several batches one behind the other."""
        if out is not None:
            rows = self.index.numel()
            if not isinstance(out, Tensor) or out.shape[:1] != (rows,) or out.numel() != rows * x[0:1].numel():
                raise ValueError(f"fastmix: out must be a tensor of {rows} mixed images")
            return out.view(*self.index.shape, *x.shape[1:]) if out.dim() != x.dim() or self.index.dim() == 2 else out
        if self.index.dim() == 1 or (torch.is_grad_enabled() and x.requires_grad):
            return None
        if not x.is_contiguous() and not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
            return None
        strides = (x.numel(), *x.stride())
        return torch.empty_strided((*self.index.shape, *x.shape[1:]), strides, dtype=dtype or x.dtype, device=x.device)

    def apply(self, t: Tensor, size: Sequence[int], mode: str | None = None) -> Tensor:
        """Mix ``t`` as images of shape ``(N, C, *size)`` were; see :meth:`fastmix.batch.MixBatch.apply`."""
        if mode not in (None, *MODES):
            raise ValueError(f"fastmix.MixBatch.apply: mode must be None, {' or '.join(MODES)}, got {mode!r}")
        if not isinstance(t, Tensor) or t.shape[:1] != self.index.shape[-1:]:
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"fastmix.MixBatch.apply: t must have shape ({self.index.shape[-1]}, ...), got {got}")
        hard = not t.is_floating_point() if mode is None else mode == "nearest"
        if not hard and not t.is_floating_point() and t.dtype is not torch.uint8:
            raise TypeError(f"fastmix.MixBatch.apply: {t.dtype} cannot be mixed bilinearly; use mode='nearest'")
        place = tuple(size[-2:])
        if place and t.dim() > len(place) and tuple(t.shape[-len(place) :]) == place:
            return self._apply_map(t, place if len(place) == 2 else (1, *place), hard)
        if t.dim() > 2 and not self.flat:
            raise ValueError(
                f"fastmix.MixBatch.apply: t must have shape (N, ..., {', '.join(map(str, place))}) as the images, "
                f"or (N,) or (N, K), got {tuple(t.shape)}"
            )
        return self._apply_values(t, hard)

    def _apply_map(self, t: Tensor, size: tuple[int, int], hard: bool) -> Tensor:
        maps = t.reshape(len(t), -1, *size) if t.numel() else t.new_empty((len(t), 1, *size))
        plan = self.hardened(*size) if hard else self
        mixed = _copied(plan, maps) if hard else plan.mix(maps)[0]
        return mixed.reshape(-1, *t.shape[1:])

    def _apply_values(self, t: Tensor, hard: bool) -> Tensor:
        own, lam = self.index.shape, self.lam
        lam = lam.expand(own) if lam.dim() < 2 else lam
        tail = (1,) * (t.dim() - 1)
        if hard:
            chosen = torch.where((lam >= 0.5).view(*own, *tail), t, t[self.index])
        else:
            acc = torch.float64 if t.dtype is torch.float64 else torch.float32
            lam_b = 1 - lam if self.lam_b is None else self.lam_b.expand(own)
            weights = (w.to(acc).view(*own, *tail) for w in (lam, lam_b))
            chosen = (next(weights) * t + next(weights) * t[self.index]).to(t.dtype)
        return chosen.reshape(-1, *t.shape[1:])

    def hardened(self, height: int, width: int) -> Plan:
        """The same with every pixel taken from the image that weighs more, the own one where both weigh 1/2."""
        if self.mask is not None:
            mask = (upsample(self.mask, height, width, self.upsample) >= 0.5).float()
            return replace(self, mask=mask, upsample="nearest")
        weight = None if self.weight is None else (self.weight >= 0.5).float()
        return replace(self, weight=weight, resize="nearest")

    def where(self, mixed: Tensor, index: Tensor) -> Plan:
        """The same for samples that are ``mixed`` (``()`` or ``(N,)`` bool), with the partners ``index`` from now on.

        The others stay as they are: their labels and pixels weigh 1, boxes have no area, no block moves.
        """

        def chosen(part: Tensor | None, otherwise: Tensor | float, dims: int = 0) -> Tensor | None:
            return None if part is None else torch.where(mixed.reshape((*mixed.shape, *[1] * dims)), part, otherwise)

        moves = self.moves
        if moves is not None:
            moves = chosen(moves, torch.arange(moves.shape[1], dtype=moves.dtype, device=moves.device), 1)
        return replace(
            self,
            index=index,
            lam=chosen(self.lam, 1.0),
            lam_b=chosen(self.lam_b, 0.0),
            weight=chosen(self.weight, 1.0),
            box=chosen(self.box, 0, 1),
            mask=chosen(self.mask, 1.0, 2),
            moves=moves,
        )

    def pixel_weight(self, height: int, width: int) -> Tensor:
        """Weight of the own image at every pixel, ``(N, H, W)`` float32 (``D * N`` rows for D mixed batches)."""
        own = self.index.shape
        if self.mask is not None:
            found = upsample(self.mask, height, width, self.upsample)
        else:
            found = torch.ones((), device=self.index.device) if self.weight is None else self.weight.float()
            found = found[..., None, None]
            if self.box is not None:
                found = found * ~inside(self.box, height, width).squeeze(-3)
        return found.expand(*own, height, width).reshape(-1, height, width)


@register_tree
@dataclass(eq=False)
class Choice:
    """Several plans over one batch, and for each sample the number of the plan that mixes it.

    Takes as many launches as plans: :func:`merged` brings what it can into one.
    """

    index: Tensor
    plans: list[Plan]
    choice: Tensor  # () or (N,) int64
    lam: Tensor | None = None
    box: None = None
    mask: None = None
    lam_b: None = None
    flat: bool = False

    def mix(self, x: Tensor, *, out: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`Plan.mix`."""
        mixed, lam = zip(*(plan.mix(x, **options) for plan in self.plans), strict=True)
        result = select(self.choice, mixed, x.dim() - 1)
        for plan, value in zip(self.plans, lam, strict=True):
            plan.lam = value
        if out is not None:
            result = out.copy_(result)
        return result, select(self.choice, lam)

    def where(self, mixed: Tensor, index: Tensor) -> Choice:
        """As :meth:`Plan.where`."""
        return replace(self, index=index, plans=[plan.where(mixed, index) for plan in self.plans])

    def apply(self, t: Tensor, size: Sequence[int], mode: str | None = None) -> Tensor:
        """As :meth:`Plan.apply`."""
        return select(self.choice, [plan.apply(t, size, mode) for plan in self.plans], t.dim() - 1)

    def pixel_weight(self, height: int, width: int) -> Tensor:
        """As :meth:`Plan.pixel_weight`."""
        return select(self.choice, [plan.pixel_weight(height, width) for plan in self.plans], 2)


def select(choice: Tensor, values: Sequence[Tensor], dims: int = 0) -> Tensor:
    """``values[choice[n]][n]`` for every sample n. Values are ``(...)`` or ``(N, ...)`` with ``dims`` further ones."""
    found, chosen = values[0], choice.reshape((*choice.shape, *[1] * dims))
    for number, value in enumerate(values[1:], start=1):
        found = torch.where(chosen == number, value, found)
    return found


def as_images(x: Tensor) -> Tensor:
    """``(N, C, L)`` and five-dimensional tensors as ``(N, C, H, W)``, a view where the memory allows it."""
    if x.dim() == 3:
        return x.unsqueeze(2)
    return x.flatten(1, 2) if x.dim() == 5 else x


def _repeated(normalize: tuple | None, x: Tensor) -> tuple | None:
    """Constants per channel for the flattened ``(N, C, D, H, W)`` or ``(N, T, C, H, W)``."""
    if normalize is None or x.dim() != 5:
        return normalize
    mean, std = normalize
    if len(mean) == x.shape[1]:
        return tuple(tuple(c for c in part for _ in range(x.shape[2])) for part in (mean, std))
    return tuple(tuple(part) * x.shape[1] for part in (mean, std))


def _copied(plan: Plan, maps: Tensor) -> Tensor:
    """Maps of any dtype mixed by a hardened plan, byte by byte, so that every value arrives as it is."""
    count, width = maps.shape[1], maps.element_size()
    as_bytes = maps.contiguous().unsqueeze(-1).view(torch.uint8)  # [N, K, H, W, width]
    as_bytes = as_bytes.permute(0, 1, 4, 2, 3).flatten(1, 2)
    mixed = plan.mix(as_bytes)[0].unflatten(1, (count, width)).permute(0, 1, 3, 4, 2)
    return mixed.contiguous().view(maps.dtype).squeeze(-1)
