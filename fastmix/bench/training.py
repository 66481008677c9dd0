"""Whole training steps: what a method costs on top of plain training, the number a user decides by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fastmix.bench.cases import Case, Entry
from fastmix.bench.provider import FASTMIX, Provider
from fastmix.train.config import METHODS, Config
from fastmix.train.tasks import build_task

PLAIN = "none"
CLASSES = 100
# (batch, image side, width): ResNet-18 of this many channels in its first stage.
SIZES = {"resnet18-cifar": (50, 32, 16), "resnet18-tiny": (50, 64, 16)}


def entries() -> Iterator[Entry]:
    for size, (batch, side, width) in SIZES.items():
        make = partial(step_case, f"step/{size}", "resnet18", batch, side, width, METHODS)
        yield Entry(f"step/{size}", make)


def step_case(
    name: str,
    model: str,
    batch: int,
    side: int,
    width: int | None,
    methods: Iterable[str],
    generator: torch.Generator,
) -> Case:
    """Every method's step, from uint8 images to updated weights, on the same batch; plain training first."""
    device = generator.device
    images = torch.randint(0, 256, (batch, 3, side, side), generator=generator, device=device, dtype=torch.uint8)
    targets = torch.randint(0, CLASSES, (batch,), generator=generator, device=device)
    names = [PLAIN, *(method for method in methods if method != PLAIN)]
    providers = tuple(
        Provider(FASTMIX + ("plain" if method == PLAIN else method), _step(method, model, side, width, batch))
        for method in names
    )
    return Case(name, (images, targets), None, None, agree=_finite, records=True, providers=providers)


class _Shapes:
    """What a task asks of a data set."""

    in_channels = 3
    classes = tuple(map(str, range(CLASSES)))
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, side: int) -> None:
        self.image_size = side
        self.train = self.test = TensorDataset()


def _step(method: str, model: str, side: int, width: int | None, batch: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One step of training; the model is made at the first call."""

    @cache
    def parts(device: torch.device) -> tuple:
        torch.manual_seed(0)
        config = Config(data="random", method=method, model=model, width=width, batch_size=batch, steps=1000).resolved()
        task = build_task(config, _Shapes(side), device, 1000, None)
        task.module.train()
        return task, torch.optim.SGD(task.param_groups(), lr=config.lr, momentum=0.9, weight_decay=5e-4)

    def step(images: Tensor, targets: Tensor) -> Tensor:
        task, optimizer = parts(images.device)
        loss = task.loss(task.module, images, targets, None)[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        task.after_step(1)
        return loss.detach()

    return step


def _finite(loss: Tensor, case: Case) -> str:
    return "" if math.isfinite(loss.item()) else f"the loss is {loss.item()}"
