"""Runs the CUDA kernels on the CPU, emulated: cuda_cases.py and what the ops promise on every backend."""

from __future__ import annotations

import pytest
from cuda_emulator.harness import run_tests


@pytest.mark.slow
def test_emulated_kernels(pytestconfig):
    files = [
        "gpu/cuda_cases.py",
        "ops/test_blend.py",
        "ops/test_box_blend.py",
        "ops/test_draws.py",
        "gpu/test_gpu_ops.py",
    ]
    run_tests(pytestconfig, *files, "-k", "not thousand_runs")  # each call is repeated anyway
