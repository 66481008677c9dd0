"""Compiles every CUDA kernel for the architectures that matter, without a GPU, and looks at the machine code."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton brings the disassembler")

import static_report
from aot import CAPABILITIES, CUDA_SOURCES, NVCC, ROOT, compile_source

BLENDS = [source for source in CUDA_SOURCES if source.stem.endswith("blend")]
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc not found")


def on_each_gpu(sources: list[Path]) -> pytest.MarkDecorator:
    """(source, compute capability); the quick tests compile one source for one architecture."""
    return pytest.mark.parametrize(
        ("source", "capability"),
        [
            pytest.param(source, c, id=f"{source.stem}-{c}", marks=[] if quick else pytest.mark.slow)
            for source in sources
            for c in CAPABILITIES
            for quick in [source.stem == "blend" and c == 90]
        ],
    )


@functools.cache
def known() -> list[str]:
    return subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()


def compiled(source: Path, capability: int):
    if f"sm_{capability}" not in known():
        pytest.skip(f"this nvcc does not know sm_{capability}")
    return compile_source(source, capability)


@needs_nvcc
@on_each_gpu(CUDA_SOURCES)
def test_nothing_spills_and_shared_memory_is_what_the_launch_asks_for(source: Path, capability: int) -> None:
    for name, kernel in compiled(source, capability).items():
        assert kernel.spills == 0, name
        assert kernel.binary.stack == 0, name
        assert kernel.binary.local_accesses == 0, name
        assert kernel.binary.shared == 0, name


@needs_nvcc
@on_each_gpu(BLENDS)
def test_images_are_accessed_in_128_bits(source: Path, capability: int) -> None:
    seen = set()
    for name, kernel in compiled(source, capability).items():
        same = re.search(r"(mix|grad_x)_kernel<.*?Pair<([\w: ]+), \2>", name)
        if same:
            seen.add(same[2].removeprefix("fastmix::"))
            assert kernel.binary.wide_loads > 0 and kernel.binary.wide_stores > 0, name
    assert seen == {"float", "Half", "BFloat16", "unsigned char"}


@needs_nvcc
@on_each_gpu(CUDA_SOURCES)
def test_the_static_report_is_current(source: Path, capability: int) -> None:
    if reason := static_report.stale():
        pytest.skip(reason)
    compiled(source, capability)
    rows = static_report.committed_rows().get((str(source.relative_to(ROOT)), f"sm_{capability}"), [])
    assert static_report.cuda_rows(source, capability) == rows, "run `python bench/static_report.py`"


@pytest.mark.slow
@needs_nvcc
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
