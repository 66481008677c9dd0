"""Runs the parallel schedule of an op on threads of the CPU, under ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_on_threads(source: Path, folder: Path, *flags: str) -> str:
    """What the program printed; skips where there is no compiler or ThreadSanitizer does not run."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "threads"
    command = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", *flags]
    probe = [*command, "-x", "c++", "-", "-o", str(program)]
    tried = subprocess.run(probe, input="int main() {}", capture_output=True, text=True)
    if tried.returncode or subprocess.run([program], capture_output=True).returncode:
        pytest.skip("ThreadSanitizer does not run here")
    includes = [f"-I{place}" for place in (ROOT, ROOT / "csrc", source.parent)]
    built = subprocess.run([*command, *includes, str(source), "-o", str(program)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr[:4000]
    return ran.stdout
