"""The benchmark cases of every op: inputs, the fastmix call, the obvious eager code, and the bytes that must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import ops, reference

SHAPES = {"cifar": (128, 3, 32, 32), "tiny": (100, 3, 64, 64), "imagenet": (64, 3, 224, 224)}
BLOCKS = 8
LOGITS = {"imagenet": (256, 1000), "imagenet-21k": (1024, 21841)}
ATTENTION = {"cifar-l3": (100, 64, 128), "tiny-l3": (64, 256, 128), "r50-l3": (32, 196, 512), "r50-l1": (8, 3136, 128)}


@dataclass(frozen=True)
class Case:
    """One op at one shape; `fast(*inputs)` and `eager(*inputs)` compute the same.

    `moved` counts compulsory bytes (each image read once, each result written once), `flops` those of the matrix
    products. `takes_out` says that `fast` accepts `out=`. With `wanted` the case is about the gradients with respect
    to the inputs at these positions; the last input is then the cotangent of the first result, which `fast` and
    `eager` do not take, and `moved` and `flops` are those of the backward pass alone.
    """

    name: str
    inputs: tuple[Tensor, ...]
    fast: Callable
    eager: Callable
    moved: int
    flops: int = 0
    takes_out: bool = False
    wanted: tuple[int, ...] = ()

    @property
    def op(self) -> str:
        return self.name.split("/")[0].removesuffix("+grad")

    @property
    def args(self) -> tuple[Tensor, ...]:
        """The inputs that `fast` and `eager` take."""
        return self.inputs[:-1] if self.wanted else self.inputs

    def whole(self, function: Callable) -> Callable:
        """`function` as this case wants it run on its inputs: forward, or forward and backward."""
        return with_gradients(function, self.wanted) if self.wanted else function


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case on float32 CPU tensors, made when asked for; `quick` leaves out the large shapes."""
    generator = torch.Generator().manual_seed(0)
    for label, shape in SHAPES.items():
        if quick and label == "imagenet":
            continue
        x = torch.randn(shape, generator=generator)
        for layout in ("nchw", "nhwc"):
            yield from blend_cases(f"{label}-{layout}", laid_out(x, layout), generator)
            yield box_resize_case(f"{label}-{layout}", laid_out(x, layout), generator)
            yield saliency_pool_case(f"{label}-{layout}", laid_out(x, layout))
            yield puzzle_energy_case(f"{label}-{layout}", laid_out(x, layout), generator)
            yield fine_grained_saliency_case(f"{label}-{layout}", laid_out(x, layout))
        yield saliency_box_case(label, shape, generator)
        yield spectral_mask_case(label, shape, "paper", generator)
        yield spectral_mask_case(label, shape, "reference", generator)
    for label, shape in ATTENTION.items():
        if not (quick and label == "r50-l1"):
            yield attention_case(label, shape, generator)
            yield attention_case(label, shape, generator, grad=True)
    for label, shape in LOGITS.items():
        if not (quick and label == "imagenet-21k"):
            yield mix_cross_entropy_case(label, shape, generator)


def blend_cases(label: str, x: Tensor, generator: torch.Generator) -> Iterator[Case]:
    """Every blend of the images `x`, on their device and in their dtype."""
    yield blend_case(label, x, generator)
    yield box_blend_case(label, x, generator)
    yield mask_blend_case(label, x, generator)
    yield mask_blend_case(label, x, generator, grad=True)


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


def box_resize_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    """ResizeMix: the whole partner in a box of half the sides."""
    height, width = x.shape[2:]
    corners = (height // 4, width // 4, 3 * height // 4, 3 * width // 4)
    box, source = (
        torch.tensor(part, dtype=torch.int32, device=x.device).expand(len(x), 4).contiguous()
        for part in (corners, (0, 0, height, width))
    )

    def fast(x: Tensor, index: Tensor, box: Tensor, source: Tensor, out: Tensor | None = None) -> Tensor:
        return ops.box_blend(x, index, box, source=source, out=out)

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


def saliency_pool_case(label: str, x: Tensor) -> Case:
    return Case(f"saliency_pool/{label}", (x,), lambda g: ops.saliency_pool(g, BLOCKS), eager_saliency_pool, _bytes(x))


def puzzle_energy_case(label: str, x: Tensor, generator: torch.Generator) -> Case:
    n, cell = len(x), 2 if x.shape[2] % (4 * BLOCKS) else 4
    lam = torch.rand(n, generator=generator, device=x.device)
    inputs = x.sigmoid(), eager_saliency_pool(x), pairing(n, generator), lam

    def call(op: Callable) -> Callable:
        return lambda x, share, index, lam: op(x, share, index, lam, 3, neighborhood=cell)

    # Only pixels in cells at a boundary of blocks are wanted.
    inner = (1 - 2 * (BLOCKS - 1) * cell / x.shape[2]) * (1 - 2 * (BLOCKS - 1) * cell / x.shape[3])
    moved = round(_bytes(x) * (1 - max(inner, 0)))
    return Case(f"puzzle_energy/{label}", inputs, call(ops.puzzle_energy), call(reference.puzzle_energy), moved)


def mix_cross_entropy_case(label: str, shape: tuple[int, int], generator: torch.Generator) -> Case:
    """Forward and backward of the mean against one weight of the batch, beside two weighted cross entropies."""
    logits = 3 * torch.randn(shape, generator=generator, device=generator.device)
    y, y_b = torch.randint(shape[1], (2, shape[0]), generator=generator, device=generator.device)
    lam, cotangent = torch.rand(2, generator=generator, device=generator.device)

    def eager(z: Tensor, y: Tensor, y_b: Tensor, lam: Tensor) -> Tensor:
        return lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y_b)

    inputs, name = (logits, y, y_b, lam, cotangent), f"mix_cross_entropy+grad/{label}"
    return Case(name, inputs, ops.mix_cross_entropy, eager, 2 * _bytes(logits), wanted=(0,))


def fine_grained_saliency_case(label: str, x: Tensor) -> Case:
    """Of images of coarse spots with some noise; the eager code is the reference's: there is no obvious one."""
    n, _, height, width = x.shape
    spots = F.interpolate(x[:, :, ::8, ::8], (height, width), mode="bicubic")
    images = (255 * (0.8 * spots + 0.2 * x).sigmoid()).byte().contiguous(memory_format=_format(x))
    moved = _bytes(images) + 4 * n * height * width
    name = f"fine_grained_saliency/{label}"
    return Case(name, (images,), ops.fine_grained_saliency, reference.fine_grained_saliency, moved)


def saliency_box_case(label: str, shape: tuple[int, ...], generator: torch.Generator) -> Case:
    n, _, height, width = shape
    saliency = torch.rand(n, height, width, generator=generator, device=generator.device)
    lam = torch.rand(n, generator=generator, device=generator.device)

    def eager(saliency: Tensor, lam: Tensor) -> Tensor:
        return reference.saliency_box(saliency, lam, None, (height, width))

    return Case(f"saliency_box/{label}", (saliency, lam), ops.saliency_box, eager, _bytes(saliency))


def spectral_mask_case(label: str, shape: tuple[int, ...], spectrum: str, generator: torch.Generator) -> Case:
    n, size = shape[0], tuple(shape[2:])
    noise = torch.randn(n, *ops.spectral_mask_noise_shape(size, spectrum), generator=generator, device=generator.device)
    count = torch.randint(0, size[0] * size[1] + 1, (n,), generator=generator, device=generator.device)

    def call(op: Callable) -> Callable:
        return lambda noise, count: op(noise, count, size, 3.0, spectrum)

    moved = _bytes(noise) + 4 * n * size[0] * size[1]
    name = f"spectral_mask/{label}-{spectrum}"
    return Case(name, (noise, count), call(ops.spectral_mask), call(reference.spectral_mask), moved)


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


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
