"""Training steps under FSDP2: two gloo processes on the CPU train what two replicas with averaged gradients do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from automix_support import TinyNet, error
from torch import Tensor, nn

from fastmix.methods import CutMix, PuzzleMix
from fastmix.train import AutoMix, PuzzleMixStep

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no fully_shard", allow_module_level=True)

STEPS = 2
LAM, INDEX = torch.tensor([0.3, 0.6, 0.5, 0.8]), torch.tensor([1, 2, 3, 0])
DRAWS = dict(lam=(torch.tensor(0.3), torch.tensor(0.6)), index=(INDEX, INDEX.flip(0)))


class CutMixed(nn.Module):
    """A classifier with its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        batch = CutMix()(images, targets, lam=0.4, index=INDEX, generator=torch.Generator().manual_seed(0))
        return batch.loss(self.model(batch.x))


def puzzlemix(clean_lam: float) -> PuzzleMixStep:
    return PuzzleMixStep(TinyNet(width=4), PuzzleMix(blocks=4), clean_lam)


def model_alone(step: nn.Module) -> None:
    fsdp.fully_shard(step.model)


def blocks_of_the_model(step: nn.Module) -> None:
    fsdp.fully_shard(step.model.layer2)
    fsdp.fully_shard(step.model)


def whole(step: nn.Module) -> None:
    fsdp.fully_shard(step)


def encoders(automix: AutoMix) -> None:
    for branch in (automix.student, automix.teacher):
        fsdp.fully_shard(branch.encoder)
    fsdp.fully_shard(automix)


def branches(automix: AutoMix) -> None:
    for part in (automix.student, automix.teacher, automix.mix_block):
        fsdp.fully_shard(part)
    fsdp.fully_shard(automix)


def blocks(automix: AutoMix) -> None:
    for branch in (automix.student, automix.teacher):
        # The feature lies inside of one block and before the other.
        fsdp.fully_shard(branch.encoder.layer3)
        fsdp.fully_shard(branch.encoder.layer4)
    fsdp.fully_shard(automix)


def automix(**options) -> AutoMix:
    return AutoMix(TinyNet(width=4), 10, "layer3.bn", momentum=0.8, **options)


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], None]]
CASES: dict[str, Case] = {
    "cutmix": (lambda: CutMixed(TinyNet(width=4)), model_alone),
    "cutmix-blocks": (lambda: CutMixed(TinyNet(width=4)), blocks_of_the_model),
    "puzzlemix": (lambda: puzzlemix(0.0), model_alone),
    "puzzlemix-clean": (lambda: puzzlemix(1.0), model_alone),
    "puzzlemix-clean-blocks": (lambda: puzzlemix(1.0), blocks_of_the_model),
    "puzzlemix-clean-step": (lambda: puzzlemix(1.0), whole),
    "automix": (automix, whole),
    "automix-encoders": (automix, encoders),
    "automix-branches": (automix, branches),
    "automix-blocks": (automix, blocks),
    "automix-gen-every": (lambda: automix(gen_every=2), encoders),
    "automix-sequential": (lambda: automix(sequential=True), whole),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name][0]()


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(4, 3, 16, 16, generator=g), torch.randint(0, 10, (4,), generator=g)


def loss(module: nn.Module, rank: int, step: int) -> Tensor:
    options = {AutoMix: DRAWS, PuzzleMixStep: dict(lam=LAM, index=INDEX)}
    given = next((value for kind, value in options.items() if isinstance(module, kind)), {})
    found = module(*batch(rank, step), **given)
    return found if isinstance(found, Tensor) else found.loss


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    groups = module.param_groups(0.05) if isinstance(module, AutoMix) else module.parameters()
    return torch.optim.SGD(groups, 0.05, momentum=0.9)


def after(module: nn.Module) -> None:
    if isinstance(module, AutoMix):
        module.update_teacher()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in CASES:
        module = build(name)
        CASES[name][1](module)
        steps, losses = optimizer(module), []
        for step in range(STEPS):
            value = loss(module, rank, step)
            steps.zero_grad()
            value.backward()
            steps.step()
            after(module)
            losses.append(value.detach())
        full = {
            key: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for key, p in module.named_parameters()
        }
        torch.save((full, losses), f"{folder}/{name}-{rank}.pt")
    torch.save(refusals(), f"{folder}/refusals-{rank}.pt")
    dist.destroy_process_group()


def refusals() -> list[str]:
    """What cannot work, and what is said about it."""
    said = []
    sharded = TinyNet(width=4)
    fsdp.fully_shard(sharded)
    parts = automix(sequential=True)
    encoders(parts)
    for call in (lambda: AutoMix(sharded, 10), lambda: parts(*batch(0, 0), **DRAWS), parts.export):
        try:
            call()
        except (TypeError, RuntimeError) as problem:
            said.append(f"{type(problem).__name__}: {problem}")
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("fsdp"))
    mp.spawn(worker, (path,), nprocs=2)
    return path


def replicas(name: str) -> tuple[list[nn.Module], list[list[Tensor]]]:
    """Two whole copies, each on its own batches, with averaged gradients."""
    modules = [build(name) for _ in range(2)]
    steps, losses = [optimizer(module) for module in modules], [[], []]
    for step in range(STEPS):
        for rank, module in enumerate(modules):
            module.zero_grad()
            value = loss(module, rank, step)
            value.backward()
            losses[rank].append(value.detach())
        for pair in zip(*(module.parameters() for module in modules), strict=True):
            if pair[0].grad is not None:
                mean = (pair[0].grad + pair[1].grad) / 2
                for p in pair:
                    p.grad = mean.clone()
        for rank, module in enumerate(modules):
            steps[rank].step()
            after(module)
    return modules, losses


@pytest.mark.parametrize("name", CASES)
def test_shards_train_as_replicas_do(folder, name):
    modules, losses = replicas(name)
    start = dict(build(name).named_parameters())
    for rank, module in enumerate(modules):
        full, found = torch.load(f"{folder}/{name}-{rank}.pt")
        for got, expected in zip(found, losses[rank], strict=True):
            assert error(got, expected) < 1e-5
        expected = dict(module.named_parameters())
        assert full.keys() == expected.keys()
        for key, value in full.items():
            assert error(value - start[key], (expected[key] - start[key]).detach()) < 1e-3, key


def test_what_cannot_work_says_so(folder):
    for rank in range(2):
        sharded, sequential, export = torch.load(f"{folder}/refusals-{rank}.pt")
        assert sharded.startswith("TypeError") and "apply fully_shard to the AutoMix module instead" in sharded
        assert sequential.startswith("RuntimeError") and "sequential=True parameters must be whole" in sequential
        assert export.startswith("RuntimeError") and "load its full state dict" in export
