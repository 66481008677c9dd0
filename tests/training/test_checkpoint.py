"""A run's files under two processes, killed ones, changed data, damaged checkpoints and signals."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("yaml")
pytest.importorskip("PIL")

from PIL import Image
from run_support import OPTIONS, TINY, stop_after
from support import sweep

from fastmix.cli import main
from fastmix.train import files
from fastmix.train.config import Config
from fastmix.train.errors import UserError
from fastmix.train.trainer import Interrupted, Trainer, resume_state

WORDS = [*OPTIONS, "--quiet"]


def train(*words: object) -> int:
    return main(["train", *map(str, words)])


def error_of(capsys, *words: object) -> str:
    """The one line that a command ends in."""
    assert train(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastmix train: error: ") and said.count("\n") == 1, said
    return said.removeprefix("fastmix train: error: ").rstrip()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that stands at step 5 of 12, inside its second epoch of four steps."""
    out = tmp_path_factory.mktemp("stopped")
    trainer = Trainer(Config(**TINY, method="automix", steps=12, epoch_steps=4), out)
    stop_after(trainer, 5, signal.SIGINT)
    with pytest.raises(Interrupted):
        trainer.fit()
    return out


@contextlib.contextmanager
def held_by_another(folder: Path):
    """Another process that has claimed a folder."""
    code = (
        "import sys, time; from pathlib import Path; from fastmix.train.files import claim\n"
        "with claim(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "in\n"
        yield child
    finally:
        child.kill()
        child.wait()


def test_two_runs_do_not_write_to_one_folder(stopped, tmp_path, capsys):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with held_by_another(run) as other:
        for words in ((*WORDS, "--steps", 2), ("--resume", "--quiet")):
            said = error_of(capsys, *words, "--out", run)
            assert said == f"{run}: process {other.pid} is writing its run there; wait for it or choose another --out"
        with pytest.raises(UserError, match=f"process {other.pid} is writing"):
            Trainer(Config(**TINY, method="none", steps=2), run).fit()
        link = tmp_path / "link"
        link.symlink_to(run)
        assert f"process {other.pid}" in error_of(capsys, "--resume", "--quiet", "--out", link)
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != ".lock"} == before
    # the lock of a dead process is none, though its file is there
    assert (run / ".lock").exists()
    assert train("--resume", "--quiet", "--out", run) == 0
    assert not (run / ".lock").exists()


def test_runs_without_a_name_get_folders_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with held_by_another(tmp_path / "runs" / "digits-none-1"):
        assert train(*WORDS, "--method", "none", "--steps", 2) == 0
    assert {path.name for path in Path("runs").iterdir()} >= {"digits-none-2"}
    assert (Path("runs") / "digits-none-2" / "checkpoint.pt").exists()


def test_a_lock_that_is_removed_while_one_waits_is_not_had_twice(tmp_path, monkeypatch):
    """The file may be removed by its owner between the opening and the locking."""
    lock, opened = fcntl.flock, []

    def remove_first(descriptor, operation):
        if not opened:
            opened.append(descriptor)
            (tmp_path / ".lock").unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with files.claim(tmp_path):
        assert opened and (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_workers_do_not_keep_the_lock(tmp_path):
    with files.claim(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with files.claim(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_claimed_folder_that_stays_empty_is_removed(tmp_path):
    with files.claim(tmp_path / "a" / "b"), files.claim(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert not list(tmp_path.iterdir())


def test_parts_of_killed_runs_are_removed(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead, alive, own = done.pid, os.getppid(), os.getpid()
    gone = [f".checkpoint.pt.{dead}", f".log.csv.{dead}", f".checkpoint.pt.{own}", f".checkpoint.pt.{10**30}"]
    kept = [f".checkpoint.pt.{alive}", f".notes.{dead}", ".checkpoint.pt.backup", "checkpoint.pt.1"]
    for name in (*gone, *kept):
        (tmp_path / name).write_bytes(b"part")
    Trainer(Config(**TINY, method="none", steps=1), tmp_path).fit()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "checkpoint.pt", "log.csv"}


def paint(root: Path) -> Path:
    for place in ("cat", "dog"):
        (root / place).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (20, 20), (40 * k, 0, 0)).save(root / place / f"{k}.png")
    return root


def touched(change: str, root: Path) -> None:
    if change == "added":
        shutil.copy(root / "cat" / "0.png", root / "cat" / "new.png")
    elif change == "removed":
        (root / "dog" / "3.png").unlink()
    elif change == "image renamed":
        (root / "dog" / "3.png").rename(root / "dog" / "33.png")
    elif change == "moved":
        (root / "dog" / "3.png").rename(root / "cat" / "x3.png")
    elif change == "resized":
        with (root / "dog" / "3.png").open("ab") as file:
            file.write(b"\0")
    elif change == "repainted":
        for name in ("3.png", "4.png"):
            size = (root / "dog" / name).stat().st_size
            Image.new("RGB", (20, 20), (7, 0, 0)).save(root / "dog" / name)
            assert (root / "dog" / name).stat().st_size == size
    elif change == "class renamed":
        (root / "dog").rename(root / "emu")
    elif change == "class added":
        shutil.copytree(root / "dog", root / "emu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("added", "image cat/new.png is new"),
        ("removed", "image dog/3.png is gone"),
        ("image renamed", "image dog/3.png is gone, image dog/33.png is new"),
        ("moved", "image dog/3.png is gone, image cat/x3.png is new"),
        ("resized", "image dog/3.png has other content"),
        ("repainted", "image dog/3.png has other content, and 1 more"),
        ("class renamed", "class dog is gone, class emu is new"),
        ("class added", "class emu is new"),
    ],
)
def test_changed_data_are_refused_and_a_moved_copy_is_not(tmp_path, capsys, change, words):
    data, run = paint(tmp_path / "data"), tmp_path / "run"
    config = Config(
        **{**TINY, "data": f"folder:{data}", "labels_per_class": None, "image_size": 16}, method="none", steps=6
    )
    trainer = Trainer(config, run)
    stop_after(trainer, 3, signal.SIGTERM)
    with pytest.raises(Interrupted):
        trainer.fit()
    resume = ("--resume", "--quiet", "--out", run)
    saved = (run / "checkpoint.pt").read_bytes()
    copy = shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    touched(change, data)
    said = error_of(capsys, *resume)
    assert re.search(rf"the data changed since the checkpoint: {words}; --allow-changed-data", said), said
    assert (run / "checkpoint.pt").read_bytes() == saved
    assert train(*resume, "--data", f"folder:{copy}") == 0
    (run / "checkpoint.pt").write_bytes(saved)
    if change == "class added":
        assert "shape" in error_of(capsys, *resume, "--allow-changed-data")
        return
    assert train(*resume, "--allow-changed-data") == 0
    # the plan of the run stays, and what goes on from there has the data of now
    state = files.load_checkpoint(run / "checkpoint.pt")
    assert state["step"] == state["total_steps"] == state["history"][-1]["step"] == 6
    assert train(*resume) == 0


def test_changed_arrays_are_refused(tmp_path, capsys):
    trainer = Trainer(Config(**TINY, method="none", steps=4), tmp_path)
    stop_after(trainer, 2, signal.SIGINT)
    with pytest.raises(Interrupted):
        trainer.fit()
    config, state = resume_state(tmp_path)
    again = Trainer(config, tmp_path)
    again.splits.train.images[0, 0, 3, 3] += 1
    with pytest.raises(UserError, match="the data changed since the checkpoint: other training images"):
        again.load(state)
    assert again.step == 0
    again.load(state, allow_changed_data=True)
    assert again.step == 2
    said = error_of(capsys, "--resume", "--quiet", "--out", tmp_path, "--data", "cluttered-digits")
    assert "other training and test images" in said


def other_method(state):
    state["config"]["method"] = "mixup"


TAMPERED = {
    "no module": lambda s: s.pop("module"),
    "no step": lambda s: s.pop("step"),
    "no optimiser": lambda s: s.pop("optimizer"),
    "no config": lambda s: s.pop("config"),
    "no world": lambda s: s.pop("world"),
    "config is a list": lambda s: s.update(config=[1]),
    "unknown setting": lambda s: s["config"].update(zebra=1),
    "setting of a wrong type": lambda s: s["config"].update(lr="fast"),
    "setting out of range": lambda s: s["config"].update(batch_size=-3),
    "setting nan": lambda s: s["config"].update(lr=float("nan")),
    "tensor as setting": lambda s: s["config"].update(lr=torch.ones(2)),
    "setting not of the choices": lambda s: s["config"].update(mode="zebra"),
    "setting none": lambda s: s["config"].update(amp=None),
    "setting huge": lambda s: s["config"].update(width=10**9),
    "other method": other_method,
    "other model": lambda s: s["config"].update(model="resnet18"),
    "other width": lambda s: s["config"].update(width=3),
    "other plan": lambda s: s["config"].update(steps=13),
    "huge step": lambda s: s.update(step=10**9),
    "step beyond": lambda s: s.update(step=13),
    "last step": lambda s: s.update(step=12),
    "negative step": lambda s: s.update(step=-1),
    "fractional step": lambda s: s.update(step=5.0),
    "step a tensor": lambda s: s.update(step=torch.tensor(5)),
    "step true": lambda s: s.update(step=True),
    "earlier step": lambda s: s.update(step=4),
    "teacher's step": lambda s: s["module"].update(_extra_state={"step": 9}),
    "teacher's step none": lambda s: s["module"].update(_extra_state={}),
    "module a list": lambda s: s.update(module=[1]),
    "module empty": lambda s: s.update(module={}),
    "module extra key": lambda s: s["module"].update(zebra=torch.ones(1)),
    "weight of another shape": lambda s: s["module"].update({"student.mix.bias": torch.ones(3)}),
    "weight of another dtype": lambda s: s["module"].update({"student.mix.bias": torch.ones(10, dtype=torch.int64)}),
    "weight sparse": lambda s: s["module"].update({"student.mix.bias": torch.ones(10).to_sparse()}),
    "weight a number": lambda s: s["module"].update({"student.mix.bias": 3.0}),
    "weight nan": lambda s: s["module"]["student.mix.bias"].fill_(float("nan")),
    "optimiser a list": lambda s: s.update(optimizer=[]),
    "optimiser empty": lambda s: s.update(optimizer={}),
    "momenta lost": lambda s: s["optimizer"].update(state={}),
    "momentum of another shape": lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.ones(3)),
    "momentum nan": lambda s: s["optimizer"]["state"][0]["momentum_buffer"].fill_(float("nan")),
    "momentum of nothing": lambda s: s["optimizer"]["state"].update({999: {"momentum_buffer": None}}),
    "momentum a text": lambda s: s["optimizer"]["state"].update({0: "x"}),
    "groups lost": lambda s: s["optimizer"].update(param_groups=[]),
    "groups numbers": lambda s: s["optimizer"].update(param_groups=[1, 2]),
    "history lost": lambda s: s.update(history=[]),
    "history a text": lambda s: s.update(history="ab"),
    "history of texts": lambda s: s.update(history=["a"]),
    "history without accuracy": lambda s: s["history"][0].pop("test_accuracy"),
    "history of a text": lambda s: s["history"][0].update(loss="x"),
    "history of another epoch": lambda s: s["history"][0].update(step=3),
    "sums lost": lambda s: s.update(sums=None),
    "sums of another shape": lambda s: s.update(sums=torch.ones(2)),
    "sums a text": lambda s: s.update(sums="x"),
    "data a text": lambda s: s.update(data="x"),
    "data without classes": lambda s: s["data"].pop("classes"),
    "data without arrays": lambda s: s["data"].pop("arrays"),
    "data arrays a number": lambda s: s["data"].update(arrays=3),
    "format": lambda s: s.update(format=2),
    "format true": lambda s: s.update(format=True),
    "world 0": lambda s: s.update(world=0),
    "world a text": lambda s: s.update(world="x"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_checkpoint_is_one_line(stopped, tmp_path, capsys, name):
    state = torch.load(stopped / "checkpoint.pt", weights_only=True)
    TAMPERED[name](state)
    torch.save(state, tmp_path / "checkpoint.pt")
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    said = error_of(capsys, "--resume", "--quiet", "--out", tmp_path)
    assert str(tmp_path) in said or "the data changed" in said or "not memory enough" in said
    assert len(said) < 500 and "weights_only" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    "kind", ["pickle", "module", "truncated", "random", "text", "empty", "flipped", "list", "folder"]
)
def test_what_is_no_checkpoint_is_one_line(stopped, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path, good = tmp_path / "run" / "checkpoint.pt", (stopped / "checkpoint.pt").read_bytes()
    path.parent.mkdir()
    if kind in ("pickle", "module", "list"):
        torch.save({"pickle": Evil(), "module": torch.nn.Linear(1, 1), "list": [1, 2]}[kind], path)
    elif kind == "folder":
        path.mkdir()
    else:
        content = {
            "truncated": good[: len(good) // 2],
            "random": np.random.default_rng(0).bytes(5000),
            "text": b"hello\n",
            "empty": b"",
            "flipped": good[:200] + bytes(255 - b for b in good[200:400]) + good[400:],
        }
        path.write_bytes(content[kind])
    said = error_of(capsys, "--resume", "--quiet", "--out", path.parent)
    assert said.startswith(f"{path}: ") and len(said) < 500
    assert not re.search("weights_only|trust|unsafe", said, re.IGNORECASE)
    assert not Path("evil").exists()


@pytest.mark.parametrize("number", sweep([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], [signal.SIGTERM]))
def test_signals_save_and_have_their_codes(tmp_path, number):
    run, command = tmp_path / "run", [sys.executable, "-m", "fastmix", "train", *WORDS]
    child = subprocess.Popen(
        [*command, "--method", "none", "--steps", "9000", "--epoch-steps", "4", "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (run / "log.csv").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 128 + number and not err
    step = int(re.match(r"stopped after step (\d+) of 9000; go on with: fastmix train --resume --out", out)[1])
    assert files.load_checkpoint(run / "checkpoint.pt")["step"] == step
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_signals_that_come_again_do_not_lose_the_save(tmp_path):
    trainer = Trainer(Config(**TINY, method="none", steps=9), tmp_path)
    stop_after(trainer, 2, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        trainer.fit()
    assert stop.value.signal == signal.SIGTERM
    assert files.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_hangup_that_nohup_ignores_is_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = Trainer(Config(**TINY, method="none", steps=4), tmp_path)
        stop_after(trainer, 2, signal.SIGHUP)
        assert trainer.fit()[-1]["step"] == 4
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_while_saving_waits(tmp_path, monkeypatch):
    replace = os.replace

    def slowly(source, target):
        if Path(target).name == "checkpoint.pt":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    trainer = Trainer(Config(**TINY, method="none", steps=9), tmp_path)
    stop_after(trainer, 3, signal.SIGINT)
    with pytest.raises(Interrupted):
        trainer.fit()
    assert files.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt"}


def test_a_second_ctrl_c_at_any_other_time_stops_at_once(tmp_path):
    trainer = Trainer(Config(**TINY, method="none", steps=9), tmp_path)
    stop_after(trainer, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_broken_off_leaves_no_part(tmp_path, monkeypatch):
    def interrupt(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "a.txt", b"new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "momentum", "statistics"])
def test_weights_that_diverged_are_not_saved(tmp_path, where, value):
    """Ctrl-C in the ten steps in which nobody looks at the loss."""
    trainer = Trainer(Config(**TINY, method="none", steps=12, epoch_steps=4), tmp_path)
    stop_after(trainer, 6, signal.SIGINT)
    inner = trainer._train_step

    def diverge(*args):
        values = inner(*args)
        if trainer.step == 6:
            with torch.no_grad():
                weight = trainer.task.module.head.weight
                momentum = trainer.optimizer.state[weight]["momentum_buffer"]
                statistics = trainer.task.module.encoder.bn1.running_var
                {"weight": weight, "momentum": momentum, "statistics": statistics}[where].view(-1)[0] = value
        return values

    trainer._train_step = diverge
    with pytest.raises(UserError, match=r"the weights are not finite after step 6: .*; the checkpoint of step 4 stays"):
        trainer.fit()
    assert files.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    config, state = resume_state(tmp_path)
    again = Trainer(config, tmp_path)
    again.load(state)
    assert again.fit()[-1]["step"] == 12


def test_weights_that_diverge_at_first_save_nothing(tmp_path):
    trainer = Trainer(Config(**TINY, method="none", steps=12), tmp_path)
    stop_after(trainer, 2, signal.SIGINT)
    with torch.no_grad():
        trainer.task.module.head.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite after step 2: .*; nothing was saved"):
        trainer.fit()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_keeps_the_checkpoint(tmp_path, monkeypatch):
    trainer = Trainer(Config(**TINY, method="none", steps=12, epoch_steps=4), tmp_path)
    sync, synced = os.fsync, []

    def fill(descriptor):
        synced.append(descriptor)
        if len(synced) > 3:  # the trial, the checkpoint and the log of the first epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot write: No space left on device"):
        trainer.fit()
    assert files.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "log.csv"}


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    trainer = Trainer(Config(**TINY, method="none", steps=2), tmp_path)
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join()
    assert trainer.step == 2
