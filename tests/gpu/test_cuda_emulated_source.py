"""The CUDA kernels of `box_blend` with a source, emulated: what its tests promise on every backend."""

from __future__ import annotations

import pytest
from cuda_emulator.harness import run_tests


@pytest.mark.slow
def test_emulated_kernels(pytestconfig):
    # Unaligned images also occur among those that are compared with F.interpolate.
    run_tests(pytestconfig, "ops/test_box_source.py", "-k", "not offset and not compiles")
