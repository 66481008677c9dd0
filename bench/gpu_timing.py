"""Clocks: CUDA events over graph replays, and a wall clock in their place where a dry run has no GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Keeps the GPU busy while the host queues the work to be timed, so that no launch is waited for between two events.
_HEAD_START = 2_000_000  # cycles, about a millisecond
_LEAST_MS = 3.0  # of one timed stretch of calls
_MOST_CALLS = 256
_LEAST_ROUNDS = 7


@dataclass
class Prepared:
    """Work that can be timed again and again: it makes `count` calls. `kept` is what must live as long."""

    work: Callable[[], Any]
    count: int
    kept: Any = None


class Timer(Protocol):
    """What a clock must do. Calls take no arguments; a maker returns one, having run what is not to be timed."""

    device: str
    cache_bytes: int

    def prepare(self, makers: Sequence[Callable[[], Callable]]) -> Prepared: ...

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, float]: ...

    def extra_bytes(self, call: Callable) -> tuple[int, Any]: ...

    def host_us(self, call: Callable) -> float: ...

    def clear(self) -> None: ...


class CudaTimer:
    """GPU time of graph replays. A graph holds enough calls, on rotating inputs, to be long against its launch."""

    device = "cuda"

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self.cache_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * 2**20

    def prepare(self, makers: Sequence[Callable[[], Callable]]) -> Prepared:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            calls = [make() for make in makers]
            for _ in range(2):
                for call in calls:
                    call()
            once = max(self._milliseconds(calls[0]), 1e-3)
        stretches = max(1, min(round(_LEAST_MS / (once * len(calls))), _MOST_CALLS // len(calls)))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # A result lives until its inputs come round again: then its memory is as cold as theirs.
        kept = deque(maxlen=len(calls))
        with torch.cuda.graph(graph, stream=self._stream):
            for call in calls * stretches:
                kept.append(call())
        return Prepared(graph.replay, stretches * len(calls), (calls, kept))

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, float]:
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        torch.cuda.synchronize()
        end = time.perf_counter() + seconds
        with torch.cuda.stream(self._stream):
            for item in prepared.values():
                item.work()
            while time.perf_counter() < end or len(next(iter(samples.values()))) < _LEAST_ROUNDS:
                for name, item in prepared.items():
                    samples[name].append(self._milliseconds(item.work) / item.count)
        return {name: statistics.median(values) for name, values in samples.items()}

    def _milliseconds(self, call: Callable) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_HEAD_START)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def extra_bytes(self, call: Callable) -> tuple[int, Any]:
        """Most memory in use during a call beyond what was before and what it returns, and what it returned."""
        call()
        self.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        return torch.cuda.max_memory_allocated() - before - size_of(result), result

    def host_us(self, call: Callable) -> float:
        """Wall time of one of many calls in a row, none of which waits for the GPU."""

        return _host_us(call, torch.cuda.synchronize)

    def clear(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        torch.cuda.empty_cache()


class WallTimer:
    """The same on the CPU, only to prove that a benchmark runs: its numbers mean nothing."""

    device = "cpu"
    cache_bytes = 0

    def prepare(self, makers: Sequence[Callable[[], Callable]]) -> Prepared:
        calls = [make() for make in makers]

        def work() -> None:
            for call in calls:
                call()

        return Prepared(work, len(calls))

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, float]:
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        for _ in range(2):
            for name, item in prepared.items():
                start = time.perf_counter()
                item.work()
                samples[name].append(1e3 * (time.perf_counter() - start) / item.count)
        return {name: statistics.median(values) for name, values in samples.items()}

    def extra_bytes(self, call: Callable) -> tuple[int, Any]:
        return 0, call()

    def host_us(self, call: Callable) -> float:
        return _host_us(call, lambda: None, calls=2, repeats=2)

    def clear(self) -> None:
        gc.collect()


def _host_us(call: Callable, wait: Callable, calls: int = 100, repeats: int = 15) -> float:
    samples = []
    call()
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append(1e6 * (time.perf_counter() - start) / calls)
    wait()
    return statistics.median(samples)


def size_of(result: Any) -> int:
    """Bytes of all tensors of a result."""
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    return sum(map(size_of, result)) if isinstance(result, (tuple, list)) else 0
