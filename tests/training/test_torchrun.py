"""`torchrun -m fastmix train` on two gloo processes."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

import run_support

from fastmix.train import files

ROOT = Path(__file__).parents[2]
SMALL = "--data digits --model resnet10 --width 2 --batch-size 4 --labels-per-class 4 --feature layer2 --warmup 2 "
WORDS = (SMALL + "--threads 1 --quiet --no-tensorboard").split(" ")
# Runs the command line and keeps what every process has at the end.
KEEPING = """
import os, sys, torch
from fastmix.cli import main
from fastmix.train.trainer import Trainer
fit = Trainer.fit
def keep(self, *args):
    try:
        return fit(self, *args)
    finally:
        torch.save(self.task.module.state_dict(), f"{sys.argv[1]}.{os.environ['RANK']}")
Trainer.fit = keep
if stop := os.environ.get("STOP_AT"):
    step = Trainer._train_step
    def stopping(self, *args):
        values = step(self, *args)
        if self.step == int(stop) and os.environ["RANK"] == os.environ["STOPPED_RANK"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        return values
    Trainer._train_step = stopping
raise SystemExit(main(["train", *sys.argv[2:]]))
"""


def launched(*words: object, **environment: object):
    """Two processes of a launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, **environment}
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return run_support.spawned(command, env=environment, cwd=ROOT)


def run(*words: object, **environment: object) -> tuple[int, str, str]:
    with launched(*words, **environment) as child:
        out, err = child.communicate(timeout=240)
    return child.returncode, out, err


def lines_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("fastmix train")]


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name], name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cutmix", "attentivemix", "puzzlemix", "automix"])
def test_ranks_are_equal_and_a_resumed_run_is_the_whole_one(tmp_path, method):
    script = tmp_path / "keeping.py"
    script.write_text(KEEPING)
    options = (*WORDS, "--method", method, "--steps", 24, "--epoch-steps", 12, "--mix-off-epoch", 1)
    code, _, err = run(script, tmp_path / "whole", *options, "--out", tmp_path / "a")
    assert code == 0, err
    stop = {"STOP_AT": 7, "STOPPED_RANK": 1, "SIGNAL": int(signal.SIGTERM)}
    code, out, err = run(script, tmp_path / "part", *options, "--out", tmp_path / "b", **stop)
    assert code != 0 and "Traceback" not in err.partition("torch/distributed")[0]
    assert len(re.findall("stopped after step 7 of 24", out)) == 1, err
    assert len(re.findall(r"exitcode\s+: 143", err)) == 2, err
    assert files.load_checkpoint(tmp_path / "b" / "checkpoint.pt")["step"] == 7
    code, _, err = run(script, tmp_path / "resumed", "--resume", "--quiet", "--out", tmp_path / "b")
    assert code == 0, err
    load = lambda name: torch.load(tmp_path / name, weights_only=True)  # noqa: E731
    assert_same(load("whole.0"), load("whole.1"))
    assert_same(load("part.0"), load("part.1"))
    assert_same(load("whole.0"), load("resumed.0"))
    assert_same(load("whole.0"), load("resumed.1"))
    rows = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("a", "b")]
    assert [row["test_loss"] for row in rows[0]] == [row["test_loss"] for row in rows[1]]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "checkpoint.pt", "config.yaml", "curves.png", "log.csv", "mixes.png"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_launcher_save(tmp_path, number):
    out = tmp_path / "run"
    words = ("-m", "fastmix", "train", *WORDS, "--method", "none", "--steps", 9000, "--epoch-steps", 20, "--out", out)
    with launched(*words) as child:
        deadline = time.monotonic() + 120
        while not (out / "log.csv").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(number)
        said, err = child.communicate(timeout=120)
    assert len(re.findall(r"stopped after step \d+ of 9000", said)) == 1, err
    assert files.load_checkpoint(out / "checkpoint.pt")["step"] == int(re.search(r"after step (\d+)", said)[1])
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_what_fails_in_one_process_ends_both_with_one_line(tmp_path):
    out = tmp_path / "run"
    words = ("-m", "fastmix", "train", *WORDS, "--method", "none", "--steps", 10, "--out", out)
    assert run(*words)[0] == 0
    saved = (out / "checkpoint.pt").read_bytes()
    begin = time.monotonic()
    code, _, err = run(*words)
    assert code != 0 and lines_of(err) == [
        f"fastmix train: error: {out}: holds a run already; go on with --resume or choose another --out"
    ]
    assert "File" not in err.partition("torch/distributed")[0] and time.monotonic() - begin < 60
    diverging = ("-m", "fastmix", "train", *WORDS, "--method", "none", "--steps", 30, "--lr", "1e30")
    code, _, err = run(*diverging, "--out", tmp_path / "nan")
    assert len(lines_of(err)) == 1 and "try a lower --lr" in lines_of(err)[0]
    single = subprocess.run(
        [sys.executable, "-m", "fastmix", "train", "--resume", "--quiet", "--out", str(out)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert single.returncode == 2 and "was trained by 2 processes, not 1" in single.stderr
    assert (out / "checkpoint.pt").read_bytes() == saved


@pytest.mark.slow
def test_a_process_without_the_data_does_not_leave_the_other_waiting(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (20, 20), (40 * k, 0, 0)).save(tmp_path / "data" / name / f"{k}.png")
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys; from fastmix.cli import main;"
        f"data = 'folder:{tmp_path}/' + ('data' if os.environ['RANK'] == '0' else 'none');"
        "sys.exit(main(['train', *sys.argv[1:], '--data', data]))"
    )
    begin = time.monotonic()
    code, _, err = run(script, *WORDS, "--method", "none", "--steps", 10, "--out", tmp_path / "run")
    assert code != 0 and lines_of(err) == [f"fastmix train: error: {tmp_path}/none: no such directory"]
    assert time.monotonic() - begin < 60
