"""The part of test_cuda_emulated.py that takes longest, as a file of its own: pytest-xdist hands out whole files."""

from __future__ import annotations

import pytest
from cuda_emulator.harness import run_tests


@pytest.mark.slow
def test_emulated_kernels(pytestconfig):
    run_tests(pytestconfig, "ops/test_mask_blend.py")
