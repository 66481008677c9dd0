"""Cases that the op tests share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from fastmix import ops
from fastmix.dispatch import ORDER, can_run, usual_dtype


def backends(op: str, reference: bool = True) -> list:
    """(device, backend) of every backend of an op; those of CUDA run where there is a device they can run on."""
    pairs = [(device, backend) for device in ("cpu", "cuda") for backend in ORDER[op][device]]
    # The reference is plain PyTorch: once is enough.
    kept = [pair for pair in pairs if pair[1] != "reference" or (reference and pair[0] == "cpu")]
    return [pytest.param(*pair, id=pair[1], marks=_marks(op, *pair)) for pair in kept]


def _marks(op: str, device: str, backend: str) -> list[pytest.MarkDecorator]:
    if device != "cuda":
        return []
    reason = can_run(op, backend, device, usual_dtype(op)) if torch.cuda.is_available() else None
    return [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")]


def sweep(values: Iterable, quick: Container) -> list:
    """Values of a parameter, of which `make test` runs the quick ones and `make test-all` the rest too."""
    return [pytest.param(value, marks=[] if value in quick else pytest.mark.slow) for value in values]


OPS = ("blend", "box_blend", "mask_blend", "pair_attention")
BACKENDS = backends("blend")


def each_op(device: str | None = None, reference: bool = False) -> list:
    """(op, device, backend) of every op and backend, on one kind of device or on all."""
    return [
        pytest.param(op, *place.values, id=f"{op}-{place.id}", marks=place.marks)
        for op in OPS
        for place in backends(op, reference)
        if device in (None, place.values[0])
    ]


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(5, 3, 17, 23), (1, 1, 8, 8), (4, 3, 64, 64), (7, 5, 33, 14), (0, 3, 8, 8), (3, 3, 1, 1), (2, 1, 300, 200)]
LAYOUTS = ["contiguous", "channels_last", "sliced", "offset"]
MEAN, STD = (0.485, 0.456, 0.406, 0.5, 0.4), (0.229, 0.224, 0.225, 0.25, 0.2)


def images(shape: tuple, dtype: torch.dtype, layout: str, device: str, seed: int = 0) -> Tensor:
    """Random images: normal, or bytes; laid out as named ("offset": not aligned to a vector)."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if layout == "sliced":
        h, w = h + 2, 2 * w
    count = n * c * h * w + (layout == "offset")
    if dtype is torch.uint8:
        flat = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    else:
        flat = torch.randn(count, generator=generator).to(dtype)
    flat = flat.to(device)
    x = flat[layout == "offset" :].view(n, c, h, w)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x[:, :, 1:-1, ::2] if layout == "sliced" else x


def partners(n: int, device: str, seed: int = 0) -> Tensor:
    """A many-to-one map with fixed points."""
    generator = torch.Generator().manual_seed(seed + 1)
    index = torch.randint(0, max(n, 1), (n,), generator=generator)
    if n > 1:
        index[0] = 0
    return index.to(device)


def unit(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Weights in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + 2)).to(device)


def normal(*shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 3)).to(device)


def samples(count: int) -> int:
    """How many of a kind to try: fewer where CUDA kernels are emulated, which takes them a thousand times as long."""
    return max(1, count // 8) if "FASTMIX_CUDA_EMULATOR" in os.environ else count


def skip_unsupported(backend: str, dtype: torch.dtype) -> None:
    if backend in ("triton", "cuda") and dtype is torch.float64:
        pytest.skip("the GPU kernels leave float64 to the reference")


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers, so that NaN equals NaN and the two zeros differ."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    """Equal bit for bit, signs of zeros included; any NaN equals any other."""
    same = (bits(a) == bits(b)) | (a.isnan() & b.isnan())
    assert a.dtype is b.dtype and same.all(), f"{(~same).sum()} of {same.numel()} values differ"


@dataclass
class Call:
    """One call of `fastmix.ops.<op>`; gradients are taken of the arguments that ask for them."""

    op: str
    args: tuple
    options: dict = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        return [a for a in self.args if isinstance(a, Tensor)]

    @property
    def shared(self) -> list[Tensor]:
        """The arguments that all draws share: images, or queries and keys."""
        return self.tensors[: 2 if self.op == "pair_attention" else 1]

    def draw(self, d: int) -> Call:
        """The call of draw `d` alone."""
        shared = len(self.shared)
        return Call(self.op, (*self.args[:shared], *(a[d] for a in self.args[shared:])), self.options)

    def results(self, backend: str | None, *leaves: Tensor) -> list[Tensor]:
        """All results in order; `leaves` replace the arguments that ask for a gradient."""
        given = iter(leaves or self.leaves)
        args = [next(given) if _asks(a) else a for a in self.args]
        return flat(getattr(ops, self.op)(*args, **self.options, backend=backend))

    @property
    def leaves(self) -> list[Tensor]:
        return [a for a in self.args if _asks(a)]

    def run(self, backend: str | None) -> list[Tensor]:
        """Results, then gradients for cotangents made of the results, so that all happens on the device."""
        results = self.results(backend)
        recorded = [r for r in results if r.requires_grad]
        gradients = torch.autograd.grad(recorded, self.leaves, [r.detach().cos() for r in recorded]) if recorded else ()
        return [*(r.detach() for r in results), *gradients]


def _asks(value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def flat(result: Tensor | tuple) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def call(
    op: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    shape: tuple | None = None,
    draws: int | None = None,
    grad: bool = True,
    seed: int = 0,
    mask: tuple = (4, 5),
    **options,
) -> Call:
    """A call on random inputs: images (N, C, H, W), or positions (N, r, d) for `pair_attention`.

    With `draws` the partner map is (draws, N). uint8 images get no gradient.
    """
    shape = shape or ((4, 37, 24) if op == "pair_attention" else (5, 3, 17, 22))
    n, grad = shape[0], grad and dtype.is_floating_point
    lead = (n,) if draws is None else (draws, n)
    maps = [partners(n, device, seed + 10 * d) for d in range(draws or 1)]
    index = maps[0] if draws is None else torch.stack(maps)
    if op == "pair_attention":
        q, k = (normal(*shape, device=device, seed=seed + s).to(dtype).requires_grad_(grad) for s in (0, 1))
        v, bias = (normal(*lead, shape[1], device=device, seed=seed + s).requires_grad_(grad) for s in (2, 3))
        return Call(op, (q, k, v, index, bias), options)
    x = images(shape, dtype, layout, device, seed).requires_grad_(grad)
    if op == "mask_blend":
        logits = normal(*lead, *mask, device=device, seed=seed).requires_grad_(grad)
        return Call(op, (x, index, logits), {"activation": "sigmoid", **options})
    lam = unit(*lead, device=device, seed=seed).requires_grad_(grad)
    if op == "box_blend":
        corners = torch.randint(-2, max(shape[2:]) + 3, (*lead, 4), generator=torch.Generator().manual_seed(seed))
        return Call(op, (x, index, corners.int().to(device), lam), options)
    return Call(op, (x, index, lam), options)


def random_call(op: str, device: str, seed: int) -> Call:
    """A call whose shape, dtype, layout, draws and options are drawn from what the op takes; odd sizes are usual."""
    rng = random.Random(seed)
    draws = rng.choice([None, None, 1, 2, 3])
    if op == "pair_attention":
        shape = (
            rng.randint(1, 5),
            rng.choice([1, 7, 64, 196, rng.randint(2, 300)]),
            rng.choice([1, 16, 24, 33, 64, 130]),
        )
        dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
        return call(op, device, dtype, shape=shape, draws=draws, seed=seed, transpose=rng.random() < 0.5)
    shape = (
        rng.randint(1, 6),
        rng.randint(1, 5),
        rng.choice([1, 32, rng.randint(2, 90)]),
        rng.choice([1, 64, rng.randint(2, 90)]),
    )
    dtype = rng.choice([torch.uint8, torch.float16, torch.bfloat16, torch.float32])
    mask = (rng.randint(1, 20), rng.randint(1, 20))
    given = call(op, device, dtype, rng.choice(LAYOUTS), shape, draws, seed=seed, mask=mask)
    if rng.random() < 0.4:
        given.options["normalize"] = (MEAN[: shape[1]], STD[: shape[1]])
    if "normalize" in given.options or rng.random() < 0.3:
        given.options["dtype"] = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    if op == "mask_blend":
        given.options["mode"] = rng.choice(["nearest", "bilinear", "bicubic"])
        given.options["activation"] = rng.choice(["none", "sigmoid"])
        given.options["activation_first"] = rng.random() < 0.5
    return given


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises RuntimeError."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(run: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of what `run` does, and the tensors it returned; it ran a few times before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = run()
    return graph, found
