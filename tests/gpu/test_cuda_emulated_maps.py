"""The CUDA kernels of boxes and masks from maps, emulated: what their tests promise on every backend."""

from __future__ import annotations

import pytest
from cuda_emulator.harness import run_tests


@pytest.mark.slow
def test_emulated_kernels(pytestconfig):
    run_tests(
        pytestconfig, "ops/test_fine_grained_saliency.py", "ops/test_saliency_box.py", "ops/test_spectral_mask.py"
    )
