"""Every op and the AutoMix step on a GPU, beside their peers, against the goals: tables, verdicts, a picture.

    python bench/gpu.py [--out FOLDER] [--seconds S] [--only ops|steps]
    python bench/gpu.py --dry-run

Results go to bench/results/<name of the GPU>. A dry run walks the same code on the CPU with tiny shapes and a wall
clock: it proves that the script is alive, and its numbers, which mean nothing, go to a temporary folder.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_ops import SIZES, TINY_SIZES, case_makers
from gpu_report import Results, targets_table, write
from gpu_step import FEATURES, FULL, TINY, measure_steps

import fastmix
from fastmix import native
from fastmix.bench.clock import CudaTimer, DryTimer, Timer
from fastmix.bench.run import Row, measure, measure_roofs

RESULTS = Path(__file__).resolve().parent / "results"
# Share of the time that the ops may take; the steps need about this much of what is left.
OPS_SHARE = 0.7


def machine(real: bool) -> dict[str, str]:
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _output("git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--abbrev=12") or "unknown",
        "fastmix": f"{fastmix.__version__}, {native.why_unavailable() or 'compiled module loaded'}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if real:
        properties = torch.cuda.get_device_properties(0)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
        found |= {
            "GPU": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "memory": f"{properties.total_memory / 1e9:.0f} GB",
            "driver": driver[0] if driver else "unknown",
            "CUDA of torch": str(torch.version.cuda),
            "triton": _version("triton"),
            "native module": " ".join(f"{k}={v}" for k, v in native.module().build_info().items() if "cuda" in k),
        }
    return found


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run(results: Results, timer: Timer, folder: Path, seconds: float, only: str | None) -> None:
    """Measure in the order of importance until the time is up; what is there is written after each part."""
    start = time.perf_counter()
    results.roofs |= measure_roofs(timer, tiny=not results.real)
    print(", ".join(f"{name} {value:.4g}" for name, value in results.roofs.items()), flush=True)
    if only != "steps":
        end = start + seconds * (1 if only else OPS_SHARE)
        left_out, compiler = 0, "inductor" if results.real else "aot_eager"
        for make in case_makers(results.sizes):
            if time.perf_counter() > end:
                left_out += 1
                continue
            rows = measure(make, timer, results.roofs, 0.3, compiler=compiler, backward_alone=True)
            results.ops += rows
            _print_rows(rows)
        write(results, folder)
        if left_out:
            print(f"the time was up: {left_out} cases of the ops left out")
    if only != "ops":
        torch.backends.cudnn.benchmark = True
        for feature in FEATURES:
            results.steps += measure_steps(timer, FULL if results.real else TINY, feature, 3.0)
            write(results, folder)
        for row in results.steps:
            numbers = " ".join(
                f"{v:10.3f}" if v is not None else f"{'-':>10}" for v in (row.ms, row.eager_ms, row.peak_mb)
            )
            print(f"{row.feature:<8}{row.step:<40}{numbers}  {row.note}")
    results.roofs |= {f"{name}, at the end": value for name, value in measure_roofs(timer, not results.real).items()}


def _print_rows(rows: list[Row]) -> None:
    print(f"\n{rows[0].case}")
    for row in rows:
        values = (row.ms, row.percent_of_copy, row.tflop_per_s, row.extra_mb, row.host_us)
        numbers = "".join(f"{v:11.4g}" if v is not None else f"{'-':>11}" for v in values)
        print(f"  {row.provider:<34}{numbers}  {row.note}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny, without meaning")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=330, help="time to keep to, about; default 330")
    parser.add_argument("--only", choices=["ops", "steps"])
    args = parser.parse_args()
    if args.dry_run:
        folder = args.out or Path(tempfile.mkdtemp(prefix="fastmix-dry-run-"))
        if RESULTS in (folder.resolve(), *folder.resolve().parents):
            parser.error(f"--dry-run does not write to {RESULTS}")
        timer, sizes = DryTimer(), TINY_SIZES
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        parser.error("needs a CUDA device; --dry-run does without")
    else:
        timer, sizes = CudaTimer(), SIZES
        slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        folder = args.out or RESULTS / slug
    results = Results(not args.dry_run, machine(not args.dry_run), {}, sizes, [], [])
    print("\n".join(f"{key}: {value}" for key, value in results.machine.items()))
    print("columns: ms, % of the copy, TFLOP/s, extra MB, host us")
    run(results, timer, folder, args.seconds, args.only)
    write(results, folder)
    print(f"\n{targets_table(results)}\n\nwritten to {folder}")
    if args.dry_run:
        print("a dry run on the CPU: every number above is meaningless")
    broken = [row for row in results.ops if row.note and row.provider.startswith("fastmix")]
    broken += [row for row in results.steps if row.note]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
