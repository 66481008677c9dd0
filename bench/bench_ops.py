"""`pytest bench/`: the registry of `fastmix bench` through pytest-benchmark, by fastmix, eager PyTorch and peers.

A provider is timed only after its result was found to be right in the same run. FASTMIX_BENCH_FULL=1 takes all shapes
and `torch.compile`; by default it is one small shape an op.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch

from fastmix.bench.cases import Case
from fastmix.bench.provider import check
from fastmix.bench.run import providers, registry

FULL = os.environ.get("FASTMIX_BENCH_FULL") == "1"
COMPILER = "inductor" if FULL else ""
ENTRIES = {entry.name: entry for entry in registry() if FULL or entry.quick}


@cache
def made(name: str) -> Case:
    return ENTRIES[name].make(torch.Generator().manual_seed(0))


def contests() -> list[tuple[str, str]]:
    return [(name, provider.name) for name in ENTRIES for provider in providers(made(name), "cpu", COMPILER)]


@pytest.mark.parametrize(("name", "provider"), contests())
def test_provider(benchmark, name, provider):
    case = made(name)
    (found,) = (p for p in providers(case, "cpu", COMPILER) if p.name == provider)
    if not found.version:
        pytest.skip(f"{found.package} is not installed")
    wrong = check(case, found)
    assert not wrong, wrong
    benchmark.group = name
    benchmark(found.timed(case))
    if case.moved and not case.wanted:  # of gradients the case counts the backward pass alone
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(case.moved / seconds / 1e9, 2)
        if case.flops:
            benchmark.extra_info["GFLOP/s"] = round(case.flops / seconds / 1e9, 1)
