"""What the tests of training runs share: the smallest run, a signal at a step, processes that end with their test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

from fastmix.train.trainer import Trainer

TINY = {
    "data": "digits", "model": "resnet10", "width": 2, "batch_size": 8, "labels_per_class": 3, "feature": "layer2",
    "warmup": 2, "threads": 1, "tensorboard": False,
}  # fmt: skip
OPTIONS = [
    word
    for k, v in TINY.items()
    for word in (["--no-tensorboard"] if k == "tensorboard" else [f"--{k.replace('_', '-')}", str(v)])
]


def stop_after(trainer: Trainer, step: int, *signals: int) -> None:
    """Let `trainer` receive signals once it has made so many steps."""
    inner = trainer._train_step

    def then_stop(*args):
        values = inner(*args)
        if trainer.step == step:
            for number in signals:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        return values

    trainer._train_step = then_stop


@contextlib.contextmanager
def spawned(command: list, **options: object) -> Iterator[subprocess.Popen]:
    """A process in a session of its own, none of whose processes survives the test; options of `Popen`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([*map(str, command)], start_new_session=True, **pipes, **options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
