"""Builds the emulator and the native module on top of it, and runs tests with that in a process of their own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.resolve()


def built(config: pytest.Config, target: str) -> Path:
    """Path of `target`, "_C.so" or "selftest.so", up to date; skips where the tools to build it are missing.

    The folder with the build is kept in pytest's cache. Workers of pytest-xdist take turns.
    """
    cmake, ninja = (_tool(name) for name in ("cmake", "ninja"))
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if sys.platform != "linux" or not any(map(shutil.which, compiler)):
        pytest.skip("needs Linux and a C++ compiler")
    if find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    import pybind11

    work = config.cache.mkdir("cuda_emulator") if hasattr(config, "cache") else _without_cache()
    configure = [
        *(cmake, "-S", str(SOURCE), "-B", str(work), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache = work / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCE}\n" not in cache.read_text():
            cache.unlink()  # the checkout was moved or copied
        for command in (configure, [cmake, "--build", str(work), "--target", target]):
            run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert run.returncode == 0, run.stdout[-8000:]
    return work / target


def _without_cache() -> Path:
    key = hashlib.sha256(str(SOURCE).encode()).hexdigest()[:12]
    work = Path(tempfile.gettempdir()) / f"fastmix-cuda-emulator-{os.getuid()}-{key}"
    work.mkdir(mode=0o700, exist_ok=True)
    return work


def _tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run_tests(config: pytest.Config, *arguments: str) -> None:
    """Runs pytest in tests/ with these arguments and emulated kernels."""
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    # Only Python's output is captured: what the emulator says before it stops the process goes through.
    options += ["--capture=sys", "-p", "cuda_emulator.plugin"]
    tests = SOURCE.parents[1]
    environment = {
        **os.environ,
        "FASTMIX_CUDA_EMULATOR": str(built(config, "_C.so")),
        "PYTHONPATH": os.pathsep.join((str(tests), str(SOURCE.parent))),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    run = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]
    assert " passed" in run.stdout and " skipped" not in run.stdout, run.stdout[-2000:]
