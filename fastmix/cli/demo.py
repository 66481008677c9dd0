"""Train plainly, with MixUp, with CutMix and with AutoMix on few labelled handwritten digits, and compare.

All four take the same number of steps from the same initial weights, labelled images and order, on each of several
seeds. No download, no GPU. Needs the extra packages of ``pip install fastmix[train]``.
"""

from __future__ import annotations

import argparse
import heapq
import io
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from fastmix.train.config import Config
from fastmix.train.errors import UserError, need

# AutoMix's step includes the loss on clean images; MixUp with it shows how much of a difference that alone makes.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"method": "none"},
    "MixUp": {"method": "mixup"},
    "CutMix": {"method": "cutmix"},
    "MixUp+clean": {"method": "mixup", "clean_loss": True},
    "AutoMix": {"method": "automix"},
}
MODEL = {"model": "resnet10", "tensorboard": False, "threads": 1}
PICTURED = ("MixUp", "CutMix", "AutoMix")
SETTINGS: dict[str, dict[str, Any]] = {
    "cluttered-digits": {"labels_per_class": 20, "steps": 600, "feature": "layer2"},
    "digits": {"labels_per_class": 10, "steps": 250, "feature": "layer2"},
}
SEEDS = 3
FEWEST_SEEDS = 2  # a spread over seeds needs two
TIMED_STEPS = 12
LEGEND = """
price: time of a step in plain steps
object: part of a labelled digit's area that a mask gives to its own image; 0.50 is what chance gives
|lambda - visible|: how far the label's weight is from the ratio of visible ink; 0 is right
Equal steps, not equal time: a step of AutoMix passes the network four times, MixUp+clean (MixUp with the loss on the
unmixed images added, as AutoMix has it) twice, the others once."""
_stop: Event | None = None
LAM_SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastmix demo``."""
    parser.add_argument("--data", choices=SETTINGS, default="cluttered-digits", help="(default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, help=f"runs of each method (default: {SEEDS}, or {FEWEST_SEEDS} on a slow machine)"
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps of each run (default: as the data needs, fewer on a slow machine)"
    )
    parser.add_argument("--labels-per-class", type=int, metavar="K", help="labelled images of each class")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one for each core)")
    parser.add_argument(
        "--budget",
        type=float,
        default=220,
        metavar="SECONDS",
        help="what the training may take; a first timing settles seeds and steps (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for the pictures (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix demo``."""
    try:
        return _demo(args)
    except UserError as error:
        print(f"fastmix demo: error: {error}", file=sys.stderr)
        return 2


def _demo(args: argparse.Namespace) -> int:
    from fastmix.train import files, report

    need("matplotlib", "matplotlib", "drawing pictures")
    need("sklearn", "scikit-learn", "the digits data")
    tqdm = need("tqdm", "tqdm", "the progress bar").tqdm
    files.make_folder(args.out)
    settings = dict(SETTINGS[args.data])
    settings["labels_per_class"] = args.labels_per_class or settings["labels_per_class"]
    workers = min(args.workers or os.cpu_count() or 1, len(RUNS))
    print(
        f"{args.data}: {settings['labels_per_class']} labelled images a class, {len(RUNS)} methods; {workers} runs "
        "at a time, each with one thread",
        flush=True,
    )
    results: list[dict[str, Any]] = []
    curves: dict[str, list] = {name: [] for name in RUNS}
    first: dict[str, Any] = {}
    with _pool(workers) as pool:
        seeds, settings["steps"] = _plan(pool, workers, args, settings)
        settings["epoch_steps"] = max(1, settings["steps"] // 6)
        configs = {
            (name, seed): Config(data=args.data, seed=seed, **MODEL, **settings, **options)
            for seed in range(seeds)
            for name, options in RUNS.items()
        }
        # the longest first, so that no process is left with it at the end
        order = sorted(configs, key=lambda run: (run[1], -list(RUNS).index(run[0])))
        jobs = _submit(pool, _run, {run: configs[run] for run in order})
        done: dict[tuple[str, int], Any] = {}
        with tqdm(total=len(jobs), unit="run", disable=None, leave=False) as bar:
            for job in as_completed(jobs):
                name, seed = jobs[job]
                done[name, seed] = job.result()
                bar.write(f"{name:11} seed {seed}: {done[name, seed]['row']['accuracy']:.1f} %")
                bar.update()
    for (name, seed), config in configs.items():
        results.append({"method": name, "seed": seed, **done[name, seed]["row"]})
        curves[name].append(done[name, seed]["history"])
        first.setdefault(name, (config, done[name, seed]["state"]))
    files.write_csv(args.out / "results.csv", results)
    report.save_curves(args.out / "curves.png", curves)
    caption = f"{args.data} after {settings['steps']} steps, λ = 0.5 above, AutoMix for rising λ below"
    trainers = {name: _restore(*run) for name, run in first.items() if name in PICTURED}
    report.save_grid(args.out / "mixes.png", report.compare_rows(trainers, LAM_SWEEP), caption)
    print(table(results))
    print(LEGEND)
    print(f"\npictures: {args.out / 'mixes.png'}, {args.out / 'curves.png'}; figures: {args.out / 'results.csv'}")
    return 0


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each: on a shared machine, threads that wait for each other are far slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(stop,))
    try:
        yield pool
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _held_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and processes started meanwhile never hear it: the main process says by `stop` when it ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(stop: Event) -> None:
    global _stop
    _stop = stop


def _look(_values: dict[str, float]) -> None:
    if _stop is not None and _stop.is_set():
        raise KeyboardInterrupt


def _submit(pool: ProcessPoolExecutor, call: Callable, configs: dict[Any, Config]) -> dict[Future, Any]:
    """The job of each key of ``configs``."""
    with _held_interrupts():
        return {pool.submit(call, config): key for key, config in configs.items()}


def _plan(
    pool: ProcessPoolExecutor, workers: int, args: argparse.Namespace, settings: dict[str, Any]
) -> tuple[int, int]:
    """How many seeds and steps there will be, settled before the first run; what was asked for is kept."""
    wanted = args.seeds or SEEDS, args.steps or settings["steps"]
    if args.seeds and args.steps:
        return wanted
    short = settings | {"steps": TIMED_STEPS, "epoch_steps": TIMED_STEPS // 2}
    configs = {name: Config(data=args.data, **MODEL, **short, **options) for name, options in RUNS.items()}
    jobs = _submit(pool, _time, configs)
    costs = {jobs[job]: job.result() for job in as_completed(jobs)}
    seeds, steps = fit(
        [costs[name] for name in reversed(RUNS)], workers, args.budget, wanted, (args.seeds is None, args.steps is None)
    )
    seconds = makespan([fixed + steps * step for fixed, step in costs.values()] * seeds, workers)
    text = f"{seeds} seeds of {steps} steps, about {max(1, round(seconds / 10) * 10)} s by a first timing"
    if (seeds, steps) != wanted:
        text += f"; {wanted[0]} of {wanted[1]} would take longer than --budget {args.budget:.0f} seconds here"
    print(text, flush=True)
    return seeds, steps


def fit(
    costs: list[tuple[float, float]],
    workers: int,
    budget: float,
    wanted: tuple[int, int],
    free: tuple[bool, bool] = (True, True),
) -> tuple[int, int]:
    """Seeds and steps that end within ``budget`` seconds: first fewer seeds, then fewer steps.

    ``costs`` are the seconds of each method's run, outside its steps and for each of them. ``wanted`` are seeds and
    steps at most, ``free`` says which of them may be lowered: the seeds to `FEWEST_SEEDS`, the steps to a quarter.
    """
    seeds, steps = wanted
    fewest = min(seeds, FEWEST_SEEDS) if free[0] else seeds
    least = max(1, steps // 4) if free[1] else steps

    def late() -> bool:
        return makespan([fixed + steps * step for fixed, step in costs] * seeds, workers) > budget

    while late() and seeds > fewest:
        seeds -= 1
    while late() and steps > least:
        steps = max(least, steps - max(1, wanted[1] // 20))
    return seeds, steps


def makespan(seconds: list[float], workers: int) -> float:
    """When the last of these runs ends, if each in turn goes to the first process that is free."""
    ends = [0.0] * workers
    for run in seconds:
        heapq.heapreplace(ends, ends[0] + run)
    return max(ends)


def _time(config: Config) -> tuple[float, float]:
    """Seconds of a run outside its steps, and of a step."""
    from fastmix.train.trainer import Trainer

    _look({})
    begin = time.monotonic()
    history = Trainer(config).fit(on_step=_look)
    step = history[-1]["ms_per_step"] / 1e3
    return time.monotonic() - begin - step * config.steps, step


def _run(config: Config) -> dict[str, Any]:
    """One training run in a process of its own: figures, history and final weights."""
    import torch

    from fastmix.train import report
    from fastmix.train.trainer import Trainer

    _look({})
    trainer = Trainer(config)
    history = trainer.fit(on_step=_look)
    weights = io.BytesIO()
    torch.save(trainer.task.module.state_dict(), weights)
    measures = report.measure_masks(trainer) or {"object_share": None, "lam_mismatch": None}
    row = {
        "accuracy": history[-1]["test_accuracy"],
        "ms_per_step": statistics.median(row["ms_per_step"] for row in history),
        **measures,
    }
    return {"row": row, "history": history, "state": weights.getvalue()}


def _restore(config: Config, weights: bytes) -> Any:
    """The trainer of a finished run, to draw pictures with."""
    import torch

    from fastmix.train.trainer import Trainer

    trainer = Trainer(replace(config, threads=None))
    trainer.task.module.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return trainer


def table(results: list[dict[str, Any]]) -> str:
    """The results as text: a line for each method, mean and standard deviation over its seeds."""
    lines = ["", "method        accuracy %   sd   lowest - highest   ms/step  price   object   |lambda - visible|"]
    speeds: dict[str, float] = {}
    for method in dict.fromkeys(row["method"] for row in results):
        rows = [row for row in results if row["method"] == method]
        accuracy = [row["accuracy"] for row in rows]
        spread = statistics.stdev(accuracy) if len(rows) > 1 else 0.0
        speeds[method] = statistics.median(row["ms_per_step"] for row in rows)
        line = (
            f"{method:13} {statistics.mean(accuracy):10.1f} {spread:4.1f} {min(accuracy):8.1f} - {max(accuracy):5.1f}"
        )
        line += f"   {speeds[method]:9.1f}  {speeds[method] / speeds['plain']:5.1f}"
        if rows[0]["object_share"] is not None:
            share, gap = (statistics.mean(row[key] for row in rows) for key in ("object_share", "lam_mismatch"))
            line += f"     {share:.2f}   {gap:12.2f}"
        lines.append(line)
    return "\n".join(lines)
