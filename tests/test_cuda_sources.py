"""Compiles every CUDA kernel for the architectures that matter, without a GPU, and looks for spills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("kernels/*/*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.mark.skipif(NVCC is None, reason="nvcc not found")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, arch: str, tmp_path: Path) -> None:
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if arch not in known:
        pytest.skip(f"this nvcc does not know {arch}")
    flags = ["-cubin", f"-arch={arch}", "-std=c++17", "-O3", "-Xptxas=-v", "-DFASTMIX_HAVE_CUDA=1"]
    includes = [f"-I{ROOT}", f"-I{ROOT / 'csrc'}"]
    command = [NVCC, *flags, *includes, "-o", str(tmp_path / "kernel.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spilled, "ptxas reported no kernel"
    assert set(spilled) == {"0"}, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc not found")
def test_a_cuda_source_joins_the_module_which_still_imports_without_a_gpu(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache")
    checkout = Path(shutil.copytree(ROOT, tmp_path / "fastmix", ignore=ignored))
    (checkout / "kernels" / "probe").mkdir()
    (checkout / "kernels" / "probe" / "probe.cu").write_text(
        "__global__ void probe_kernel(float* x) { *x = 1; }\n"
        "int probe(float* x, cudaStream_t s) { probe_kernel<<<1, 1, 0, s>>>(x); return cudaGetLastError(); }\n"
    )
    settings = {"FASTMIX_CUDA": "1", "FASTMIX_CUDA_ARCHS": "90", "CUDACXX": NVCC, "DEBUG": "1", "FASTMIX_NO_EXT": ""}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=checkout, env=os.environ | settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (module,) = (tmp_path / "lib" / "fastmix").glob("_C*.so")
    needed = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in needed, needed
    code = "import _C; info = _C.build_info(); print(info['cuda_archs'], bool(info['nvcc']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=module.parent, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["90", "True"], done.stderr
