"""Calls the kernels of selftest.cu. `python -m cuda_emulator.selftest selftest.so <kernel> <threads> <n>` runs one."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from cuda_emulator.guarded import guarded


class SelfTest:
    """Kernels take `in`, `out` and a number; `launch` returns the cudaError_t."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def seed(self, seed: int) -> None:
        self.library.cuda_emulator_seed(ctypes.c_uint64(seed))

    def launch(self, kernel, given, out, n=0, grid=(1, 1, 1), block=(64, 1, 1), shared=0, shared_limit=0) -> int:
        extents = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
        sizes = ctypes.c_size_t(shared), ctypes.c_size_t(shared_limit)
        return self.library.selftest(kernel.encode(), *extents, *sizes, given, out, ctypes.c_int(n))


def floats(count: int, at_end: bool = True) -> ctypes.Array:
    """Zeros in guarded memory."""
    return (ctypes.c_float * count).from_buffer(guarded(4 * count, at_end))


if __name__ == "__main__":
    path, kernel, threads, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    given, out = floats(max(n, threads), at_end=kernel != "read_one_before"), floats(max(n, threads))
    SelfTest(Path(path)).launch(kernel, given, out, n, (2, 1, 1), (threads, 1, 1), shared=4 * threads)
