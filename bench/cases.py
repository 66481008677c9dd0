"""The benchmark cases of every op: inputs, the fastmix call, the obvious eager code, and the bytes that must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops, reference

SHAPES = {"cifar": (128, 3, 32, 32), "tiny": (100, 3, 64, 64), "imagenet": (64, 3, 224, 224)}
ATTENTION = {"cifar-l3": (100, 64, 128), "tiny-l3": (64, 256, 128), "r50-l3": (32, 196, 512), "r50-l1": (8, 3136, 128)}


@dataclass(frozen=True)
class Case:
    """One op at one shape; `fast(*inputs)` and `eager(*inputs)` compute the same.

    `moved` counts compulsory bytes (each image read once, each result written once), `flops` those of the matrix
    products. `takes_out` says that `fast` accepts `out=`.
    """

    name: str
    inputs: tuple[Tensor, ...]
    fast: Callable
    eager: Callable
    moved: int
    flops: int = 0
    takes_out: bool = False


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case on float32 CPU tensors, made when asked for; `quick` leaves out the large shapes."""
    generator = torch.Generator().manual_seed(0)
    for label, shape in SHAPES.items():
        if quick and label == "imagenet":
            continue
        x = torch.randn(shape, generator=generator)
        yield from _blends(f"{label}-nchw", x, generator)
        yield from _blends(f"{label}-nhwc", x.contiguous(memory_format=torch.channels_last), generator)
    for label, shape in ATTENTION.items():
        if not (quick and label == "r50-l1"):
            yield from _attentions(label, shape, generator)


def eager_blend(x: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    weight = lam.view(-1, 1, 1, 1)
    return x * weight + x[index] * (1 - weight)


def eager_box_blend(x: Tensor, index: Tensor, box: Tensor) -> Tensor:
    y0, x0, y1, x1 = box.tolist()
    out = x.clone()
    out[:, :, y0:y1, x0:x1] = x[index, :, y0:y1, x0:x1]
    return out


def eager_mask_blend(x: Tensor, index: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    mask = F.interpolate(logits.unsqueeze(1), size=x.shape[2:], mode="bilinear", align_corners=False).sigmoid()
    return x * mask + x[index] * (1 - mask), mask.mean((1, 2, 3))


def fast_mask_blend(x: Tensor, index: Tensor, logits: Tensor, **options) -> tuple[Tensor, Tensor]:
    return ops.mask_blend(x, index, logits, "bilinear", "sigmoid", **options)


def with_gradients(function: Callable, wanted: tuple[int, ...]) -> Callable:
    """Forward and backward from the first result to the inputs at the given positions; the last input is the
    cotangent."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        *args, cotangent = inputs
        args = [a.detach().requires_grad_() if i in wanted else a for i, a in enumerate(args)]
        result = function(*args)
        result = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad(result, [args[i] for i in wanted], cotangent)

    return run


def _blends(label: str, x: Tensor, generator: torch.Generator) -> Iterator[Case]:
    n, _, height, width = x.shape
    index, lam = torch.randperm(n, generator=generator), torch.rand(n, generator=generator)
    box = torch.tensor([height // 4, width // 4, 3 * height // 4, 3 * width // 4], dtype=torch.int32)
    logits = torch.randn(n, max(height // 16, 4), max(width // 16, 4), generator=generator)
    size = x.numel() * x.element_size()
    yield Case(f"blend/{label}", (x, index, lam), ops.blend, eager_blend, 2 * size, takes_out=True)
    yield Case(f"box_blend/{label}", (x, index, box), ops.box_blend, eager_box_blend, 2 * size, takes_out=True)
    masked = (x, index, logits)
    yield Case(f"mask_blend/{label}", masked, fast_mask_blend, eager_mask_blend, 2 * size, takes_out=True)
    fast, eager = with_gradients(fast_mask_blend, (2,)), with_gradients(eager_mask_blend, (2,))
    yield Case(f"mask_blend+grad/{label}", (*masked, torch.randn_like(x)), fast, eager, 4 * size)


def _attentions(label: str, shape: tuple[int, int, int], generator: torch.Generator) -> Iterator[Case]:
    n, r, d = shape
    q, v = torch.randn(shape, generator=generator), torch.randn(n, r, generator=generator)
    index = torch.randperm(n, generator=generator)

    def fast(q, v):
        return ops.pair_attention(q, q, v, index)

    def eager(q, v):
        return reference.pair_attention(q, q, v, index)

    moved, flops = 4 * (q.numel() + 2 * v.numel()), 2 * n * r * r * d
    yield Case(f"pair_attention/{label}", (q, v), fast, eager, moved, flops)
    both = with_gradients(fast, (0, 1)), with_gradients(eager, (0, 1))
    yield Case(f"pair_attention+grad/{label}", (q, v, torch.randn_like(v)), *both, 3 * moved, 4 * flops)
