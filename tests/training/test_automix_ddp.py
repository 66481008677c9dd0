"""AutoMix under DistributedDataParallel: two gloo processes on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from automix_support import TinyNet, error
from torch.nn.parallel import DistributedDataParallel

from fastmix.train import AutoMix

CASES = {
    "plain": (dict(), dict()),
    "static_graph": (dict(), dict(static_graph=True)),
    "sequential": (dict(sequential=True), dict()),
    "gen_every": (dict(gen_every=2), dict(find_unused_parameters=True)),
    "no_clean_loss": (dict(clean_loss=False), dict()),
}
STEPS = 3
DRAWS = (torch.tensor(0.3), torch.tensor(0.6)), (torch.tensor([1, 2, 3, 0]), torch.tensor([3, 2, 1, 0]))


def build(**options) -> AutoMix:
    torch.manual_seed(0)
    return AutoMix(TinyNet(width=4), 10, momentum=0.8, **options)


def batch(rank: int, step: int):
    g = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 10, (4,), generator=g)


def train(model, automix: AutoMix, rank: int) -> dict[str, torch.Tensor]:
    """A few steps; returns the first step's gradients."""
    optimizer = torch.optim.SGD(automix.param_groups(0.05), momentum=0.9)
    first = {}
    for step in range(STEPS):
        out = model(*batch(rank, step), lam=DRAWS[0], index=DRAWS[1])
        optimizer.zero_grad()
        out.loss.backward()
        first = first or {n: p.grad.clone() for n, p in automix.named_parameters() if p.grad is not None}
        optimizer.step()
        automix.update_teacher()
    return first


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, (options, wrapping) in CASES.items():
        automix = build(**options)
        model = DistributedDataParallel(automix, broadcast_buffers=False, **wrapping)
        gradients = train(model, automix, rank)
        torch.save((gradients, automix.state_dict()), f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("name", CASES)
def test_ranks_agree_and_gradients_are_the_mean(folder, name):
    (gradients_0, state_0), (gradients_1, state_1) = (torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1))
    for key, value in state_0.items():
        if key == "_extra_state":
            assert value == state_1[key] == {"step": STEPS}
        elif "running_" not in key:
            assert torch.equal(value, state_1[key]), key
    teacher = [key for key in state_0 if key.startswith("teacher.") and key.endswith("weight")]
    fresh = build(**CASES[name][0]).state_dict()
    trained = [key for key in teacher if "one_hot" not in key or name != "no_clean_loss"]
    assert trained and all(not torch.equal(state_0[key], fresh[key]) for key in trained)

    single = [build(**CASES[name][0]) for _ in range(2)]
    alone = [train_once(automix, rank) for rank, automix in enumerate(single)]
    assert gradients_0.keys() == gradients_1.keys() == alone[0].keys()
    for key, value in gradients_0.items():
        assert torch.equal(value, gradients_1[key])
        assert error(value, (alone[0][key] + alone[1][key]) / 2) < 1e-5, key


def train_once(automix: AutoMix, rank: int) -> dict[str, torch.Tensor]:
    automix(*batch(rank, 0), lam=DRAWS[0], index=DRAWS[1]).loss.backward()
    return {n: p.grad for n, p in automix.named_parameters() if p.grad is not None}
