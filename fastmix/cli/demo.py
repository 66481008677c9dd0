"""Train plainly, with MixUp, with CutMix and with AutoMix on few labelled handwritten digits, and compare.

All four take the same number of steps from the same initial weights, labelled images and order, on each of several
seeds. No download, no GPU. Needs the extra packages of ``pip install fastmix[train]``.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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
LEGEND = """
object: part of a labelled digit's area that a mask gives to its own image; 0.50 is what chance gives
|lambda - visible|: how far the label's weight is from the ratio of visible ink; 0 is right
Equal steps, not equal time: a step of AutoMix passes the network four times, MixUp+clean (MixUp with the loss on the
unmixed images added, as AutoMix has it) twice, the others once."""
_stop: Event | None = None
LAM_SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastmix demo``."""
    parser.add_argument("--data", choices=SETTINGS, default="cluttered-digits", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimiser steps of each run")
    parser.add_argument("--labels-per-class", type=int, metavar="K", help="labelled images of each class")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one for each core)")
    parser.add_argument(
        "--budget",
        type=float,
        default=240,
        metavar="SECONDS",
        help="a slow machine runs fewer seeds to end in this time (default: %(default)s)",
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
    settings["steps"] = args.steps or settings["steps"]
    settings["labels_per_class"] = args.labels_per_class or settings["labels_per_class"]
    settings["epoch_steps"] = max(1, settings["steps"] // 6)
    workers = min(args.workers or os.cpu_count() or 1, len(RUNS))
    print(
        f"{args.data}: {settings['labels_per_class']} labelled images a class, {settings['steps']} steps, "
        f"{args.seeds} seeds; {workers} runs at a time, each with one thread",
        flush=True,
    )
    results: list[dict[str, Any]] = []
    curves: dict[str, list] = {name: [] for name in RUNS}
    first: dict[str, Any] = {}
    bar = tqdm(total=args.seeds * len(RUNS), unit="run", disable=None, leave=False)
    with bar, _pool(workers) as pool:
        for seed in _seeds(args.seeds, args.budget):
            configs = {
                name: Config(data=args.data, seed=seed, **MODEL, **settings, **options)
                for name, options in RUNS.items()
            }
            # the longest first, so that no process is left with it at the end
            with _held_interrupts():
                jobs = {pool.submit(_run, configs[name]): name for name in reversed(RUNS)}
            done: dict[str, Any] = {}
            for job in as_completed(jobs):
                name = jobs[job]
                done[name] = job.result()
                bar.write(f"{name:11} seed {seed}: {done[name]['row']['accuracy']:.1f} %")
                bar.update()
            for name, config in configs.items():
                results.append({"method": name, "seed": seed, **done[name]["row"]})
                curves[name].append(done[name]["history"])
                first.setdefault(name, (config, done[name]["state"]))
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


def _seeds(count: int, budget: float) -> Iterator[int]:
    """Seeds 0, 1, ...; on a slow machine fewer, so that the whole ends within ``budget`` seconds."""
    begin = time.monotonic()
    for seed in range(count):
        spent = time.monotonic() - begin
        if seed and spent + spent / seed > budget:
            print(f"{seed} of {count} seeds: another would take longer than --budget {budget:.0f} seconds")
            return
        yield seed


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
    lines = ["", "method        accuracy %   sd   lowest - highest   ms/step   object   |lambda - visible|"]
    for method in dict.fromkeys(row["method"] for row in results):
        rows = [row for row in results if row["method"] == method]
        accuracy = [row["accuracy"] for row in rows]
        spread = statistics.stdev(accuracy) if len(rows) > 1 else 0.0
        line = (
            f"{method:13} {statistics.mean(accuracy):10.1f} {spread:4.1f} {min(accuracy):8.1f} - {max(accuracy):5.1f}"
        )
        line += f"   {statistics.median(row['ms_per_step'] for row in rows):9.1f}"
        if rows[0]["object_share"] is not None:
            share, gap = (statistics.mean(row[key] for row in rows) for key in ("object_share", "lam_mismatch"))
            line += f"     {share:.2f}   {gap:12.2f}"
        lines.append(line)
    return "\n".join(lines)
