"""Several methods side by side: which one mixes is drawn for each sample, pair or batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmix import _settings
from fastmix.methods.base import Draw, MixMethod
from fastmix.plan import Choice, Plan, select


class Mixer(MixMethod):
    """Each sample is mixed by one of several methods, all with the same partners.

    What every method draws is drawn for the whole batch, and chosen from on the device; the images are mixed in one
    launch: of ``box_blend`` for methods that blend, cut or paste, of ``mask_blend`` for those and methods with masks.
    Only a paste that resizes beside masks, or a transport of blocks, takes a launch of its own.

    Args:
        methods: methods, or their names, which makes them with this mixer's ``mode`` and ``alpha``. Partners and the
            mixed images are the mixer's: a method with another pairing, normalize, dtype or backend is refused. Its
            ``p`` has its effect. ManifoldMixup, RegMixup and other mixers cannot be among them.
        probs: probability of each; what is missing to 1 is no mixing, as is what ``p`` leaves. None: all alike.
        alpha: of methods given by name; None: their own defaults.
        mode: "sample", "pair" or "batch": for what the method is chosen.
        pairing, normalize, dtype, backend, p, check_layout: as for every method.

    Example:
        >>> mixer = Mixer([MixUp(0.8, mode="sample"), CutMix(1.0, mode="sample")], [0.4, 0.4])
        >>> batch = mixer(images, labels)  # a fifth of the images stays as it is
    """

    name = "mixer"
    ops = ("blend", "box_blend", "mask_blend")
    dims = None
    combines = False
    uses_alpha = False
    default_mode = "sample"

    def __init__(
        self,
        methods: Sequence[MixMethod | str] = ("mixup", "cutmix"),
        probs: Sequence[float] | None = None,
        *,
        alpha: float | None = None,
        mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(alpha, mode=mode, **options)
        self.methods = [self._member(method, alpha) for method in self._members(methods)]
        self.probs = self._shares(probs)
        for method in self.methods:
            for name, usual in (("pairing", "perm"), ("normalize", None), ("dtype", None), ("backend", None)):
                value = getattr(method, name)
                rule = f"{name} must be given to the {type(self).__name__} itself, not to its {type(method).__name__}"
                self._require(value in (usual, getattr(self, name)), rule, value)

    def _members(self, methods: object) -> list:
        several = isinstance(methods, Sequence) and not isinstance(methods, str)
        self._require(several, "methods must be a list of methods or their names", methods)
        self._require(len(methods) > 0, "methods must not be empty", methods)
        return list(methods)

    def _member(self, method: MixMethod | str, alpha: float | None) -> MixMethod:
        from fastmix.methods import METHODS

        where = type(self).__name__
        kind = METHODS.get(method) if isinstance(method, str) else type(method)
        combining = ", ".join(name for name, each in METHODS.items() if each.combines)
        if kind is None or not issubclass(kind, MixMethod):
            hint = f"; make it first: {method.__name__}()" if isinstance(method, type) else ""
            raise ValueError(
                f"fastmix.{where}: each method must be a method of fastmix.methods or one of the names {combining}, "
                f"got {method!r}{hint}"
            )
        if not kind.combines:
            why = (
                "is a mixer itself: list its methods" if issubclass(kind, Mixer) else "does not mix images in one plan"
            )
            raise ValueError(
                f"fastmix.{where}: methods must be methods of one plan a batch, {combining}; {kind.__name__} {why}"
            )
        return kind(alpha, mode=self.mode) if isinstance(method, str) else method

    def _shares(self, probs: Sequence[float] | None) -> list[float]:
        where, count = type(self).__name__, len(self.methods)
        if probs is None:
            return [1 / count] * count
        listed = isinstance(probs, Sequence) and not isinstance(probs, str) and len(probs) == count
        self._require(listed, f"probs must hold {count} numbers", probs)
        shares = [float(_settings.number(where, "each of probs", p, 0, 1)) for p in probs]
        self._require(sum(shares) <= 1 + 1e-6, "probs must not sum to more than 1", probs)
        return shares

    @property
    def draws_lam(self) -> bool:
        return False

    def plan(
        self, x: Tensor, draw: Draw, choice: Tensor | None = None, saliency: Tensor | None = None
    ) -> Plan | Choice:
        """See ``MixMethod.plan``.

        Args:
            choice: number of the method, ``()`` or ``(N,)`` int64; ``len(methods)`` for none.
            saliency: for the methods that need one.
        """
        rest = choice is not None or sum(self.probs) < 1 - 1e-6
        choice = self._chosen(draw.uniform()) if choice is None else self._given(choice, draw)
        lam = draw.lam if draw.given else None
        plans = []
        for method in self.methods:
            method.check_shape(x)
            given = {"saliency": saliency} if method.needs is not None else {}
            drawn = method._draw(x, draw.generator, lam, draw.index)
            plan = method.plan(x, drawn, **given)
            if method.mix_prob < 1:
                plan = plan.where(drawn.coin(method.mix_prob), draw.index)
            plans.append(plan)
        if rest:
            plans.append(Plan(draw.index, torch.ones((), device=x.device)))
        return merged(plans, choice, (1, *x.shape[2:])[-2:])

    def _given(self, choice: Tensor, draw: Draw) -> Tensor:
        return draw.check(choice, "choice", (), torch.int64, low=0, high=len(self.methods))

    def _chosen(self, number: Tensor) -> Tensor:
        """Method of uniform numbers in [0, 1)."""
        choice, bound = torch.zeros_like(number, dtype=torch.int64), 0.0
        for p in self.probs:
            bound += p
            # rounding must not leave a gap below 1
            choice = choice + (number >= (2.0 if bound > 1 - 1e-6 else bound))
        return choice


def merged(plans: list[Plan], choice: Tensor, size: tuple[int, int]) -> Plan | Choice:
    """One plan that mixes each sample by the plan of its choice, or a `Choice` of a few where one cannot."""
    groups: dict[str, list[int]] = {}
    masked = any(plan.mask is not None and plan.moves is None for plan in plans)
    resize = next((plan.resize for plan in plans if plan.source is not None), "nearest")
    for number, plan in enumerate(plans):
        if plan.moves is not None:
            family = f"moves {number}"
        elif plan.mask is not None or (masked and plan.source is None):
            family = "mask"
        else:
            family = resize if plan.source is None else plan.resize
        groups.setdefault(family, []).append(number)
    found = [_merge([plans[k] for k in members], _among(choice, members), size) for members in groups.values()]
    if len(found) == 1:
        return found[0]
    group = torch.zeros_like(choice)
    for number, members in enumerate(groups.values()):
        for k in members:
            group = torch.where(choice == k, number, group)
    return Choice(plans[0].index, found, group)


def _among(choice: Tensor, members: list[int]) -> Tensor:
    """Position of each choice among the members; 0 for choices elsewhere."""
    place = torch.zeros_like(choice)
    for position, number in enumerate(members):
        place = torch.where(choice == number, position, place)
    return place


def _merge(plans: list[Plan], choice: Tensor, size: tuple[int, int]) -> Plan:
    """Plans of one kind as one: of masks, or of boxes, weights and pastes."""
    if len(plans) == 1:
        return plans[0]
    index = plans[0].index
    if any(plan.mask is not None for plan in plans):
        return Plan(index, None, mask=select(choice, [plan.pixel_weight(*size) for plan in plans], 2))
    one = torch.ones((), device=index.device)
    nothing = torch.zeros(4, dtype=torch.int32, device=index.device)
    weights = [one if plan.weight is None else plan.weight for plan in plans]
    boxes = [nothing if plan.box is None else plan.box for plan in plans]
    sources = [box if plan.source is None else plan.source for plan, box in zip(plans, boxes, strict=True)]
    found = Plan(index, select(choice, [plan.lam for plan in plans]))
    if any(plan.weight is not None for plan in plans):
        found.weight = select(choice, weights)
    if any(plan.box is not None for plan in plans):
        found.box = select(choice, boxes, 1)
    if any(plan.source is not None for plan in plans):
        found.source = select(choice, sources, 1)
        found.resize = next(plan.resize for plan in plans if plan.source is not None)
    return found
