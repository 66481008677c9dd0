"""Runs triton_cases.py in Triton's interpreter, in processes of their own, one an op."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_cases.py")


SLOW = ["TestBoxBlend", "TestFlipBlend", "TestMaskBlend", "TestPairAttention"]


@pytest.mark.parametrize("group", ["TestBlend", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_in_interpreter(group):
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"{CASES}::{group}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=CASES.parent.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout, run.stdout[-2000:]
