"""What the compiled GPU code looks like, without a GPU: bench/results/static_report.md.

    python bench/static_report.py [--check]

Compiles every CUDA source and every Triton launch of aot_variants.py for compute capabilities 8.0, 9.0 and 10.0 and
writes registers, shared memory, spills, tensor-core instructions and 128-bit accesses. The file depends on the sources
and on the compilers alone. `--check` compares it with the committed one, prints the difference and exits with 1.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from aot import CAPABILITIES, CUDA_SOURCES, ROOT, Binary, Spilled, compile_launch, compile_source, versions
from aot_variants import VARIANTS, launches

REPORT = ROOT / "bench" / "results" / "static_report.md"

CUDA_HEADER = [
    "| source | kernel | GPU | instances | registers | shared | stack | spills | 128-bit loads | 128-bit stores |",
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
]
TRITON_HEADER = [
    "| variant | kernel | GPU | registers | shared | local accesses | tensor core | 128-bit loads | 128-bit stores "
    "| instructions a score |",
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
]


def cuda_rows(source: Path, capability: int) -> list[str]:
    """One row a kernel of a CUDA source: the range over its template instances."""
    groups: dict[str, list[Spilled]] = {}
    for name, kernel in compile_source(source, capability).items():
        groups.setdefault(short_name(name), []).append(kernel)
    return [_cuda_row(source, name, capability, groups[name]) for name in sorted(groups)]


def short_name(name: str) -> str:
    """A function's name in C++ without its result, namespaces, template arguments and parameters."""
    name = name.replace("(anonymous namespace)", "")
    while (bare := re.sub(r"<[^<>]*>", "", name)) != name:
        name = bare
    return name.split("(")[0].split()[-1].split("::")[-1]


def _cuda_row(source: Path, name: str, capability: int, kernels: list[Spilled]) -> str:
    binaries = [kernel.binary for kernel in kernels]
    numbers = [
        _range(binary.registers for binary in binaries),
        _range(binary.shared for binary in binaries),
        _range(binary.stack for binary in binaries),
        _range(kernel.spills for kernel in kernels),
        _range(binary.wide_loads for binary in binaries),
        _range(binary.wide_stores for binary in binaries),
    ]
    return _row(source.relative_to(ROOT), name, f"sm_{capability}", len(kernels), *numbers)


def triton_rows(variant: str, capability: int) -> list[str]:
    """One row a launch of a variant."""
    rows = []
    for launch in launches(variant, capability):
        binary = compile_launch(launch, capability)
        rows.append(
            _row(
                variant,
                launch.kernel.__name__,
                f"sm_{capability}",
                binary.registers,
                binary.shared,
                binary.local_accesses,
                binary.tensor_core or "-",
                binary.wide_loads,
                binary.wide_stores,
                _instructions_a_score(binary, launch.meta),
            )
        )
    return rows


def _instructions_a_score(binary: Binary, meta: dict) -> str:
    """Length of the loop over positions, each thread's share of a tile of scores; "-" if the depth is a loop in it."""
    if not meta.get("HELD"):
        return "-"
    scores = meta["BLOCK_M"] * meta["BLOCK_N"] // (32 * meta["num_warps"])
    loop = binary.shortest_loop(r"MUFU\.EX2", scores)
    return f"{len(loop) / scores:.2f}" if loop else "-"


def _range(values: Iterable[int]) -> str:
    values = list(values)
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def header() -> list[str]:
    """The compilers' versions, one a line."""
    return [f"* {tool} {version}" for tool, version in versions().items()]


def report(processes: int = 2) -> str:
    """The whole report, compiled by so many processes."""
    cuda = list(itertools.product(CUDA_SOURCES, CAPABILITIES))
    triton = list(itertools.product(VARIANTS, CAPABILITIES))
    with ProcessPoolExecutor(processes) as pool:
        cuda_parts = pool.map(cuda_rows, *zip(*cuda, strict=True)) if cuda else []
        triton_parts = pool.map(triton_rows, *zip(*triton, strict=True))
        cuda_lines = list(itertools.chain.from_iterable(cuda_parts))
        triton_lines = list(itertools.chain.from_iterable(triton_parts))
    lines = [
        "# Compiled GPU code",
        "",
        "Written by `python bench/static_report.py`; nothing in it was measured on a GPU. Bytes, and counts of",
        "instructions in the machine code. 128-bit loads include those that go straight to shared memory.",
        "",
        *header(),
        "",
        "## CUDA C++",
        "",
        "Ranges run over the template instances of a kernel. Shared memory is the static part.",
        "",
        *CUDA_HEADER,
        *cuda_lines,
        "",
        "## Triton",
        "",
        "Instructions a score: those of the loop over positions, for each score of a thread's tile, where that loop",
        "holds the whole depth.",
        "",
        *TRITON_HEADER,
        *triton_lines,
        "",
    ]
    return "\n".join(lines)


def committed_rows() -> dict[tuple[str, str], list[str]]:
    """Rows of the committed report by (source or variant, GPU)."""
    rows: dict[tuple[str, str], list[str]] = {}
    for line in REPORT.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[3].startswith("sm_"):
            rows.setdefault((cells[1], cells[3]), []).append(line)
    return rows


def stale() -> str | None:
    """Why the committed report cannot be compared with what is compiled here, or None."""
    if not REPORT.exists():
        return f"{REPORT.name} has not been written"
    written = [line for line in REPORT.read_text().splitlines() if line.startswith("* ")]
    return None if written == header() else f"{REPORT.name} was written with {written}, here are {header()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed report, write nothing")
    check = parser.parse_args().check
    new = report()
    if not check:
        REPORT.write_text(new)
        return 0
    old = REPORT.read_text() if REPORT.exists() else ""
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "committed", "compiled"))
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
