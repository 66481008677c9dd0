"""Every op on a GPU beside its peers: which cases, who competes, whether they are right, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from cases import (
    Case,
    attention_case,
    blend_case,
    box_blend_case,
    first,
    laid_out,
    mask_blend_case,
    tensors,
)
from gpu_timing import Timer, size_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fastmix import dispatch

FASTMIX = "fastmix "  # begins the names of our own providers
NOT_THE_OP = ("copy_", "QK^T")  # providers that do less, to compare with
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Pictures (N, C, H, W) and positions (N, r, d) of the targets.
SIZES = {
    "imagenet": (256, 3, 224, 224),
    "small": (100, 3, 32, 32),
    "tiny-l1": (100, 4096, 32),
    "tiny-l3": (100, 256, 128),
    "r50-l3": (256, 196, 512),
    "small-l3": (100, 64, 128),
}
TINY_SIZES = {
    "imagenet": (4, 3, 16, 16),
    "small": (2, 3, 8, 8),
    "tiny-l1": (4, 24, 16),
    "tiny-l3": (4, 16, 16),
    "r50-l3": (4, 12, 32),
    "small-l3": (2, 8, 16),
}


@dataclass
class Row:
    """What one provider cost in one case; a number that was not measured is None, `note` says why."""

    case: str
    op: str
    backward: bool
    shape: str
    dtype: str
    provider: str
    ms: float | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    tflop_per_s: float | None = None
    flop_per_byte: float | None = None
    extra_mb: float | None = None
    host_us: float | None = None
    note: str = ""


@dataclass
class Provider:
    """Someone who computes a case: `result(call(*prepare(*args)))` is the op's result. Without `prepare` the call takes
    the op's own arguments.

    `wanted` are the positions of the prepared arguments that a gradient is taken to, and `cotangent` turns the case's
    cotangent into that of the call.
    """

    name: str
    call: Callable
    wanted: tuple[int, ...] = ()
    prepare: Callable | None = None
    result: Callable = lambda out: out
    cotangent: Callable = lambda grad: grad

    @property
    def ours(self) -> bool:
        return self.name.startswith(FASTMIX)

    def results(self, *args: Tensor) -> Tensor | tuple:
        return self.result(self.call(*self.prepared(*args)))

    def prepared(self, *args: Tensor) -> tuple[Tensor, ...]:
        return args if self.prepare is None else self.prepare(*args)

    def forward(self, case: Case) -> Callable:
        """The call to be timed for a case without gradients."""
        with torch.no_grad():
            args = self.prepared(*case.args)

        def call() -> Any:
            with torch.no_grad():
                return self.call(*args)

        return call

    def backward(self, case: Case) -> Callable:
        """Runs the forward pass; the call to be timed is the backward pass alone."""
        args, result = self._recorded(case)
        leaves, grad = [args[i] for i in self.wanted], self.cotangent(case.inputs[-1])
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    def both(self, case: Case) -> Callable:
        """Forward and backward pass in one call."""
        grad = self.cotangent(case.inputs[-1])

        def call() -> tuple:
            args, result = self._recorded(case)
            return result.detach(), torch.autograd.grad(result, [args[i] for i in self.wanted], grad)

        return call

    def _recorded(self, case: Case) -> tuple[list[Tensor], Tensor]:
        args = [t.detach() for t in self.prepared(*case.args)]
        for i in self.wanted:
            args[i].requires_grad_()
        return args, first(self.call(*args))


def case_makers(sizes: dict[str, tuple]) -> Iterator[Callable[[torch.Generator], Case]]:
    """The cases in the order of their importance; each maker gives the same case on other random inputs each time."""

    def images(size: str, dtype: torch.dtype, layout: str, make: Callable, **options) -> Callable:
        label = f"{size}-{SHORT[dtype]}-{layout}"

        def maker(generator: torch.Generator) -> Case:
            x = torch.randn(sizes[size], generator=generator, device=generator.device).to(dtype)
            return make(label, laid_out(x, layout), generator, **options)

        return maker

    def attention(size: str, dtype: torch.dtype, grad: bool) -> Callable:
        label = f"{size}-{SHORT[dtype]}"
        return lambda generator: attention_case(label, sizes[size], generator, grad, dtype)

    formats = [(dtype, layout) for dtype in (torch.bfloat16, torch.float32) for layout in ("nchw", "nhwc")]
    for grad in (False, True):
        yield attention("tiny-l1", torch.bfloat16, grad)
        for dtype, layout in formats:
            yield images("imagenet", dtype, layout, mask_blend_case, grad=grad)
    for make in (blend_case, box_blend_case):
        for dtype, layout in formats:
            yield images("imagenet", dtype, layout, make)
    yield attention("r50-l3", torch.bfloat16, False)
    for make in (blend_case, box_blend_case, mask_blend_case):
        for dtype in (torch.bfloat16, torch.float32):
            yield images("small", dtype, "nchw", make)
    yield attention("small-l3", torch.bfloat16, False)
    for layout in ("nchw", "nhwc"):
        yield images("imagenet", torch.bfloat16, layout, mask_blend_case, draws=2)
    for size in ("tiny-l3", "r50-l3"):
        for grad in (False, True):
            if (size, grad) != ("r50-l3", False):
                yield attention(size, torch.bfloat16, grad)
    for grad in (False, True):
        yield attention("tiny-l3", torch.float32, grad)


def providers(case: Case, device: str) -> list[Provider]:
    """Our backends of the op, eager PyTorch, `torch.compile` of that, and the peers of the op."""
    wanted = case.wanted
    backends = [b for b in dispatch.ORDER[case.op][device] if b != "reference"]
    found = [Provider(FASTMIX + b, partial(case.fast, backend=b), wanted) for b in backends]
    compiler = {"dynamic": False} if device == "cuda" else {"backend": "aot_eager"}
    found.append(Provider("eager", case.eager, wanted))
    found.append(Provider("torch.compile", torch.compile(case.eager, **compiler), wanted))
    if case.op == "pair_attention":
        return found + _attention_peers(case, device)
    if not wanted and case.takes_out:
        found.append(
            Provider(NOT_THE_OP[0], lambda x, out: out.copy_(x), prepare=lambda x, *_: (x, torch.empty_like(x)))
        )
    return found


def _attention_peers(case: Case, device: str) -> list[Provider]:
    """Attention kernels on keys already gathered and values already padded by zeros, which favours them.

    The value has one column; a peer gets the fewest columns that it takes: those of the queries for FlashAttention
    and cuDNN, 8 for the memory efficient kernel, 16 for FlexAttention.
    """
    d, dtype = case.inputs[0].shape[2], case.inputs[0].dtype

    def peer(name: str, call: Callable, columns: int) -> Provider:
        def prepare(q: Tensor, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            value = F.pad(v.to(q.dtype).unsqueeze(2), (0, columns - 1))
            return q.unsqueeze(1), q[index].unsqueeze(1), value.unsqueeze(1)  # [N, 1, r, d or columns]

        return Provider(
            f"{name}, {columns} value columns",
            call,
            wanted=(0, 1, 2) if case.wanted else (),
            prepare=prepare,
            result=lambda out: first(out)[:, 0, :, 0],
            cotangent=lambda grad: F.pad(grad.to(dtype).unsqueeze(2), (0, columns - 1)).unsqueeze(1),
        )

    def sdpa(backend: SDPBackend) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    flex = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    found = [
        peer("SDPA flash", sdpa(SDPBackend.FLASH_ATTENTION), d),
        peer("SDPA efficient", sdpa(SDPBackend.EFFICIENT_ATTENTION), 8),
        peer("SDPA cuDNN", sdpa(SDPBackend.CUDNN_ATTENTION), d),
        peer("FlexAttention", flex, 16),
    ]
    if not case.wanted:
        found.append(Provider(NOT_THE_OP[1], torch.bmm, prepare=lambda q, v, index: (q, q[index].transpose(1, 2))))
    return found


def check(case: Case, provider: Provider) -> str:
    """What is wrong with a provider's results, against the eager code in float64; nothing if they are right.

    Ours may be off by twice what eager PyTorch is off in this dtype, a peer by eight times that. Of `pair_attention`
    some pairs are looked at, since the float64 matrix of all would not fit. Gradients are looked at where they are
    those of the op's own arguments.
    """
    if provider.name in NOT_THE_OP:
        return ""
    rows = _closed_rows(case) if case.op == "pair_attention" else None
    wanted = case.wanted if provider.prepare is None else ()
    inputs = case.inputs if rows is None else _of_rows(case.inputs, rows)
    doubled = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    exact, plain = (_outcome(case.eager, given, wanted, len(case.args)) for given in (doubled, inputs))
    found = _outcome(provider.results, case.inputs, wanted, len(case.args))
    for i, (got, true, rounded) in enumerate(zip(found, exact, plain, strict=False)):
        got, rounded = (got if rows is None else got[rows]).double(), rounded.double()
        floor = 32 * torch.finfo(torch.float32).eps * true.abs().max().item()
        allowed = (2 if provider.ours else 8) * (rounded - true).abs().max().item() + floor
        error = (got - true).abs().nan_to_num(nan=math.inf).max().item()
        if not error <= allowed:
            return f"number {i} of results and gradients is off by {error:.3g}, {allowed:.3g} allowed"
    return ""


def _outcome(function: Callable, inputs: tuple[Tensor, ...], wanted: tuple[int, ...], count: int) -> list[Tensor]:
    """All results for the first `count` inputs, or the first result and the gradients for the last input."""
    if not wanted:
        with torch.no_grad():
            return tensors(function(*inputs[:count]))
    args = [t.detach().requires_grad_() if i in wanted else t for i, t in enumerate(inputs[:count])]
    result = first(function(*args))
    grad = inputs[-1].to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, [args[i] for i in wanted], grad)]


def _closed_rows(case: Case, count: int = 4) -> list[int]:
    """Some samples, first and last among them, whose partners are among them too."""
    index = case.inputs[2].tolist()
    rows: dict[int, None] = {}
    for row in (0, len(index) - 1, *range(len(index))):
        if len(rows) < count:
            rows |= {row: None, index[row]: None}
    return list(rows)


def _of_rows(inputs: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
    """The inputs of some samples alone."""
    place = {row: i for i, row in enumerate(rows)}

    def part(tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.int64:
            return torch.tensor([place[row] for row in tensor[rows].tolist()], device=tensor.device)
        return tensor[rows]

    return tuple(map(part, inputs))


# Graphs of gradients are kept, so that the backward pass can be timed alone.
@functorch_config.patch(donated_buffer=False)
def measure(
    make: Callable[[torch.Generator], Case], timer: Timer, roofs: dict[str, float], seconds: float
) -> list[Row]:
    """One row a provider. All run on the same inputs in turns; a provider that is wrong is not timed."""
    torch.compiler.reset()
    timer.clear()
    generator = torch.Generator(timer.device).manual_seed(0)
    case = make(generator)
    # What all calls of a round touch is some caches large, so that none finds its inputs in the cache.
    sets = min(max(2, math.ceil(3 * timer.cache_bytes / case.moved)), 128)
    rotating = [case, *(make(generator) for _ in range(sets - 1))]
    rows, prepared = [], {}
    for provider in providers(case, timer.device):
        row = _row(case, provider)
        rows.append(row)
        try:
            wrong = check(case, provider)
            if wrong:
                row.note = f"not timed: {wrong}"
                continue
            whole, timed = (provider.both, provider.backward) if case.wanted else (provider.forward,) * 2
            extra, result = timer.extra_bytes(whole(case))
            row.extra_mb = extra / 1e6
            fitting = _sets_that_fit(extra + size_of(result), timer.device)
            prepared[provider.name] = timer.prepare([partial(timed, c) for c in rotating[:fitting]])
            if not case.wanted and "/small" in case.name:
                row.host_us = timer.host_us(partial(provider.call, *provider.prepared(*case.args)))
        except Exception as error:  # a peer that cannot run here is a row of the table, not the end of the run
            row.note = "does not run: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    for name, milliseconds in timer.rounds(prepared, seconds).items() if prepared else ():
        _fill(next(row for row in rows if row.provider == name), case, milliseconds, roofs)
    return rows


def _sets_that_fit(bytes_a_set: int, device: str) -> int:
    """How many input sets a provider can have in a graph: one that floods the cache by itself needs no more."""
    if device != "cuda":
        return 2
    return max(1, int(0.1 * torch.cuda.mem_get_info()[0] / max(bytes_a_set, 1)))


def _row(case: Case, provider: Provider) -> Row:
    shape = "x".join(map(str, case.inputs[0].shape))
    return Row(case.name, case.op, bool(case.wanted), shape, SHORT[case.inputs[0].dtype], provider.name)


def _fill(row: Row, case: Case, milliseconds: float, roofs: dict[str, float]) -> None:
    row.ms = milliseconds
    row.gb_per_s = case.moved / milliseconds / 1e6
    row.percent_of_copy = 100 * row.gb_per_s / roofs["copy GB/s"]
    if case.flops:
        row.tflop_per_s, row.flop_per_byte = case.flops / milliseconds / 1e9, case.flops / case.moved


def measure_roofs(timer: Timer, tiny: bool) -> dict[str, float]:
    """What this machine can do: GB/s of a large copy, read and written, and TFLOP/s of a large matrix product."""
    elements, side = (2**12, 64) if tiny else (2**28, 8192)
    source = torch.rand(elements, device=timer.device)
    target = torch.empty_like(source)
    calls = {"copy GB/s": timer.prepare([lambda: lambda: target.copy_(source)])}
    work = {"copy GB/s": 2 * size_of(source) / 1e9}
    for name, dtype in (("bf16 TFLOP/s", torch.bfloat16), ("tf32 TFLOP/s", torch.float32)):
        a, b = (torch.randn(side, side, device=timer.device).to(dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        calls[name], work[name] = timer.prepare([lambda a=a, b=b: lambda: a @ b]), 2 * side**3 / 1e12
        torch.set_float32_matmul_precision(before)
    return {name: work[name] / (ms / 1e3) for name, ms in timer.rounds(calls, 0.5).items()}
