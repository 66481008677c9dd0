"""A training step whose schedules are tensors trains as the plain loop does, and so does its CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from automix_support import TinyNet, error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmix.train import AutoMix, Config, GraphedStep, Trainer, graph, schedules
from fastmix.train.graph import WARM_UP, TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 8
RATES = (0.1, 0.03)
VARIANTS = [{}, {"gen_every": 2}, {"sequential": True}, {"teacher_buffers": "own"}, {"per_sample": True}]


def batch(seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    images, targets = torch.randn(8, 3, 16, 16, generator=g), torch.randint(0, 10, (8,), generator=g)
    return images.to(device), targets.to(device)


def build(device: str = "cpu", **options) -> tuple[AutoMix, torch.optim.SGD]:
    torch.manual_seed(0)
    changing = dict(momentum=schedules.Linear(0.9, 1.0, STEPS), gamma=schedules.Linear(3.0, 0.0, STEPS))
    automix = AutoMix(TinyNet(), 10, **changing, **options).to(device)
    groups = automix.param_groups(*RATES)
    return automix, torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-3)


class Loop:
    """The training loop as written by hand."""

    def __init__(self, automix: AutoMix, optimizer: torch.optim.Optimizer, *_example: Tensor) -> None:
        self.automix, self.optimizer = automix, optimizer

    def __call__(self, images: Tensor, targets: Tensor):
        self.optimizer.zero_grad()
        out = self.automix(images, targets)
        out.loss.backward()
        self.optimizer.step()
        self.automix.update_teacher()
        return out


def train(step_type: type, steps: int = STEPS, **options) -> tuple[AutoMix, Tensor]:
    """A few steps with falling learning rates; the module and (steps, 5) losses."""
    automix, optimizer = build(**options)
    step = step_type(automix, optimizer, *batch(0)[: 1 if step_type is TrainStep else 2])
    losses = []
    for number in range(steps):
        torch.manual_seed(number)
        for group, rate in zip(optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate * (1 - number / steps)
        out = step(*batch(number))
        losses.append(torch.stack([part.detach() for part in out[:5]]))
    assert [group["lr"] for group in optimizer.param_groups] == [rate / steps for rate in RATES]
    return automix, torch.stack(losses)


def assert_same_training(found: tuple, expected: tuple, tolerance: float) -> None:
    assert found[0].step == expected[0].step == STEPS
    assert error(found[1], expected[1]) < tolerance
    state = expected[0].state_dict()
    for name, value in found[0].state_dict().items():
        if name != "_extra_state":
            # Absolute too: the query bias all but cancels in the softmax, so its gradient is mostly rounding.
            torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_schedules_as_tensors_train_like_numbers(options):
    assert_same_training(train(TrainStep, **options), train(Loop, **options), 1e-5)


def test_the_first_step_differs_in_the_teachers_rounding_alone():
    (live, _), (plain, _) = (train(kind, steps=1) for kind in (TrainStep, Loop))
    for name, value in plain.state_dict().items():
        if name.startswith(("student", "mix_block")):
            assert torch.equal(live.state_dict()[name], value), name
    for one, two in zip(live.teacher.parameters(), plain.teacher.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2.4e-7, atol=1e-9)


def test_every_schedule_is_followed():
    values = {"gamma": 2.0, "momentum": 0.5}
    torch.manual_seed(0)
    automix = AutoMix(
        TinyNet(), 10, gamma=lambda _: values["gamma"], momentum=lambda _: values["momentum"], mask_margin=0.0
    )
    optimizer = torch.optim.SGD(automix.param_groups(0.1), momentum=0.9)
    images, targets = batch(0)
    step = TrainStep(automix, optimizer, images)

    def moved(module: nn.Module) -> float:
        before = [p.clone() for p in module.parameters()]
        torch.manual_seed(1)
        moved.out = step(images, targets)
        return max((p - old).abs().max().item() for p, old in zip(module.parameters(), before, strict=True))

    assert moved(automix.teacher) > 0 and moved.out.mask > 0
    values.update(gamma=0.0, momentum=1.0)
    assert moved(automix.teacher) == 0 and moved.out.mask == 0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert moved(automix.student) == moved(automix.mix_block) == 0
    optimizer.param_groups[1]["lr"] = 0.1
    assert moved(automix.student) == 0 < moved(automix.mix_block)


def test_clipping_bounds_the_update():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    before = [p.clone() for p in model.parameters()]
    images, targets = torch.randn(6, 4), torch.arange(6) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(lambda x, y: 100 * F.cross_entropy(model(x), y), optimizer, images, max_norm=0.5)
    loss = step(images, targets)
    assert loss.shape == () and not loss.requires_grad
    moved = torch.stack([(p - old).norm() for p, old in zip(model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(0.5, rel=1e-4)


class Recorded:
    """Stands for a captured graph on the CPU: a replay runs the step again, but none of Python's counting."""

    def __init__(self, step: GraphedStep, images: Tensor, targets: Tensor) -> None:
        self.step, self.batch = step, (images, targets)
        self.losses: Tensor | None = None

    def replay(self) -> None:
        counted = self.step.loss.step
        losses = self.step._body(*self.batch)
        self.step.loss.step = counted
        self.losses = losses if self.losses is None else self.losses.copy_(losses)

    def clone(self) -> Tensor:
        return self.losses.clone()


@pytest.fixture
def captures(monkeypatch) -> list[Recorded]:
    """GraphedStep on the CPU, with its captures recorded."""
    made: list[Recorded] = []

    def capture(self, images, targets):
        made.append(Recorded(self, images, targets))
        return made[-1], made[-1]

    monkeypatch.setattr(graph, "_check", lambda *_args: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(GraphedStep, "_aside", GraphedStep._body)
    monkeypatch.setattr(GraphedStep, "_capture", capture)
    return made


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_replays_follow_batches_and_schedules(options, captures):
    assert_same_training(train(GraphedStep, **options), train(Loop, **options), 1e-5)
    # With gen_every=2 half of the steps are of each kind: each is warmed up, then captured.
    kinds = options.get("gen_every", 1)
    assert len(captures) == kinds and WARM_UP * kinds < STEPS
    assert all(recorded.batch == captures[0].batch for recorded in captures)


def test_the_trainer_replays_steps(captures):
    pytest.importorskip("sklearn")
    config = Config(model="resnet10", width=2, batch_size=8, labels_per_class=3, feature="layer2", steps=6, threads=1)
    runs = [Trainer(config), Trainer(config)]
    runs[1].config = replace(runs[1].config, cuda_graph=True)
    rows = [run.fit()[-1] for run in runs]
    assert len(captures) == 1
    state = runs[0].task.module.state_dict()
    for name, value in runs[1].task.module.state_dict().items():
        if name != "_extra_state":
            assert error(value, state[name]) < 1e-4, name
    for part in ("loss", "cls", "mix", "gen", "mask", "test_loss"):
        assert rows[1][part] == pytest.approx(rows[0][part], rel=1e-4)


def test_losses_of_a_replay_outlive_the_next(captures):
    automix, optimizer = build()
    step = GraphedStep(automix, optimizer, *batch(0))
    outs = [step(*batch(number)) for number in range(WARM_UP + 3)]
    kept = [out.loss.item() for out in outs]
    step(*batch(9))
    assert [out.loss.item() for out in outs] == kept and len(set(kept)) == len(kept)
    assert outs[-1].mix_draw is None and not outs[-1].loss.requires_grad


def test_calls_that_cannot_be_replayed(captures):
    automix, optimizer = build()
    images, targets = batch(0)
    step = GraphedStep(automix, optimizer, images, targets)
    with pytest.raises(ValueError, match=r"images must be float32 of shape \(8, 3, 16, 16\) on cpu, got .*\(4, 3"):
        step(images[:4], targets[:4])
    with pytest.raises(ValueError, match=r"images must be float32 .* got float64"):
        step(images.double(), targets)
    with pytest.raises(ValueError, match=r"targets must be int64 .* got int32"):
        step(images, targets.int())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="outside autocast"):
        step(images, targets)
    automix.eval()
    with pytest.raises(ValueError, match=r"call \.train\(\) first"):
        step(images, targets)
    with pytest.raises(TypeError, match="loss must return a scalar tensor, got tuple"):
        GraphedStep(lambda x, y: (x.sum(),), optimizer, images, targets)(images, targets)
    assert automix.step == 0


def test_what_cannot_be_captured_is_named():
    automix, optimizer = build()
    with pytest.raises(ValueError, match="GraphedStep: images and targets must be on one CUDA device, got cpu and cpu"):
        GraphedStep(automix, optimizer, *batch(0))
    with FakeTensorMode():
        images, targets = torch.zeros(8, 3, 16, 16, device="cuda"), torch.zeros(8, device="cuda").long()
    fused = torch.optim.SGD(automix.param_groups(0.1), fused=True)
    for made, options, message in (
        (fused, {"amp_dtype": torch.float16}, "needs a GradScaler"),
        (fused, {"generator": torch.Generator()}, "generator must be on cuda:0, got cpu"),
        (optimizer, {}, "build SGD with fused=True, others with capturable=True, got SGD without"),
        (torch.optim.AdamW(automix.parameters()), {}, "got AdamW without"),
        (torch.optim.Adagrad(automix.parameters()), {}, "got Adagrad without"),
    ):
        with pytest.raises(ValueError, match=message):
            GraphedStep(automix, made, images, targets, **options)


@pytest.mark.gpu
def test_adamw_is_captured_and_follows_its_learning_rate():
    trained = []
    for kind in (Loop, GraphedStep):
        automix, _ = build("cuda")
        groups = automix.param_groups(1e-3, mix_lr=3e-4)
        optimizer = torch.optim.AdamW(groups, capturable=kind is GraphedStep)
        step = kind(automix, optimizer, *batch(0, "cuda"))
        for number in range(STEPS):
            torch.manual_seed(number)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - number / STEPS)
            step(*batch(number, "cuda"))
        trained.append(torch.cat([p.detach().flatten() for p in automix.student.parameters()]))
    # A step of Adam is as long for noise as for a gradient: the tolerance is a part of one step.
    torch.testing.assert_close(*trained, rtol=1e-2, atol=3e-4)
