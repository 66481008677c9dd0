"""A step's losses in one graph, or each differentiated as it comes and its gradients handed out later."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .shards import in_shards


class Joint:
    """Losses summed into one graph."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def __call__(self, part: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        losses = part()
        self._losses.extend(losses)
        return [loss.detach() for loss in losses]

    def loss(self) -> Tensor:
        return sum(self._losses[1:], self._losses[0])


class Sequential:
    """Losses differentiated as they come; what is left is a node that hands out the summed gradients."""

    def __init__(self, module: nn.Module, grad_scale: Tensor | float | None, where: str) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if in_shards(self._parameters):
            raise RuntimeError(
                f"{where} parameters must be whole, got shards; with FSDP2 shard the module itself, none of its parts"
            )
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)
        self._scale, self._total, self._where = grad_scale, None, where

    def __call__(self, part: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        losses = part()
        total = sum(losses[1:], losses[0])
        scaled = total if self._scale is None else total * self._scale
        with torch.autocast(total.device.type, enabled=False):
            gradients = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
        # Weights that autocast keeps in half precision belong to the graph just freed.
        torch.clear_autocast_cache()
        both = [i for i, g in enumerate(gradients) if g is not None and self._gradients[i] is not None]
        if both:
            torch._foreach_add_([self._gradients[i] for i in both], [gradients[i] for i in both])
        self._gradients = [old if old is not None else new for old, new in zip(self._gradients, gradients, strict=True)]
        self._total = total.detach() if self._total is None else self._total + total.detach()
        return [loss.detach() for loss in losses]

    def loss(self) -> Tensor:
        return HandOut.apply(self._where, self._total, self._gradients, self._scale, *self._parameters)


class HandOut(torch.autograd.Function):
    """The identity of a loss whose gradients are known: its backward multiplies them by the incoming factor.

    `apply(where, total, gradients, scale, *parameters)`: `gradients`, one a parameter or None, are those of `scale *
    total`; `where` says in an error what was called. They are handed out once.
    """

    @staticmethod
    def forward(ctx, where: str, total: Tensor, gradients: list[Tensor | None], scale, *parameters: Tensor) -> Tensor:
        ctx.where, ctx.gradients, ctx.scale = where, gradients, scale
        return total.clone()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{ctx.where} the gradients are known before the backward pass and cannot be differentiated again "
                "(create_graph=True)"
            )
        if ctx.gradients is None:
            raise RuntimeError(f"{ctx.where} the loss can be back-propagated once")
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        known = [g for g in gradients if g is not None]
        if known:
            torch._foreach_mul_(known, factor.to(known[0].dtype))
        return None, None, None, None, *gradients
