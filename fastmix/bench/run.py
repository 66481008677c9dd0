"""Measures a case: all its providers on the same inputs, in turns, after each was found to be right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch._functorch.config as functorch_config

from fastmix.bench import cases, losses, maps, mixing, puzzle, training
from fastmix.bench.cases import Case, Entry
from fastmix.bench.clock import Samples, Timer, size_of
from fastmix.bench.peers import peers
from fastmix.bench.provider import Provider, check, our_backends, plain_torch

_MOST_SETS = 128


@dataclass
class Row:
    """What one provider cost in one case; a number that was not measured is None, `note` says why.

    `ms` is a median; `low_ms` and `high_ms` are the quartiles, `samples` how many values stood behind them,
    `disturbed` how many more were left out because other processes held the cores, `flagged` that such had to be
    kept. `first_ms` is the first call, with what it compiles. `percent_of_roof` compares with the least time that
    the machine's measured copy bandwidth and matmul rate allow.
    """

    case: str
    op: str
    backward: bool
    shape: str
    dtype: str
    provider: str
    version: str = ""
    ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    samples: int = 0
    disturbed: int = 0
    flagged: bool = False
    first_ms: float | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    tflop_per_s: float | None = None
    flop_per_byte: float | None = None
    percent_of_roof: float | None = None
    extra_mb: float | None = None
    host_us: float | None = None
    note: str = ""


def registry(device: str = "cpu") -> Iterator[Entry]:
    """All that can be timed on a device: ops first, then mixing, then training steps."""
    for module in (cases, losses, maps, puzzle, mixing, training):
        yield from (entry for entry in module.entries() if device in entry.devices)


def providers(case: Case, device: str, compiler: str = "inductor") -> list[Provider]:
    """Our backends of the op, eager PyTorch, `torch.compile` of that, and the peers of the op."""
    if case.providers:
        return list(case.providers)
    return our_backends(case, device) + plain_torch(case, compiler) + peers(case, device) + list(case.peers)


# Graphs of gradients are kept, so that the backward pass can be timed alone.
@functorch_config.patch(donated_buffer=False)
def measure(
    make: Callable[[torch.Generator], Case],
    timer: Timer,
    roofs: dict[str, float],
    seconds: float,
    *,
    compiler: str = "inductor",
    backward_alone: bool = False,
    only: Iterable[str] = (),
) -> list[Row]:
    """One row a provider. A provider that is wrong is not timed.

    Gradients are timed together with their forward pass, or `backward_alone`. `only` keeps the providers whose names
    contain one of these words, `compiler` is the backend of `torch.compile`, "" for none.
    """
    torch.compiler.reset()
    timer.clear()
    generator = torch.Generator(timer.device).manual_seed(0)
    case = make(generator)
    # What all calls of a round touch is some caches large, so that none finds its inputs in the cache.
    sets = min(max(2, math.ceil(3 * timer.cache_bytes / case.moved)), _MOST_SETS) if case.moved else 1
    rotating = [case, *(make(generator) for _ in range(sets - 1))]
    rows, prepared = [], {}
    for provider in providers(case, timer.device, compiler):
        if only and not any(word in provider.name for word in only):
            continue
        row = _row(case, provider)
        rows.append(row)
        if not row.version:
            row.note = f"absent: {provider.package} is not installed"
            continue
        try:
            row.first_ms = _first_call(provider.timed(case), timer)
            wrong = check(case, provider)
            if wrong:
                row.note = f"not timed: {wrong}"
                continue
            timed = provider.backward if backward_alone and case.wanted else provider.timed
            extra, result = timer.extra_bytes(provider.timed(case))
            row.extra_mb = None if extra is None else extra / 1e6
            fitting = max(1, int(0.1 * timer.free_bytes() / max((extra or 0) + size_of(result), 1)))
            del result
            prepared[provider.name] = timer.prepare([partial(timed, c) for c in rotating[:fitting]])
            if _is_small(case):
                row.host_us = timer.host_us(provider.forward(case))
        except Exception as error:  # a peer that cannot run here is a row of the table, not the end of the run
            row.note = "does not run: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    for name, found in timer.rounds(prepared, seconds).items() if prepared else ():
        counted = not case.wanted or backward_alone
        _fill(next(row for row in rows if row.provider == name), case, found, roofs, counted)
    return rows


def _first_call(call: Callable, timer: Timer) -> float:
    start = time.perf_counter()
    call()
    timer.sync()
    return 1e3 * (time.perf_counter() - start)


def _is_small(case: Case) -> bool:
    return not case.wanted and ("/small" in case.name or "/host" in case.name)


def _row(case: Case, provider: Provider) -> Row:
    like = next(t for t in case.inputs if isinstance(t, torch.Tensor))
    shape, dtype = "x".join(map(str, like.shape)), _SHORT.get(like.dtype, str(like.dtype).removeprefix("torch."))
    return Row(case.name, case.op, bool(case.wanted), shape, dtype, provider.name, provider.version)


_SHORT = {dtype: name for name, dtype in cases.DTYPES.items()}


def _fill(row: Row, case: Case, found: Samples, roofs: dict[str, float], counted: bool) -> None:
    """`counted`: the case's bytes and products are those of what was timed."""
    row.ms, row.low_ms, row.high_ms = found.median, found.quantile(0.25), found.quantile(0.75)
    row.samples, row.disturbed, row.flagged = len(found.values), found.disturbed, found.flagged
    if not (case.moved and counted):
        return
    row.gb_per_s = case.moved / row.ms / 1e6
    row.percent_of_copy = 100 * row.gb_per_s / roofs["copy GB/s"]
    least_ms = case.moved / roofs["copy GB/s"] / 1e6
    if case.flops:
        row.tflop_per_s, row.flop_per_byte = case.flops / row.ms / 1e9, case.flops / case.moved
        rate = roofs.get(f"{row.dtype} TFLOP/s") or roofs["tf32 TFLOP/s"]
        least_ms = max(least_ms, case.flops / rate / 1e9)
    row.percent_of_roof = 100 * least_ms / row.ms


def measure_roofs(timer: Timer, tiny: bool = False) -> dict[str, float]:
    """What this machine can do: GB/s of a large copy, read and written, and TFLOP/s of a large matrix product."""
    on_gpu = timer.device == "cuda"
    elements, side = (2**12, 64) if tiny else (2**28, 8192) if on_gpu else (2**26, 2048)
    source = torch.rand(elements, device=timer.device)
    target = torch.empty_like(source)
    calls = {"copy GB/s": timer.prepare([lambda: lambda: target.copy_(source)])}
    work = {"copy GB/s": 2 * size_of(source) / 1e9}
    kinds = [("bf16 TFLOP/s", torch.bfloat16), ("tf32 TFLOP/s" if on_gpu else "fp32 TFLOP/s", torch.float32)]
    for name, dtype in kinds:
        a, b = (torch.randn(side, side, device=timer.device).to(dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        calls[name], work[name] = timer.prepare([lambda a=a, b=b: lambda: a @ b]), 2 * side**3 / 1e12
        torch.set_float32_matmul_precision(before)
    return {name: work[name] / (min(found.values) / 1e3) for name, found in timer.rounds(calls, 0.5).items()}
