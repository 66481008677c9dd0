"""The training loop: one run from a `Config` to checkpoints, logs and a trained model."""

from __future__ import annotations

import inspect
import math
import os
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fastmix.train import checkpoint
from fastmix.train.config import Config
from fastmix.train.data import Splits, Stream, choose_labelled, image_batch, open_data
from fastmix.train.distributed import Process
from fastmix.train.errors import UserError
from fastmix.train.files import CHECKPOINT, claim, load_checkpoint, save_checkpoint, write_csv
from fastmix.train.graph import GraphedStep
from fastmix.train.tasks import Mixed, build_task

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_EVERY = 10
_EVAL_BATCH = 250


class Interrupted(Exception):
    """A signal asked for the end; the state up to the last whole step has been saved.

    Attributes:
        signal: SIGINT (Ctrl-C), SIGTERM or SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class Trainer:
    """One training run.

    All randomness of a step (order, augmentation, mixing, dropout) is a function of the seed, the step and the
    process: a run that was stopped anywhere goes on exactly as if it had not been, bit for bit on the CPU.

    Args:
        config: the settings; defaults are filled in.
        out: folder for checkpoint, logs and pictures; None writes nothing.
        process: this process, from :func:`fastmix.train.distributed.join`.
        splits: data to use instead of opening ``config.data``.

    Example:
        >>> trainer = Trainer(Config(data="digits", method="cutmix", epochs=5))
        >>> trainer.fit()[-1]["test_accuracy"]
    """

    def __init__(
        self,
        config: Config,
        out: Path | None = None,
        process: Process | None = None,
        splits: Splits | None = None,
    ) -> None:
        self.config = config = config.resolved()
        self.out = out
        self.process = process = process or Process(0, 1, torch.device("cpu"))
        if config.cuda_graph and (process.world > 1 or process.device.type != "cuda"):
            got = f"{process.world} processes" if process.world > 1 else process.device.type
            raise UserError(f"--cuda-graph needs one process with a CUDA device, got {got}")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        with process.together():
            self._build(splits)
        groups = self.task.param_groups()
        self.base_lrs = [group["lr"] for group in groups]
        self._fused = config.cuda_graph or None
        self.optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=True, fused=self._fused
        )
        self._replay: GraphedStep | None = None
        amp = AMP_DTYPES[config.amp]
        on_gpu = process.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp is torch.float16 and on_gpu)
        self._autocast = nullcontext() if amp is None else torch.autocast(process.device.type, dtype=amp)
        if config.compile:
            self._compile()
        self.model = self._wrap(self.task.module, find_unused=config.gen_every > 1)
        self._mixing = True
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.sums: Tensor | None = None  # of the losses of the epoch under way
        self._saved_step: int | None = None
        self._stop = _Stop()

    def _build(self, splits: Splits | None) -> None:
        config, process = self.config, self.process
        self.splits = splits or open_data(
            config.data, config.data_seed, config.image_size, config.unreadable, config.max_pixels
        )
        self.train_set = self.splits.train
        if config.labels_per_class is not None:
            chosen = choose_labelled(self.train_set.labels, config.labels_per_class, config.data_seed)
            self.train_set = self.train_set.subset(chosen)
        self.stream = Stream(len(self.train_set), config.batch_size, config.seed, process.rank, process.world)
        one_pass = max(1, round(len(self.train_set) / (config.batch_size * process.world)))
        self.epoch_steps = config.epoch_steps or one_pass
        self.total_steps = config.steps or config.epochs * self.epoch_steps
        torch.manual_seed(config.seed)
        try:
            self.task = build_task(config, self.splits, process.device, self.total_steps, AMP_DTYPES[config.amp])
        except (RuntimeError, MemoryError) as error:
            text = " ".join(str(error).split())[:200]
            if not isinstance(error, MemoryError) and not re.search("alloc|memory|overflow", text):
                raise
            raise UserError(f"--model {config.model}: there is not memory enough to build it: {text}") from None

    def fit(
        self,
        on_step: Callable[[dict[str, float]], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train to the end and return one row of figures for each epoch.

        Args:
            on_step: called every ten steps and at the end of an epoch with ``step``, ``loss`` and ``images_per_s``.
            on_epoch: called with the row of each epoch, after its checkpoint is written.

        Raises:
            Interrupted: after Ctrl-C, SIGTERM or SIGHUP, when the state is saved.
            KeyboardInterrupt: after a second Ctrl-C, unless the state is being saved.
            UserError: a loss or weights that are not finite, an unreadable image, a full disk, another process that
                writes to ``out``. The checkpoint before is kept.
        """
        with ExitStack() as stack:
            with self.process.together():
                if self.out is not None and self.process.first:
                    stack.enter_context(claim(self.out))
            stack.enter_context(self._stop.on_signals())
            while self.step < self.total_steps:
                row = self._train_epoch(on_step)
                row |= self.evaluate()
                self.history.append(row)
                self.save()
                if on_epoch is not None:
                    on_epoch(row)
                if (number := self._asked_to_stop()) and self.step < self.total_steps:
                    raise Interrupted(number)
        return self.history

    def _asked_to_stop(self) -> int:
        """The signal that any of the processes received, or 0."""
        number = self.process.max(self._stop.signal)
        # Who was not asked itself ends all the same, and hears of it from the launcher while it does.
        self._stop.signal = self._stop.signal or number
        return number

    def _train_epoch(self, on_step) -> dict[str, Any]:
        number = self.step // self.epoch_steps
        last = min((number + 1) * self.epoch_steps, self.total_steps)
        steps = range(self.step, last)
        keys = [self.stream.key(step) for step in steps]
        batches = self.train_set.loader([self.stream[step] for step in steps], keys, self.config.workers)
        seconds: list[float] = []
        self.task.module.train()
        if self._mixing and 0 < self.config.mix_off_epoch <= number:
            self._stop_mixing()
        begin = seen = time.perf_counter()
        for done, batch in enumerate(batches, start=1):
            images, targets = image_batch(batch)
            images, targets = self._move(images), targets.to(self.process.device, non_blocking=True)
            start = time.perf_counter()
            values = self._train_step(images, targets)
            seconds.append(time.perf_counter() - start)
            self.sums = values if self.sums is None else self.sums + values
            look = done % _LOOK_EVERY == 0 or self.step == last
            if look:
                self._look(values, on_step, time.perf_counter() - seen, (done - 1) % _LOOK_EVERY + 1)
                seen = time.perf_counter()
            # Processes have to agree on the step to stop after, for which those on GPUs would wait for the GPU.
            ask = look or self.process.world == 1 or self.process.device.type == "cpu"
            if ask and self.step < last and (number_asked := self._asked_to_stop()):
                self.save()
                raise Interrupted(number_asked)
        wall = time.perf_counter() - begin
        means = (self.sums / (last - number * self.epoch_steps)).tolist()
        self.sums = None
        # Launches on a GPU return before the work is done: only the sum has a meaning there.
        step_seconds = wall / len(steps) if self.process.device.type == "cuda" else statistics.median(seconds)
        return {
            "epoch": number + 1,
            "step": last,
            "lr": self.config.lr * self._factor(last - 1),
            "loss": means[0],
            **dict(zip(self.task.parts, means[1:], strict=True)),
            "images_per_s": len(steps) * self.config.batch_size * self.process.world / wall,
            "ms_per_step": 1e3 * step_seconds,
        }

    def _train_step(self, images: Tensor, targets: Tensor) -> Tensor:
        torch.manual_seed(self.stream.key(self.step))
        factor = self._factor(self.step)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        losses = self._graphed(images, targets) if self.config.cuda_graph else self._eager(images, targets)
        self.step += 1
        return torch.stack([loss.detach().float() for loss in losses])

    def _eager(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        scale = self.scaler.scale(torch.ones((), device=images.device)) if self.scaler.is_enabled() else None
        with self._autocast:
            if self._mixing:
                losses = self.task.loss(self.model, images, targets, scale)
            else:
                losses = self.task.unmixed_loss(self.model, images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses[0]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.after_step(self.step)
        if self.process.world > 1:
            # Each process normalises by its own batches; one model is evaluated and saved.
            self.process.mean_(checkpoint.running_statistics(self.task.module))
        return losses

    def _graphed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        batch = self.task.plain(images, targets).x, targets
        if self._replay is None:
            amp = AMP_DTYPES[self.config.amp]
            self._replay = GraphedStep(self.task.module, self.optimizer, *batch, amp_dtype=amp)
        return self._replay(*batch)[:5]

    def _look(self, values: Tensor, on_step, seconds: float, steps: int) -> None:
        loss = values[0].item()
        with self.process.together():
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {self.step}: try a lower --lr")
        if on_step is not None:
            images = steps * self.config.batch_size * self.process.world
            on_step({"step": self.step, "loss": loss, "images_per_s": images / seconds})

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy (percent) on the test images, with the head that the method documents."""
        module = self.task.module.eval()
        numbers = torch.arange(self.process.rank, len(self.splits.test), self.process.world)
        totals = torch.zeros(3, dtype=torch.float64, device=self.process.device)
        for batch in self.splits.test.loader(list(numbers.split(_EVAL_BATCH)), None, self.config.workers):
            images, targets = image_batch(batch)
            images, targets = self._move(images), targets.to(self.process.device)
            with self._autocast:
                logits = module(self.task.plain(images, targets).x).float()
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            hits = (logits.argmax(dim=1) == targets).sum()
            totals += torch.stack([loss.double(), hits.double(), torch.full_like(loss, len(targets)).double()])
        loss, hits, count = self.process.sum(totals).tolist()
        return {"test_loss": loss / count, "test_accuracy": 100 * hits / count}

    @torch.no_grad()
    def mix(self, numbers: Tensor, lam: Tensor | float | None, index: Tensor) -> tuple[Tensor, Mixed]:
        """Mix training images (without augmentation) as training does now, for pictures and measures.

        Args:
            numbers: ``(N,)`` numbers of images of the training set.
            lam: weight of the own image, ``()`` or ``(N,)``; None draws it.
            index: ``(N,)`` partners among these.

        Returns:
            The originals ``(N, C, H, W)`` uint8 and the mix.
        """
        images, _ = image_batch(next(iter(self.train_set.loader([numbers], None, 0))))
        return images, self.task.mix(self._move(images), lam, index.to(self.process.device))

    def save(self) -> None:
        """Write the checkpoint and the CSV log, if there is a folder for them.

        Raises:
            UserError: weights that are not finite, or a file that cannot be written; the checkpoint before is kept.
        """
        with self.process.together():
            if not checkpoint.finite(checkpoint.trained_tensors(self.task.module, self.optimizer)):
                last = self._saved_step
                kept = "nothing was saved" if last is None else f"the checkpoint of step {last} stays"
                raise UserError(f"the weights are not finite after step {self.step}: try a lower --lr; {kept}")
            if self.out is not None and self.process.first:
                self._write()
        self._saved_step = self.step

    def _write(self) -> None:
        state = {
            "config": asdict(self.config),
            "world": self.process.world,
            "class_names": list(self.splits.classes),
            "image_size": self.splits.image_size,
            "mean": list(self.splits.mean),
            "std": list(self.splits.std),
            "data": self._fingerprint,
            "epoch_steps": self.epoch_steps,
            "total_steps": self.total_steps,
            "step": self.step,
            "module": self.task.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "sums": self.sums,
        }
        with self._stop.held():
            save_checkpoint(self.out / CHECKPOINT, state)
            if self.history:
                write_csv(self.out / "log.csv", self.history)

    def load(self, state: dict[str, Any], allow_changed_data: bool = False) -> None:
        """Go on from a checkpoint's state, which is checked before any of it is used.

        Args:
            state: from :func:`resume_state`.
            allow_changed_data: go on though the data are others than those the checkpoint was made with.

        Raises:
            UserError: a state that is damaged, of another run, or of other data.
        """
        with self.process.together():
            try:
                self._check(state, allow_changed_data)
                self._restore(state)
            except (checkpoint.Damaged, KeyError, TypeError, ValueError, RuntimeError) as error:
                place = f"{self.out / CHECKPOINT}: " if self.out is not None else ""
                text = " ".join(str(error).split())[:200]
                raise UserError(f"{place}damaged checkpoint, or one of another run: {text}") from None

    def _restore(self, state: dict[str, Any]) -> None:
        self.task.module.load_state_dict(state["module"])
        # The settings in the groups are the run's; only the momenta come from the checkpoint.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.sums = state["step"], list(state["history"]), state["sums"]
        if self.sums is not None:
            self.sums = self.sums.to(self.process.device)
        self._saved_step = self.step

    def _check(self, state: dict[str, Any], allow_changed_data: bool) -> None:
        needed = ("step", "module", "optimizer", "scaler", "history", "sums")
        for name in needed:
            checkpoint.expect(name in state, f"it has no {name}")
        # Checkpoints of older versions say nothing of the data.
        if "data" in state and self.process.first and not allow_changed_data:
            checkpoint.check_data(state["data"], self._fingerprint)
        for name, own in (("epoch_steps", self.epoch_steps), ("total_steps", self.total_steps)):
            saved = state.get(name, own)
            checkpoint.expect(saved == own, f"its {name} are {str(saved)[:40]}, those of its settings {own}")
        checkpoint.check_progress(state, self.epoch_steps, self.total_steps, ["loss", *self.task.parts])
        checkpoint.check_module(self.task.module, state["module"])
        checkpoint.check_optimizer(self.optimizer, state["optimizer"], started=state["step"] > 0)
        checkpoint.check_scaler(self.scaler, state["scaler"])
        counted = state["module"].get("_extra_state")
        checkpoint.expect(counted in (None, {"step": state["step"]}), "its parts are of different steps")

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return checkpoint.fingerprint(self.splits)

    def _compile(self) -> None:
        if self.config.method == "automix":
            self.task.module.compile_encoders()
        else:
            self.task.module.compile()

    def _wrap(self, module: nn.Module, find_unused: bool) -> nn.Module:
        if self.process.world == 1:
            return module
        devices = [self.process.device] if self.process.device.type == "cuda" else None
        wrapper = nn.parallel.DistributedDataParallel
        # The option was renamed after PyTorch 2.11, and the old name warns.
        names = ("forward_sync_buffers", "broadcast_buffers")
        sync = next(name for name in names if name in inspect.signature(wrapper).parameters)
        return wrapper(module, devices, find_unused_parameters=find_unused, **{sync: False})

    def _stop_mixing(self) -> None:
        """From now on the model is trained plainly, by a wrapper of its own that knows which parameters that takes."""
        self._mixing = False
        self.model = None  # first lets go of the parameters
        self.model = self._wrap(self.task.unmixed(), find_unused=False)

    def _move(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return images.to(self.process.device, non_blocking=True).contiguous(memory_format=layout)

    def _factor(self, step: int) -> float:
        """Of the learning rates: linear warm-up, times half a cosine over the whole run."""
        warm = min(1.0, (step + 1) / self.config.warmup) if self.config.warmup else 1.0
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))


def resume_state(folder: Path) -> tuple[Config, dict[str, Any]]:
    """Settings and state of the run in ``folder``.

    Raises:
        UserError: no checkpoint there, or a damaged one.
    """
    path = folder / CHECKPOINT
    state = load_checkpoint(path)
    config = checkpoint.settings(path, state)
    if not checkpoint.is_count(state.get("world")):
        raise UserError(f"{path}: damaged checkpoint, it does not say how many processes wrote it")
    return config, state


class _Stop:
    """The wish that a run ends after the current step, which signals express."""

    def __init__(self) -> None:
        self.signal = 0  # the first one received
        self._held = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGHUP ask for a stop after the current step, a second Ctrl-C stops at once."""
        self.signal = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in STOPPING}
        # What `nohup` had ignored stays so. A shell without job control ignores SIGINT for all that it starts.
        heard = [number for number in STOPPING if number == signal.SIGINT or previous[number] is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            # The launcher ends the other processes as soon as the first has ended: let them come to their own end.
            ending = self.signal and _launched()
            for number in heard:
                signal.signal(number, signal.SIG_IGN if ending else previous[number])

    @contextmanager
    def held(self) -> Iterator[None]:
        """While files are written a second Ctrl-C, too, waits."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # Under `torchrun` Ctrl-C comes twice: from the terminal, and passed on by the launcher.
        if self.signal and number == signal.SIGINT and not _launched() and not self._held:
            raise KeyboardInterrupt
        self.signal = self.signal or number


def _launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
