"""The benchmark cases of every op: inputs, the fastmix call, the obvious eager code, and the work that must be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops, reference

BLOCKS = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES = {
    "cifar": (128, 3, 32, 32),
    "tiny": (100, 3, 64, 64),
    "imagenet": (64, 3, 224, 224),
    "hidden": (64, 256, 28, 28),
}
ATTENTION = {"cifar-l3": (100, 64, 128), "tiny-l3": (64, 256, 128), "r50-l3": (32, 196, 512), "r50-l1": (8, 3136, 128)}
GRADIENT = "+grad"


@dataclass(frozen=True)
class Case:
    """One op, or one whole mixing or training step, at one shape; `fast(*args)` and `eager(*args)` compute the same.

    `moved` counts compulsory bytes (each image read once, each result written once), `flops` those of the matrix
    products; 0 where they say nothing. `takes_out` says that `fast` accepts `out=`. With `wanted` the case is about
    the gradients with respect to the inputs at these positions; the last input is then the cotangent of the first
    result, which `fast` and `eager` do not take, and `moved` and `flops` are those of the backward pass alone.

    `eager` is None where no short PyTorch code computes the op. `agree(result, case)` then says what is wrong with a
    result, nothing if it is right. `compiles` says that `torch.compile` of `eager` is of interest. `records` leaves
    autograd on while the case runs. `providers` are those who compute it, instead of backends, eager code and
    peers; `peers` are further ones.
    """

    name: str
    inputs: tuple[Any, ...]
    fast: Callable | None
    eager: Callable | None
    moved: int = 0
    flops: int = 0
    takes_out: bool = False
    wanted: tuple[int, ...] = ()
    agree: Callable[[Any, Case], str] | None = None
    compiles: bool = True
    records: bool = False
    providers: tuple[Any, ...] = ()
    peers: tuple[Any, ...] = ()

    @property
    def op(self) -> str:
        return self.name.split("/")[0].removesuffix(GRADIENT)

    @property
    def args(self) -> tuple[Any, ...]:
        """The inputs that `fast` and `eager` take."""
        return self.inputs[:-1] if self.wanted else self.inputs

    def whole(self, function: Callable) -> Callable:
        """`function` as this case wants it run on its inputs: forward, or forward and backward."""
        return with_gradients(function, self.wanted) if self.wanted else function


@dataclass(frozen=True)
class Entry:
    """A line of the registry: the case's name, and `make(generator)`, which makes it on fresh random inputs on the
    generator's device. `quick`: belongs to a quick run. `sweep`: only part of a curve. `devices`: where it runs."""

    name: str
    make: Callable[[torch.Generator], Case]
    quick: bool = False
    sweep: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def op(self) -> str:
        return self.name.split("/")[0].removesuffix(GRADIENT)


def entries() -> Iterator[Entry]:
    """Every case of a single op."""
    for size, shape in IMAGES.items():
        for dtype, layout in (("fp32", "nchw"), ("fp32", "nhwc"), ("bf16", "nchw")):
            if (dtype, layout) != ("fp32", "nchw") and size != "imagenet":
                continue
            label, quick = f"{size}-{dtype}-{layout}", size == "cifar" and layout == "nchw"
            images = partial(image_entry, shape=shape, dtype=dtype, layout=layout, label=label, quick=quick)
            yield images(blend_case)
            yield images(box_blend_case)
            if size in ("cifar", "imagenet"):
                yield images(box_resize_case, prefix="resize-")
                yield images(flip_blend_case)
            yield images(mask_blend_case)
            yield images(mask_blend_case, grad=True)
            if dtype == "fp32" and size != "hidden":
                yield images(saliency_pool_case)
                yield images(puzzle_energy_case)
    for size, shape in ATTENTION.items():
        for grad in (False, True):
            yield attention_entry(size, shape, grad, quick=size == "cifar-l3")
    for n in (1, 4, 16, 64, 256):
        images = partial(image_entry, shape=(n, 3, 64, 64), dtype="fp32", layout="nchw", label=f"n{n}", sweep=True)
        yield images(blend_case)
        yield images(mask_blend_case)
    for r in (64, 256, 1024, 4096):
        yield attention_entry(f"r{r}", (4, r, 32), True, sweep=True)


def image_entry(
    make: Callable,
    shape: tuple,
    dtype: str,
    layout: str,
    label: str,
    quick: bool = False,
    sweep: bool = False,
    prefix: str = "",
    **options,
) -> Entry:
    """An entry for random images; the case is `make(label, images, generator, **options)`, which adds `prefix`."""

    def maker(generator: torch.Generator) -> Case:
        x = torch.randn(shape, generator=generator, device=generator.device).to(DTYPES[dtype])
        case = make(label, laid_out(x, layout), generator, **options)
        return replace(case, compiles=case.compiles and not sweep)

    op = make.__name__.removesuffix("_case").replace("box_resize", "box_blend")
    return Entry(f"{op}{GRADIENT if options.get('grad') else ''}/{prefix}{label}", maker, quick, sweep)


def attention_entry(label: str, shape: tuple, grad: bool, quick: bool = False, sweep: bool = False) -> Entry:
    name = f"pair_attention{GRADIENT if grad else ''}/{label}"

    def maker(generator: torch.Generator) -> Case:
        return replace(attention_case(label, shape, generator, grad), compiles=not sweep)

    return Entry(name, maker, quick, sweep)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Images in "nchw" or "nhwc" order in memory."""
    return x.contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)


def pairing(n: int, generator: torch.Generator) -> Tensor:
    """(n,) random partners that are each other's, so that some samples can be checked without the others."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    index = torch.arange(n, device=generator.device)
    first, second = order[: n // 2], order[n // 2 : n // 2 * 2]
    index[first], index[second] = second, first
    return index


def blend_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    lam = torch.rand(len(x), generator=generator, device=x.device)
    inputs = (x, pairing(len(x), generator), lam)
    return Case(f"blend/{label}", inputs, ops.blend, eager_blend, 2 * _bytes(x), takes_out=True)


def box_blend_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    height, width = x.shape[2:]
    corners = (height // 4, width // 4, 3 * height // 4, 3 * width // 4)
    box = torch.tensor(corners, dtype=torch.int32, device=x.device).expand(len(x), 4).contiguous()

    def eager(x: Tensor, index: Tensor, box: Tensor) -> Tensor:
        y0, x0, y1, x1 = corners  # as published code has them, on the host
        out = x.clone()
        out[:, :, y0:y1, x0:x1] = x[index, :, y0:y1, x0:x1]
        return out

    inputs = (x, pairing(len(x), generator), box)
    return Case(f"box_blend/{label}", inputs, ops.box_blend, eager, 2 * _bytes(x), takes_out=True)


def flip_blend_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    """Half of the images blended, half of them cut, as timm's "elem" mode does in a loop."""
    n, height, width = len(x), *x.shape[2:]
    lam = torch.rand(n, generator=generator, device=x.device)
    lam[n // 2 :] = 1
    box = torch.zeros(n, 4, dtype=torch.int32, device=x.device)
    box[n // 2 :] = torch.tensor((height // 4, width // 4, 3 * height // 4, 3 * width // 4), dtype=torch.int32)

    def eager(x: Tensor, lam: Tensor, box: Tensor) -> Tensor:
        weight = lam.to(x.dtype).view(-1, 1, 1, 1)
        y, z = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        rows = (y >= box[:, 0:1]) & (y < box[:, 2:3])  # [N, H]
        inside = rows[:, :, None] & ((z >= box[:, 1:2]) & (z < box[:, 3:4]))[:, None, :]
        return torch.where(inside[:, None], x.flip(0), x * weight + x.flip(0) * (1 - weight))

    return Case(f"flip_blend/{label}", (x, lam, box), ops.flip_blend, eager, 2 * _bytes(x), takes_out=True)


def box_resize_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    """ResizeMix: the whole partner in a box of half the sides."""
    height, width = x.shape[2:]
    corners = (height // 4, width // 4, 3 * height // 4, 3 * width // 4)
    box, source = (
        torch.tensor(part, dtype=torch.int32, device=x.device).expand(len(x), 4).contiguous()
        for part in (corners, (0, 0, height, width))
    )

    def fast(x: Tensor, index: Tensor, box: Tensor, source: Tensor, **options) -> Tensor:
        return ops.box_blend(x, index, box, source=source, **options)

    def eager(x: Tensor, index: Tensor, box: Tensor, source: Tensor) -> Tensor:
        y0, x0, y1, x1 = corners
        out = x.clone()
        out[:, :, y0:y1, x0:x1] = F.interpolate(x[index], (y1 - y0, x1 - x0))
        return out

    inputs = (x, pairing(len(x), generator), box, source)
    return Case(f"box_blend/resize-{label}", inputs, fast, eager, 2 * _bytes(x), takes_out=True)


def mask_blend_case(
    label: str, x: Tensor, generator: torch.Generator, grad: bool = False, draws: int | None = None
) -> Case:
    """Bilinear and sigmoid, as AutoMix mixes; `grad`: to the mask; `draws`: that many mixes of one batch."""
    n, _, height, width = x.shape
    size = (max(height // 16, 4), max(width // 16, 4))
    lead = (n,) if draws is None else (draws, n)
    logits = torch.randn(*lead, *size, generator=generator, device=x.device)
    if draws is None:
        index, eager = pairing(n, generator), eager_mask_blend
    else:
        index, eager = torch.stack([pairing(n, generator) for _ in range(draws)]), eager_mask_blend_draws
    if grad:
        cotangent = torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)
        inputs = (x, index, logits, laid_out(cotangent, "nchw" if x.is_contiguous() else "nhwc"))
        return Case(f"mask_blend+grad/{label}", inputs, fast_mask_blend, eager, 2 * _bytes(x), wanted=(2,))
    moved = (1 + (draws or 1)) * _bytes(x)
    name = f"mask_blend/{label}" + ("" if draws is None else f"-{draws}-draws")
    return Case(name, (x, index, logits), fast_mask_blend, eager, moved, takes_out=draws is None)


def attention_case(
    label: str,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    grad: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Queries and keys are one tensor, as in a Mix Block; `grad`: to it and to the values."""
    n, r, d = shape
    q = torch.randn(shape, generator=generator, device=generator.device).to(dtype)
    # Values that every dtype can hold, so that none is at a disadvantage.
    v = torch.randn(n, r, generator=generator, device=generator.device).bfloat16().float()
    inputs, flops = (q, v, pairing(n, generator)), 2 * n * r * r * d
    moved = _bytes(q) + 2 * _bytes(v)
    if not grad:
        return Case(f"pair_attention/{label}", inputs, fast_pair_attention, eager_pair_attention, moved, flops)
    inputs = (*inputs, torch.randn(n, r, generator=generator, device=generator.device))
    name, wanted = f"pair_attention+grad/{label}", (0, 1)
    moved, flops = 2 * moved + _bytes(v), 3 * flops
    return Case(name, inputs, fast_pair_attention, eager_pair_attention, moved, flops, wanted=wanted)


def saliency_pool_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    def fast(grad: Tensor, **options) -> Tensor:
        return ops.saliency_pool(grad, BLOCKS, **options)

    return Case(f"saliency_pool/{label}", (x,), fast, eager_saliency_pool, _bytes(x))


def puzzle_energy_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    n, cell = len(x), 2 if x.shape[2] % (4 * BLOCKS) else 4
    lam = torch.rand(n, generator=generator, device=x.device)
    inputs = x.sigmoid(), eager_saliency_pool(x), pairing(n, generator), lam

    def call(op: Callable) -> Callable:
        return lambda x, share, index, lam, **options: op(x, share, index, lam, 3, neighborhood=cell, **options)

    def agree(found: tuple, case: Case) -> str:
        wrong = sum((a != b).sum().item() for a, b in zip(found, reference_energy(*case.args), strict=True))
        return f"{wrong} costs differ from the reference" if wrong else ""

    # Only pixels in cells at a boundary of blocks are wanted.
    inner = (1 - 2 * (BLOCKS - 1) * cell / x.shape[2]) * (1 - 2 * (BLOCKS - 1) * cell / x.shape[3])
    moved = round(_bytes(x) * (1 - max(inner, 0)))
    fast, reference_energy = call(ops.puzzle_energy), call(reference.puzzle_energy)
    return Case(f"puzzle_energy/{label}", inputs, fast, reference_energy, moved, agree=agree, compiles=False)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def eager_blend(x: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    weight = lam.to(x.dtype).view(-1, 1, 1, 1)
    return x * weight + x[index] * (1 - weight)


def eager_mask_blend(x: Tensor, index: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    mask = F.interpolate(logits.unsqueeze(1), size=x.shape[2:], mode="bilinear", align_corners=False).sigmoid()
    weight = mask.to(x.dtype)
    return x * weight + x[index] * (1 - weight), mask.mean((1, 2, 3))


def eager_mask_blend_draws(x: Tensor, index: Tensor, logits: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    mixed, means = zip(*(eager_mask_blend(x, *draw) for draw in zip(index, logits, strict=True)), strict=True)
    return mixed, means


def eager_pair_attention(q: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """With the (N, r, r) matrix P; the softmax is float32, as under autocast."""
    scores = q @ q[index].transpose(1, 2)
    p = torch.softmax(q.shape[2] ** -0.5 * scores, -1, dtype=torch.promote_types(q.dtype, torch.float32))
    return (p @ v.to(p.dtype).unsqueeze(2)).squeeze(2)


def fast_mask_blend(x: Tensor, index: Tensor, logits: Tensor, **options) -> tuple:
    return ops.mask_blend(x, index, logits, "bilinear", "sigmoid", **options)


def fast_pair_attention(q: Tensor, v: Tensor, index: Tensor, **options) -> Tensor:
    return ops.pair_attention(q, q, v, index, **options)


def tensors(result: Tensor | tuple) -> list[Tensor]:
    """All tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in tensors(part)]


def first(result: Tensor | tuple) -> Tensor:
    """The first tensor of a result."""
    return tensors(result)[0]


def eager_saliency_pool(grad: Tensor) -> Tensor:
    saliency = grad.square().mean(1, keepdim=True).sqrt()
    pooled = F.avg_pool2d(saliency, (grad.shape[2] // BLOCKS, grad.shape[3] // BLOCKS)).squeeze(1)
    return pooled / pooled.sum((1, 2), keepdim=True)


def with_gradients(function: Callable, wanted: tuple[int, ...]) -> Callable:
    """Forward and backward from the first result to the inputs at the given positions; the last input is the
    cotangent."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        *args, cotangent = inputs
        args = [a.detach().requires_grad_() if i in wanted else a for i, a in enumerate(args)]
        return torch.autograd.grad(first(function(*args)), [args[i] for i in wanted], cotangent)

    return run
