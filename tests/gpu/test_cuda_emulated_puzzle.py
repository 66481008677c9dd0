"""The CUDA kernels of PuzzleMix's ops, emulated: what their tests promise on every backend."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from cuda_emulator.harness import run_tests
from puzzle_support import FOLDER

OPS = ("saliency_pool", "puzzle_energy", "grid_cut", "transport", "plans")
SLOWEST = (  # of kinds that remain
    "ops/test_grid_cut.py::test_large_grids[shape3-4-cuda0]",
    "ops/test_grid_cut.py::test_large_grids[shape4-3-cuda0]",
    "ops/test_grid_cut.py::test_large_grids[shape4-4-cuda0]",
    "ops/test_transport.py::test_exact_costs_what_scipy_finds[shape5-0.0-cuda0]",
    "ops/test_transport.py::test_exact_costs_what_scipy_finds[shape5-0.1-cuda0]",
)


@pytest.mark.slow
def test_emulated_kernels(pytestconfig):
    there = {"stored": FOLDER.is_dir(), "scipy": find_spec("scipy") is not None}
    left_out = " and ".join(f"not {needed}" for needed, found in there.items() if not found)
    options = [f"--deselect={test}" for test in SLOWEST] + (["-k", left_out] if left_out else [])
    run_tests(pytestconfig, *(f"ops/test_{op}.py" for op in OPS), *options)
