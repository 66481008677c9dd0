"""Loads the compiled module once. A failed load is kept and raised, with the way out, when a kernel is asked for."""

from __future__ import annotations

import ctypes
import functools
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

DTYPES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
"""Tags of `enum class DType` in csrc/fastmix.h."""


@functools.cache
def load() -> ModuleType | ImportError:
    """The compiled module, or the ImportError that stopped it. It joins the OpenMP runtime that torch brought along."""
    try:
        from . import _C
    except ImportError as error:
        return error
    runtime = _openmp_runtime()
    if runtime is not None:
        _C.use_openmp(ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value)
    return _C


@functools.cache
def why_not_installed() -> str | None:
    """None when `fastmix.kernels` can be imported, else one line that says what to do.

    In a checkout the kernels lie beside the package, and only an installation joins them.
    """
    if find_spec("fastmix.kernels"):
        return None
    root = Path(__file__).resolve().parents[1]
    return f"this is a checkout that is not installed: run `pip install --editable {root}`"


def why_unavailable() -> str | None:
    """None when the compiled module is loaded, else one line that says why not."""
    module = load()
    return f"the compiled module is not available ({module})" if isinstance(module, ImportError) else None


def why_no_cuda() -> str | None:
    """None when the loaded module has CUDA kernels for the current device, else one line that says why not."""
    archs = module().build_info()["cuda_archs"].split()
    if not archs:
        return "the compiled module was built without CUDA (no GPU or no nvcc then; FASTMIX_CUDA=1 asks for it)"
    problem = module().cuda_problem()
    if problem:
        return f"the CUDA runtime of the compiled module does not work here ({problem})"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    if not any(_runs_on(arch, major, minor) for arch in archs):
        return f"the compiled module has kernels for {', '.join(archs)}, not for compute capability {major}.{minor}"
    return None


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Whether code for `arch`, such as "90-real" or "90-virtual", runs on a GPU of that compute capability.

    Machine code runs on its own generation, from its own revision on; PTX on everything newer.
    """
    number = int(re.match(r"\d+", arch)[0])
    same_generation = number // 10 == major and number % 10 <= minor
    return same_generation or ("real" not in arch and number <= 10 * major + minor)


def module() -> ModuleType:
    """The compiled module; raises RuntimeError with the original reason and the fix."""
    found = load()
    if isinstance(found, ImportError):
        raise RuntimeError(
            f"fastmix: the compiled module is not available ({found}); reinstall with a C++17 compiler present, "
            "see `python -m fastmix info`"
        ) from found
    return found


def _openmp_runtime() -> ctypes.CDLL | None:
    """The OpenMP runtime torch runs on, so that our loops share its threads instead of starting a second pool.

    Two pools on one machine fight: after each parallel region the idle threads of one spin on the cores of the other.
    GNU, LLVM and Intel runtimes all export `GOMP_parallel`.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = set(re.findall(r"/.*/lib(?:gomp|iomp5|omp)[-.].*", maps))
    home = str(Path(torch.__file__).parent)  # other packages bring runtimes of their own
    for path in sorted(found, key=lambda path: (not path.startswith(home), path)):
        try:
            runtime = ctypes.CDLL(path)
            runtime.GOMP_parallel  # noqa: B018  raises AttributeError where it is missing
        except (OSError, AttributeError):
            continue
        return runtime
    return None
