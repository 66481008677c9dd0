"""`pytest bench/`: every case by fastmix, eager PyTorch and `torch.compile`, through pytest-benchmark.

A provider is timed only after its result agreed with the eager one in the same run.
"""

from __future__ import annotations

import os

import pytest
import torch
from cases import cases, first

CASES = {case.name: case for case in cases(quick=os.environ.get("FASTMIX_BENCH_FULL") != "1")}


@pytest.mark.parametrize("provider", ["fastmix", "eager", "compile"])
@pytest.mark.parametrize("name", CASES)
def test_op(benchmark, name, provider):
    case = CASES[name]
    benchmark.group = name
    fast, eager = case.whole(case.fast), case.whole(case.eager)
    call = {"fastmix": fast, "eager": eager}.get(provider) or torch.compile(eager)
    found, expected = call(*case.inputs), eager(*case.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * max(1, first(expected).abs().max().item()))
    benchmark(call, *case.inputs)
    if case.wanted:  # forward and backward, of which the case counts the latter
        return
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(case.moved / seconds / 1e9, 2)
    if case.flops:
        benchmark.extra_info["GFLOP/s"] = round(case.flops / seconds / 1e9, 1)
