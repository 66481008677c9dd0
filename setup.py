"""Build script: drives CMake for the one native module; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PURE_PYTHON = "installing fastmix without its native module (the reference and Triton backends remain)"


def native_blocker() -> str | None:
    """The reason why the native module cannot be built here, or None."""
    if os.environ.get("FASTMIX_NO_EXT", "0") not in ("", "0"):
        return "FASTMIX_NO_EXT is set"
    if os.name == "nt":
        return "the native module is for Linux and macOS"
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compiler)):
        return f"no C++ compiler found ({', '.join(compiler)}); apt install build-essential, or set CXX"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h not found; apt install python3-dev"
    return None


def parallel_jobs() -> str:
    """MAX_JOBS if set, else one job a core but at most one per 2 GB of memory."""
    jobs = os.environ.get("MAX_JOBS") or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL")
    if jobs:
        return jobs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = 2**40
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return str(max(1, min(cores, memory // 2**31)))


def cuda_architectures() -> str:
    """FASTMIX_CUDA_ARCHS, else TORCH_CUDA_ARCH_LIST, in CMake's spelling; empty for the default."""
    if archs := os.environ.get("FASTMIX_CUDA_ARCHS"):
        return ";".join(re.split(r"[;, ]+", archs.strip()))
    archs = []
    for arch in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if match:
            archs.append(match[1] + match[2] + ("" if match[3] else "-real"))
        elif arch:
            print(f"fastmix: WARNING: TORCH_CUDA_ARCH_LIST: {arch!r} is not like 9.0+PTX", file=sys.stderr)
    return ";".join(archs)


def find_tool(name: str) -> str:
    """The path of a build tool, looked for on PATH and beside the interpreter."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(f"fastmix: {name} not found; pip install {name}, or set FASTMIX_NO_EXT=1")
    return path


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt in build/, which is kept so that a rebuild is incremental."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        work = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cache = work / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(work)  # the checkout was moved or copied
        work.mkdir(parents=True, exist_ok=True)
        cmake, environment = find_tool("cmake"), dict(os.environ)
        cuda_home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
        if cuda_home and (Path(cuda_home) / "bin" / "nvcc").exists():
            environment.setdefault("CUDACXX", str(Path(cuda_home) / "bin" / "nvcc"))
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(work), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if os.environ.get('DEBUG', '0') not in ('', '0') else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTMIX_CUDA={os.environ.get('FASTMIX_CUDA') or 'auto'}",
            f"-DFASTMIX_CUDA_ARCHS={cuda_architectures()}",
            f"-DFASTMIX_NVCC_FLAGS={os.environ.get('NVCC_FLAGS', '')}",
        ]
        try:
            subprocess.run(configure, check=True, env=environment)
            subprocess.run([cmake, "--build", str(work), "-j", parallel_jobs()], check=True, env=environment)
        except subprocess.CalledProcessError as error:
            hint = "FASTMIX_CUDA=0 builds without CUDA, FASTMIX_NO_EXT=1 installs without the native module"
            raise SystemExit(f"fastmix: building failed ({error.returncode}), see above; {hint}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(work / "_C.so", target)


blocker = native_blocker()
if blocker and os.environ.get("FASTMIX_CUDA") == "1":
    raise SystemExit(f"fastmix: FASTMIX_CUDA=1 asks for a native build, but {blocker}")
if blocker:
    print(f"fastmix: WARNING: {blocker}: {PURE_PYTHON}", file=sys.stderr)

setup(
    packages=[
        *find_packages(include=["fastmix", "fastmix.*"]),
        "fastmix.kernels",
        *(f"fastmix.kernels.{package}" for package in find_packages("kernels")),
    ],
    package_dir={"fastmix.kernels": "kernels"},
    ext_modules=[] if blocker else [Extension("fastmix._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
