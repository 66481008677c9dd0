"""Clocks: wall time on a CPU, CUDA events over graph replays, and one without meaning for dry runs on a CPU."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

# Keeps the GPU busy while the host queues the work to be timed, so that no launch is waited for between two events.
_HEAD_START = 2_000_000  # cycles, about a millisecond
_LEAST_MS = 3.0  # of one timed stretch of calls
_MOST_CALLS = 256
_LEAST_ROUNDS = 7
_JUDGED_SECONDS = 0.1  # the system counts CPU time in ticks of 10 ms: shorter stretches cannot be judged
_DISTURBED = 0.1  # CPU time of other processes, in cores, from which on a stretch counts as disturbed


@dataclass
class Samples:
    """Milliseconds of one call, a value a round. `disturbed` counts those left out since others held the cores;
    `flagged` says that they had to be kept, for want of others."""

    values: list[float]
    disturbed: int = 0
    flagged: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.values)
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


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

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, Samples]: ...

    def extra_bytes(self, call: Callable) -> tuple[int | None, Any]: ...

    def host_us(self, call: Callable) -> float: ...

    def clear(self) -> None: ...

    def sync(self) -> None: ...

    def free_bytes(self) -> int: ...


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

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, Samples]:
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        torch.cuda.synchronize()
        end = time.perf_counter() + seconds
        with torch.cuda.stream(self._stream):
            for item in prepared.values():
                item.work()
            while time.perf_counter() < end or len(next(iter(samples.values()))) < _LEAST_ROUNDS:
                for name, item in prepared.items():
                    samples[name].append(self._milliseconds(item.work) / item.count)
        return {name: Samples(values) for name, values in samples.items()}

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

    def sync(self) -> None:
        torch.cuda.synchronize()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]


class CpuTimer:
    """Wall time. All take turns, in an order that shifts from round to round, so that a slow moment of the machine
    hits all; rounds in which other processes held the cores do not count, if enough are left."""

    device = "cpu"

    def __init__(self) -> None:
        self.cache_bytes = _last_level_cache()

    def prepare(self, makers: Sequence[Callable[[], Callable]]) -> Prepared:
        calls = [make() for make in makers]
        for call in calls:
            call()
        start = time.perf_counter()
        calls[0]()
        once = max(1e3 * (time.perf_counter() - start), 1e-3)
        stretches = max(1, min(round(_LEAST_MS / (once * len(calls))), _MOST_CALLS // len(calls)))

        def work() -> None:
            for _ in range(stretches):
                for call in calls:
                    call()

        return Prepared(work, stretches * len(calls))

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, Samples]:
        watch = _Watch()
        names = list(prepared)
        for item in prepared.values():
            item.work()
        start, number = time.perf_counter(), 0
        while not watch.enough(start, seconds):
            shift = number % len(names)
            row = {}
            for name in names[shift:] + names[:shift]:
                before = time.perf_counter()
                prepared[name].work()
                row[name] = 1e3 * (time.perf_counter() - before) / prepared[name].count
            watch.add(row)
            number += 1
        return watch.samples(names)

    def extra_bytes(self, call: Callable) -> tuple[int | None, Any]:
        """By how much resident memory grew during a call beyond what it returns; None where the system does not say.
        What earlier calls left in the allocator is used again and not seen."""
        call()
        self.clear()
        before = _resident("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        except OSError:
            return None, call()
        result = call()
        peak = _resident("VmHWM")
        return None if peak is None or before is None else max(0, peak - before - size_of(result)), result

    def host_us(self, call: Callable) -> float:
        """Wall time of one of many calls in a row."""
        return _host_us(call, lambda: None)

    def clear(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        with suppress(AttributeError, OSError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)

    def sync(self) -> None:
        """Calls have done their work when they return."""

    def free_bytes(self) -> int:
        return 10 * 2**30


class DryTimer:
    """A clock for dry runs, only to prove that a benchmark runs: its numbers mean nothing."""

    device = "cpu"
    cache_bytes = 0

    def prepare(self, makers: Sequence[Callable[[], Callable]]) -> Prepared:
        calls = [make() for make in makers]

        def work() -> None:
            for call in calls:
                call()

        return Prepared(work, len(calls))

    def rounds(self, prepared: dict[str, Prepared], seconds: float) -> dict[str, Samples]:
        samples: dict[str, list[float]] = {name: [] for name in prepared}
        for _ in range(2):
            for name, item in prepared.items():
                start = time.perf_counter()
                item.work()
                samples[name].append(1e3 * (time.perf_counter() - start) / item.count)
        return {name: Samples(values) for name, values in samples.items()}

    def extra_bytes(self, call: Callable) -> tuple[int, Any]:
        return 0, call()

    def host_us(self, call: Callable) -> float:
        return _host_us(call, lambda: None, calls=2, repeats=2)

    def clear(self) -> None:
        gc.collect()

    def sync(self) -> None:
        """Calls have done their work when they return."""

    def free_bytes(self) -> int:
        return 10 * 2**20


@dataclass
class _Watch:
    """Rounds, and whether other processes worked meanwhile."""

    good: list[dict[str, float]] = field(default_factory=list)
    bad: list[dict[str, float]] = field(default_factory=list)
    open: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start, self._others = time.perf_counter(), _others_seconds()

    def add(self, row: dict[str, float]) -> None:
        self.open.append(row)
        if time.perf_counter() - self._start >= _JUDGED_SECONDS:
            self._judge()

    def _judge(self) -> None:
        now, others = time.perf_counter(), _others_seconds()
        known = others is not None and self._others is not None
        disturbed = known and others - self._others > _DISTURBED * (now - self._start) + 0.01
        (self.bad if disturbed else self.good).extend(self.open)
        self.open, self._start, self._others = [], now, others

    def enough(self, start: float, seconds: float) -> bool:
        """Whether the time is up; while undisturbed rounds are missing it is doubled."""
        spent = time.perf_counter() - start
        if len(self.good) + len(self.open) >= _LEAST_ROUNDS:
            return spent >= seconds
        return len(self.good) + len(self.open) + len(self.bad) >= _LEAST_ROUNDS and spent >= 2 * seconds

    def samples(self, names: list[str]) -> dict[str, Samples]:
        self._judge()
        flagged = len(self.good) < _LEAST_ROUNDS and bool(self.bad)
        rows = self.good + self.bad if flagged else self.good
        return {name: Samples([row[name] for row in rows], len(self.bad), flagged) for name in names}


def _others_seconds() -> float | None:
    """CPU time that other processes have had so far; None where the system does not say."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _resident(field_name: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split(f"{field_name}:")[1].split()[0]) * 1024


def _last_level_cache() -> int:
    for level in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        if level in os.sysconf_names and os.sysconf(level) > 0:
            return os.sysconf(level)
    return 32 * 2**20


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
