"""Runs the CUDA kernels on the CPU, emulated: cuda_cases.py and what the ops promise on every backend."""

from __future__ import annotations

from cuda_emulator.harness import run_tests


def test_emulated_kernels(pytestconfig):
    files = ["cuda_cases.py", "test_blend.py", "test_box_blend.py", "test_draws.py", "test_gpu_ops.py"]
    run_tests(pytestconfig, *files, "-k", "not thousand_runs")  # each call is repeated anyway
