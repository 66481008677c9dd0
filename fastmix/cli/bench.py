"""Time every op, mixing step and training step beside eager PyTorch, torch.compile and the installed peers.

Results of providers are checked before they are timed; all take turns in one process.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

SUMMARY = "time every op beside its peers, compare two runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run_options(parser)
    parser.add_argument("--quick", action="store_true", help="one small shape an op, without torch.compile")
    parser.add_argument("--only", metavar="WORD", nargs="+", default=[], help="cases whose names contain one of these")
    parser.add_argument("--provider", metavar="WORD", nargs="+", default=[], help="providers likewise")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="instead of the whole registry")

    step = actions.add_parser("step", help="what a training step of each method costs, in plain steps")
    _add_run_options(step)
    step.add_argument("--model", default="resnet18", help="as in `fastmix train`; default resnet18")
    step.add_argument("--method", nargs="+", default=["all"], help="names, or all (default)")
    step.add_argument("--batch-size", type=int, default=50)
    step.add_argument("--image-size", type=int, default=32)
    step.add_argument("--width", type=int, help="channels of the first stage of a built-in ResNet")

    compare = actions.add_parser("compare", help="what moved beyond noise between two runs")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--threshold", type=float, default=0.1, help="share from which a move counts; default 0.1")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="of PyTorch and fastmix; default: PyTorch's own choice")
    parser.add_argument("--seconds", type=float, help="of timing a case; default 2, quick 0.5")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="time torch.compile too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw pictures into FOLDER")


def main(args: argparse.Namespace) -> int:
    if args.action == "compare":
        return _compare(args)
    return _run(args)


def _compare(args: argparse.Namespace) -> int:
    """0: nothing of ours got slower; 1: something did; 2: a file that cannot be read."""
    from fastmix.bench.compare import compare, report
    from fastmix.bench.results import Results

    try:
        before, after = Results.load(args.before), Results.load(args.after)
    except ValueError as error:
        return _fail(str(error))
    for key in ("cpu", "gpu", "torch"):
        if before.machine.get(key) != after.machine.get(key):
            print(f"note: {key} was {before.machine.get(key)}, is {after.machine.get(key)}")
    moves = compare(before, after, args.threshold)
    if not moves:
        return _fail("the runs have no case in common")
    print(report(moves))
    return 1 if any(move.verdict == "slower" for move in moves) else 0


def _run(args: argparse.Namespace) -> int:
    import torch

    from fastmix.bench import clock
    from fastmix.bench.results import Results, machine, table
    from fastmix.bench.run import measure, measure_roofs

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return _fail("--device cuda: no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    entries = _entries(args, device)
    if isinstance(entries, str):
        return _fail(entries)
    if getattr(args, "list", False):
        print("\n".join(entry.name for entry in entries))
        return 0
    quick = getattr(args, "quick", False)
    compiler = "inductor" if (not quick if args.compile is None else args.compile) else ""
    seconds = args.seconds if args.seconds is not None else 0.5 if quick else 2.0
    timer = clock.CudaTimer() if device == "cuda" else clock.CpuTimer()
    start = time.perf_counter()
    results = Results(machine(), measure_roofs(timer))
    for key, value in (results.machine | {k: f"{v:.4g}" for k, v in results.roofs.items()}).items():
        print(f"{key}: {value}")
    print("ms: median; q1-q3: quartiles; ratio: time over our first row's; % roof: of the least possible time here;")
    print("+MB: by how much memory had to grow beyond inputs and results\n", flush=True)
    try:
        for entry in entries:
            rows = measure(
                entry.make, timer, results.roofs, seconds, compiler=compiler, only=getattr(args, "provider", [])
            )
            if rows:
                results.rows += rows
                print(table(rows) + "\n", flush=True)
    finally:  # what was measured before an interruption is kept
        _write(results, args)
    wrong = [row for row in results.rows if row.provider.startswith("fastmix ") and row.note]
    for row in wrong:
        print(f"{row.case}, {row.provider}: {row.note}", file=sys.stderr)
    print(f"{len(results.cases)} cases in {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


def _entries(args: argparse.Namespace, device: str) -> list | str:
    """The cases to run, or what is wrong with the question."""
    from fastmix.bench.run import registry

    if args.action == "step":
        return _step_entry(args)
    found = [entry for entry in registry(device) if entry.quick or not args.quick]
    if args.only:
        found = [entry for entry in found if any(word in entry.name for word in args.only)]
    return found or f"--only {' '.join(args.only)}: no case has such a name; --list prints them"


def _step_entry(args: argparse.Namespace) -> list | str:
    from functools import partial

    from fastmix.bench.cases import Entry
    from fastmix.bench.training import step_case
    from fastmix.train.config import METHODS

    methods = METHODS if args.method == ["all"] else args.method
    for method in methods:
        if method not in METHODS:
            return f"--method {method}: choose {', '.join(METHODS)} or all"
    name = f"step/{args.model}-{args.image_size}"
    shape = (args.batch_size, args.image_size, args.width)
    return [Entry(name, partial(step_case, name, args.model, *shape, methods))]


def _write(results, args: argparse.Namespace) -> None:
    if args.json:
        results.save(args.json)
    if args.csv:
        results.save_csv(args.csv)
    if args.plots:
        from fastmix.bench.plots import draw

        try:
            draw(results, args.plots)
        except ImportError:
            print("--plots: matplotlib is not installed", file=sys.stderr)


def _fail(message: str) -> int:
    print(f"fastmix bench: error: {message}", file=sys.stderr)
    return 2
