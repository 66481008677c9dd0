"""Measures tiles for pair_attention's Triton kernels and prints the rows for kernels/pair_attention/tiles.py.

    python bench/tune_attention.py [--only PRODUCTS] [--csv FILE] [--dry-run [--capability N]]

Every problem stands for one row of the table; its candidates are a fixed list, the row in force first. A candidate is
timed (CUDA events over replays of a graph) only after it agreed with the float64 reference in the same run; one that
does not compile, does not fit or is wrong is reported and passed over. `--dry-run` needs no GPU: it prints the
candidates and, taking the rows in force for the fastest, the same table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastmix import reference
from fastmix.kernels import triton_common
from fastmix.kernels.pair_attention import tiles as table
from fastmix.kernels.pair_attention import triton_kernel
from fastmix.kernels.pair_attention.tiles import ANY, Tiles, fit, tiles_for
from fastmix.ops.common import inverse_index

KERNELS = ("forward", "grad_rows", "grad_cols")


class Problem(NamedTuple):
    """A shape, and the bounds of the row that it decides."""

    max_depth: int
    max_r: int
    depth: int
    r: int


PROBLEMS = {
    "half": [
        Problem(32, 256, 32, 196),
        Problem(32, ANY, 32, 4096),
        Problem(64, 256, 64, 256),
        Problem(64, ANY, 64, 1024),
        Problem(128, 64, 128, 64),
        Problem(128, 256, 128, 196),
        Problem(128, ANY, 128, 3136),
        Problem(256, ANY, 256, 784),
        Problem(512, ANY, 512, 196),
        Problem(ANY, 64, 1024, 49),
        Problem(ANY, ANY, 1024, 196),
    ],
    "narrow": [Problem(ANY, ANY, 75, 196)],
    "tf32": [Problem(32, ANY, 32, 1024), Problem(ANY, ANY, 512, 196)],
    "ieee": [Problem(16, ANY, 16, 196), Problem(ANY, ANY, 128, 196)],
}
DTYPES = {"half": torch.bfloat16, "narrow": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
ALLOWED = {"half": 3e-2, "narrow": 3e-2, "tf32": 5e-3, "ieee": 1e-5}  # of the largest value


def candidates(capability: int, kernel: str, products: str, problem: Problem) -> list[Tiles]:
    """Tiles to try: the row in force first, those of other GPUs, a grid of sizes, and single changes of the rest."""
    depth, r = problem.depth, problem.r
    current = tiles_for(capability, kernel, products, depth, r)
    tried = [current, *(tiles_for(c, kernel, products, depth, r) for c in table.GPUS)]
    sides = [(64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128)]
    for (m, n), warps, stages in itertools.product(sides, (4, 8), (2, 3)):
        tried.append(current._replace(m=m, n=n, num_warps=warps, num_stages=stages))
    tried += [current._replace(groups=groups) for groups in (1, 4, 8, 16) if current.n >= 2 * groups]
    if products == "half":
        tried += [current._replace(d=d) for d in (32, 64, 128)]
        tried += [current._replace(out=out) for out in (128, 256) if kernel != "forward"]
    return list(dict.fromkeys(fit(tiles, depth, r) for tiles in tried))


@contextmanager
def forced(tiles: Tiles | None) -> Iterator[None]:
    """Run the kernels on these tiles instead of the table's."""
    before = triton_kernel.tiles_for
    if tiles is not None:
        triton_kernel.tiles_for = lambda *problem: tiles
    triton_kernel._plan.cache_clear()
    try:
        yield
    finally:
        triton_kernel.tiles_for = before
        triton_kernel._plan.cache_clear()


class Case:
    """Inputs of `samples` random samples on the GPU, and the calls on them."""

    def __init__(self, products: str, problem: Problem, samples: int) -> None:
        generator = torch.Generator("cuda").manual_seed(0)

        def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda").to(dtype)

        r, depth = problem.r, problem.depth
        self.scale = depth**-0.5
        self.q, self.k = (randn(samples, r, depth, dtype=DTYPES[products]) for _ in range(2))
        self.v, self.bias, self.grad = (randn(samples, r) for _ in range(3))
        self.index = torch.randperm(samples, generator=generator, device="cuda")
        self.inverse = inverse_index(self.index)
        self.out, self.lse, self.dbias, self.cols = (torch.empty_like(self.v) for _ in range(4))
        self.dq, self.dk = torch.empty_like(self.q), torch.empty_like(self.k)
        with forced(None):
            self.forward()

    def forward(self) -> None:
        inputs = self.q, self.k, self.v, self.index, self.bias, self.scale
        triton_kernel.pair_attention(*inputs, self.out, self.lse)

    def grad_rows(self) -> None:
        self._grad(self.dq, None, None, None)

    def grad_cols(self) -> None:
        self._grad(None, self.dk, self.dbias, self.cols)

    def _grad(self, *wanted: Tensor | None) -> None:
        inputs = self.q, self.k, self.inverse, self.bias, self.scale, self.lse, self.grad, self.v, self.out
        triton_kernel.pair_attention_grad(*inputs, *wanted)

    def expected(self) -> dict[str, list[Tensor]]:
        """Float64 results by kernel."""
        leaves = [t.double().requires_grad_() for t in (self.q, self.k, self.v, self.bias)]
        q, k, v, bias = leaves
        out = reference.pair_attention(q, k, v, self.index, bias, self.scale)
        dq, dk, dv, dbias = torch.autograd.grad(out, leaves, self.grad.double())
        return {"forward": [out.detach()], "grad_rows": [dq], "grad_cols": [dk, dbias, dv]}

    def results(self, kernel: str) -> list[Tensor]:
        return {"forward": [self.out], "grad_rows": [self.dq], "grad_cols": [self.dk, self.dbias, self.cols]}[kernel]


def wrong(case: Case, kernel: str, expected: list[Tensor], allowed: float) -> str | None:
    """Run a kernel over poisoned results; what is wrong with them, or None."""
    for result in case.results(kernel):
        result.fill_(float("nan"))
    getattr(case, kernel)()
    for result, exact in zip(case.results(kernel), expected, strict=True):
        error, largest = (result.double() - exact).abs().max().item(), exact.abs().max().item()
        if not error <= allowed * largest:
            return f"wrong: {error:.3g} of {largest:.3g}"
    return None


def measured(capability: int, products: str, problem: Problem) -> Iterator[tuple[str, Tiles, float | None, str]]:
    """(kernel, tiles, milliseconds or None, remark) of every candidate."""
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    small = Case(products, problem, 2)
    expected = small.expected()
    large = Case(products, problem, max(2, min(256, 2**29 // (problem.r * max(problem.r, problem.depth)))))
    for kernel in KERNELS:
        call: Callable[[], None] = getattr(large, kernel)
        small.forward()  # the gradients need its results, which a bad candidate may have left wrong
        for tiles in candidates(capability, kernel, products, problem):
            with forced(tiles):
                try:
                    remark = wrong(small, kernel, expected[kernel], ALLOWED[products])
                    time = None if remark else triton.testing.do_bench_cudagraph(call, rep=50, return_mode="median")
                except Exception as error:  # a candidate may ask for more than the GPU has, in many ways
                    remark, time = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}", None
            yield kernel, tiles, time, remark or ""


def rows_text(gpu: str, kernel: str, products: str, rows: list[tuple[Problem, Tiles]]) -> str:
    """Rows as the table writes them; a row is left out where the next one says the same."""
    lines = []
    for (problem, tiles), following in itertools.zip_longest(rows, rows[1:]):
        covered = following and following[0].max_depth >= problem.max_depth and following[0].max_r >= problem.max_r
        if not (covered and fit(following[1], problem.depth, problem.r) == tiles):
            bounds = ", ".join("ANY" if bound == ANY else str(bound) for bound in problem[:2])
            lines.append(f"        ({bounds}, Tiles({', '.join(str(size) for size in tiles)})),")
    return "\n".join([f'    ("{gpu}", "{kernel}", "{products}"): (', *lines, "    ),"])


def listed(capability: int, products: str, problem: Problem) -> Iterator[tuple[str, Tiles, float | None, str]]:
    """What `measured` would try, without times."""
    for kernel in KERNELS:
        for tiles in candidates(capability, kernel, products, problem):
            yield kernel, tiles, None, "not measured"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PROBLEMS, help="problems of one kind of products")
    parser.add_argument("--csv", type=Path, help="file for every candidate's time and remark")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: list the candidates, measure nothing")
    parser.add_argument("--capability", type=int, default=90, help="compute capability of a dry run, such as 90")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("needs a CUDA device; --dry-run does not")
    capability = options.capability if options.dry_run else triton_common.capability(torch.cuda.current_device())
    gpu = table.GPUS.get(capability, f"sm_{capability}")
    rows: dict[tuple[str, str], list[tuple[Problem, Tiles]]] = {}
    lines = [("gpu", "kernel", "products", "depth", "r", *Tiles._fields, "ms", "remark")]
    for products, problem in ((p, problem) for p in PROBLEMS for problem in PROBLEMS[p] if options.only in (None, p)):
        found = list((listed if options.dry_run else measured)(capability, products, problem))
        lines += [(gpu, k, products, problem.depth, problem.r, *t, ms, remark) for k, t, ms, remark in found]
        for kernel in KERNELS:
            tried = [(ms, tiles) for k, tiles, ms, _ in found if k == kernel]
            # Without a time the row in force, which is the first candidate, stays.
            time, best = min((pair for pair in tried if pair[0] is not None), default=tried[0])
            rows.setdefault((kernel, products), []).append((problem, best))
            shape = f"{kernel} {products} d={problem.depth} r={problem.r}"
            result = "not measured" if time is None else f"{time:.4f} ms"
            print(f"# {shape}: {len(tried)} candidates, best {tuple(best)} {result}")
    for (kernel, products), best in rows.items():
        print(rows_text(gpu, kernel, products, best))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
