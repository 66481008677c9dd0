"""What an AutoMix step costs on a GPU: against its own encoder passes, against a MixUp step, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastmix.bench.clock import Prepared, Timer
from fastmix.methods import MixUp
from fastmix.train import AutoMix
from fastmix.train.features import capture
from fastmix.train.graph import WARM_UP, GraphedStep, TrainStep
from fastmix.train.models import Classifier, ResNet

FEATURES = ("layer3", "layer1")
# Nine encoder forwards a step are the faithful one: three of each of the student's two passes, one and two of the
# teacher's.
SETTINGS: dict[str, dict] = {
    "faithful": {"truncate_teacher": False},
    "default": {},
    "sequential": {"sequential": True},
    "generator every 4th": {"gen_every": 4},
    "generator every 4th, no clean loss": {"gen_every": 4, "clean_loss": False},
}
WITH_PASSES = ("faithful", "default")
PASSES_OF = "passes alone: "
CLASSES = 200


@dataclass
class StepRow:
    """Cost of one training step: MixUp's, AutoMix's in some setting, or the encoder passes of one alone.

    `ms` is a replayed graph's, `eager_ms` that of the same step as Python runs it, `peak_mb` counts weights, optimiser
    state and activations.
    """

    step: str
    feature: str
    ms: float | None = None
    eager_ms: float | None = None
    peak_mb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Size:
    batch: int
    image: int
    width: int
    depths: tuple[int, ...]


FULL = Size(100, 64, 64, (2, 2, 2, 2))
TINY = Size(4, 16, 4, (1, 1, 1, 1))


Build = Callable[[bool], tuple[TrainStep, int]]
"""Makes a step anew, as a graph or not, and tells after how many steps it repeats."""


def measure_steps(timer: Timer, size: Size, feature: str, seconds: float) -> list[StepRow]:
    """MixUp's step, the AutoMix step of every setting, and the encoder passes alone of some; timed in turns."""
    rows, prepared = [], {}
    images, targets = _batch(timer.device, size)
    for row, build in _steps(timer.device, size, feature):
        rows.append(row)
        timer.clear()
        try:
            row.peak_mb = timer.extra_bytes(partial(_train, build, images, targets))[0] / 1e6
            for graphed in (False, True):
                step, period = build(graphed)
                for _ in range((WARM_UP + 2) * period):
                    step(images, targets)
                work = partial(_repeat, step, images, targets, period)
                prepared[row.step, graphed] = Prepared(work, period)
        except Exception as error:  # a step that cannot run is a row of the table, not the end of the run
            row.note = "does not run: " + (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    found = timer.rounds(prepared, seconds) if prepared else {}
    for row in rows:
        row.eager_ms, row.ms = (found[row.step, g].median if (row.step, g) in found else None for g in (False, True))
    return rows


def _steps(device: str, size: Size, feature: str) -> Iterator[tuple[StepRow, Build]]:
    def row(name: str, make: Callable, *args) -> tuple[StepRow, Build]:
        def build(graphed: bool) -> tuple[TrainStep, int]:
            torch.manual_seed(0)
            loss, parameters = make(device, size, *args)
            optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=True)
            images, targets = _batch(device, size)
            period = loss.gen_every if isinstance(loss, AutoMix) else 1
            if graphed and device == "cuda":
                return GraphedStep(loss, optimizer, images, targets, amp_dtype=torch.bfloat16), period
            return TrainStep(loss, optimizer, images, amp_dtype=torch.bfloat16), period

        return StepRow(name, feature), build

    yield row("MixUp", _mixup)
    for name, options in SETTINGS.items():
        yield row(name, _automix, feature, options)
    for name in WITH_PASSES:
        yield row(PASSES_OF + name, _passes, feature, SETTINGS[name])


def _batch(device: str, size: Size) -> tuple[Tensor, Tensor]:
    images = torch.randn(size.batch, 3, size.image, size.image, device=device)
    targets = torch.randint(0, CLASSES, (size.batch,), device=device)
    return images.contiguous(memory_format=torch.channels_last), targets


def _on(module: nn.Module, device: str) -> nn.Module:
    return module.to(device, memory_format=torch.channels_last).train()


def _mixup(device: str, size: Size) -> tuple[Callable, list]:
    encoder = ResNet(size.depths, width=size.width)
    model, mixup = _on(Classifier(encoder, encoder.num_features, CLASSES), device), MixUp()

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        batch = mixup(images, targets)
        return batch.loss(model(batch.x))

    return loss, list(model.parameters())


def _automix(device: str, size: Size, feature: str, options: dict) -> tuple[AutoMix, list]:
    encoder, example = ResNet(size.depths, width=size.width), torch.zeros(2, 3, size.image, size.image)
    automix = _on(AutoMix(encoder, CLASSES, feature, total_steps=1000, example=example, **options), device)
    return automix, automix.param_groups(lr=0.0)


def _passes(device: str, size: Size, feature: str, options: dict) -> tuple[Callable, list]:
    """The encoder and head passes of a step, on images that are already mixed, and the optimiser's step."""
    automix, parameters = _automix(device, size, feature, options)
    mixed = _batch(device, size)[0].requires_grad_()

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        mixed.grad = None
        with torch.no_grad():
            capture(automix.teacher.encoder, feature, images, stop=automix.truncate_teacher)
        student = automix.student(mixed.detach(), "mix"), automix.student(images, "one_hot")
        return sum(logits.float().mean() for logits in (*student, automix.teacher(mixed, "mix")))

    return loss, parameters


def _train(build: Build, images: Tensor, targets: Tensor) -> None:
    """A few eager steps of a model of their own."""
    step, period = build(False)
    _repeat(step, images, targets, 2 * period)


def _repeat(step: TrainStep, images: Tensor, targets: Tensor, count: int) -> None:
    for _ in range(count):
        step(images, targets)
