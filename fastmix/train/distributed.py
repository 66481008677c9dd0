"""The process group of `torchrun`, or a single process that needs none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastmix.train.errors import UserError

Item = TypeVar("Item")


class FailedElsewhere(UserError):
    """Another process of the run failed and says why; this one ends without a word."""


@dataclass(frozen=True)
class Process:
    """This process among those of a run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value

    def max(self, value: int) -> int:
        """The greatest of all processes' numbers."""
        if self.world == 1:
            return value
        greatest = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(greatest, torch.distributed.ReduceOp.MAX)
        return int(greatest.item())

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace float32 tensors by their mean over all processes, in one message."""
        if self.world == 1 or not tensors:
            return
        joint = self.sum(torch.cat([tensor.flatten() for tensor in tensors])) / self.world
        for tensor, part in zip(tensors, joint.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in one process ends in all, so that none waits for it; one of those that failed says why.

        Messages inside may only be exchanged where all processes come to them or fail before.

        Raises:
            FailedElsewhere: nothing failed here, or a process of a lower rank says it.
        """
        error = None
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        told = error is None or isinstance(error, FailedElsewhere)
        speaker = self.world - self.max(0 if told else self.world - self.rank)
        if speaker == self.rank:
            raise error
        if speaker < self.world:
            raise FailedElsewhere(f"process {speaker} failed") from None

    def ended_elsewhere(self, error: Exception) -> bool:
        """Whether an error only tells that another process of the run has ended, which says why itself."""
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        return isinstance(error, FailedElsewhere) or (self.world > 1 and lost)

    def close(self) -> None:
        if self.world > 1:
            torch.distributed.destroy_process_group()


def usable_device(device: str, local: int = 0) -> torch.device:
    """The device named ``device``; a GPU without number is number ``local``, and ``auto`` a GPU where there is one.

    Raises:
        UserError: it cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device}: cannot be used: {str(error).splitlines()[0]}") from None
    return chosen


def join(device: str) -> Process:
    """Find the device and, under ``torchrun``, join the process group (NCCL on GPUs, Gloo on CPUs).

    Raises:
        UserError: the device cannot be used.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    chosen = usable_device(device, local)
    if world > 1:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return Process(torch.distributed.get_rank(), world, chosen)
    return Process(0, 1, chosen)


def current() -> Process:
    """This process of the group that was joined, or one alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Process(0, 1, torch.device("cpu"))
    on_gpu = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Process(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def split_work(items: Sequence[Item], work: Callable[[Sequence[Item]], dict[Item, Any]]) -> dict[Item, Any]:
    """What ``work`` finds about ``items``, in their order, each process doing a share: all get the same answer."""
    process = current()
    if process.world == 1:
        return work(items)
    parts: list[dict[Item, Any]] = [{}] * process.world
    torch.distributed.all_gather_object(parts, work(items[process.rank :: process.world]))
    found = {item: value for part in parts for item, value in part.items()}
    return {item: found[item] for item in items if item in found}
