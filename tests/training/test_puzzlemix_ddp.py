"""PuzzleMix's step under DistributedDataParallel: two gloo processes on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from automix_support import TinyNet, error
from torch.nn.parallel import DistributedDataParallel

from fastmix.methods import PuzzleMix
from fastmix.train import PuzzleMixStep

CLEAN = (0.0, 1.0)
LAM, INDEX = torch.tensor([0.3, 0.6, 0.5, 0.8]), torch.tensor([1, 2, 3, 0])


def build(clean_lam: float) -> PuzzleMixStep:
    torch.manual_seed(0)
    return PuzzleMixStep(TinyNet(width=4), PuzzleMix(blocks=4), clean_lam)


def gradients(model, step: PuzzleMixStep, rank: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    images, targets = torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 10, (4,), generator=g)
    model(images, targets, lam=LAM, index=INDEX).loss.backward()
    return {name: p.grad for name, p in step.named_parameters()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for clean_lam in CLEAN:
        step = build(clean_lam)
        model = DistributedDataParallel(step, broadcast_buffers=False)
        torch.save(gradients(model, step, rank), f"{folder}/{clean_lam}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("ddp"))
    mp.spawn(worker, (path,), nprocs=2)
    return path


@pytest.mark.parametrize("clean_lam", CLEAN)
def test_gradients_are_the_mean_over_processes(folder, clean_lam):
    alone = [gradients(step, step, rank) for rank, step in enumerate((build(clean_lam), build(clean_lam)))]
    for rank in range(2):
        together = torch.load(f"{folder}/{clean_lam}-{rank}.pt")
        assert together.keys() == alone[0].keys()
        for name, grad in together.items():
            assert error(grad, (alone[0][name] + alone[1][name]) / 2) < 1e-5, name
