"""The CUDA kernels of PuzzleMix's ops, emulated: what their tests promise on every backend."""

from __future__ import annotations

from cuda_emulator.harness import run_tests


def test_emulated_kernels(pytestconfig):
    run_tests(pytestconfig, "test_saliency_pool.py", "test_puzzle_energy.py", "test_grid_cut.py", "test_transport.py")
