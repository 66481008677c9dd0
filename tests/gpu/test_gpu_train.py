"""Training on a GPU: no method and no step makes the host wait, and a captured step trains like an eager one."""

from __future__ import annotations

import pytest
import torch
from automix_support import TinyNet
from support import capture, no_host_wait
from torch import Tensor

from fastmix.methods import METHODS, MODES, MixMethod, create
from fastmix.train import AutoMix
from fastmix.train.graph import GraphedStep, TrainStep

pytestmark = pytest.mark.gpu
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SETTINGS = {
    "default": {},
    "per sample": {"per_sample": True, "mask_loss_per_sample": True},
    "sequential": {"sequential": True},
    "paper": {"convention": "paper", "mode": "bicubic"},
    "transposed": {"convention": "transposed"},
    "own buffers": {"teacher_buffers": "own", "truncate_teacher": False},
    "economical": {"gen_every": 2, "clean_loss": False},
}


def bytes_and_labels(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return x.cuda(), torch.randint(0, 10, (n,), generator=generator).cuda()


def needed(method: MixMethod, n: int) -> dict:
    """What a call needs; the layer of Manifold Mixup is drawn on the host."""
    if method.needs == "features":
        return {"saliency": torch.rand(n, 8, 4, 4, device="cuda")}
    return {"layer": "input"} if method.needs == "model" else {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "puzzlemix"])
def test_no_method_makes_the_host_wait(name, mode):
    method = create(name, mode=mode, normalize=NORMALIZE, dtype=torch.bfloat16)
    (x, y), extra = bytes_and_labels(), needed(method, 8)
    masks = torch.randint(0, 9, (8, 32, 32), device="cuda")

    def use() -> None:
        batch = method(x, y, **extra)
        logits = batch.x.mean((2, 3)).repeat(1, 4).requires_grad_()
        batch.loss(logits, smoothing=0.1).backward()
        batch.soft(12)
        batch.accuracy(logits)
        batch.apply(masks)
        method(x, y, lam=0.3, **extra)

    use()
    with no_host_wait():
        use()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("none", "puzzlemix")])
def test_a_captured_method_draws_anew_at_each_replay(name, mode):
    method, (x, y) = create(name, mode=mode, normalize=NORMALIZE, dtype=torch.float32), bytes_and_labels(64)
    extra = needed(method, 64)

    def use() -> list[Tensor]:
        batch = method(x, y, **extra)
        return [batch.lam, batch.index[-64:], batch.x]

    graph, found = capture(use)
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append([tensor.clone() for tensor in found])
        lam, index, mixed = seen[-1]
        assert torch.equal(index.sort().values, torch.arange(64, device="cuda"))
        assert ((lam >= 0) & (lam <= 1)).all() and mixed.isfinite().all()
    # The number of attentive cells is fixed.
    fixed = 1 if name == "attentivemix" else 0
    for first, *others in list(zip(*seen, strict=True))[fixed:]:
        assert any(not torch.equal(first, other) for other in others)


def small_automix(**options) -> tuple[AutoMix, torch.optim.Optimizer]:
    torch.manual_seed(0)
    automix = AutoMix(TinyNet(), 10, **{"total_steps": 100, **options}).cuda().train()
    automix.to(memory_format=torch.channels_last)
    return automix, torch.optim.SGD(automix.param_groups(lr=0.05), momentum=0.9, fused=True)


def batch(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 32, 32, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (n,), generator=generator).cuda()


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_automix_step_never_makes_the_host_wait(name, amp):
    (automix, optimizer), (images, targets) = small_automix(**SETTINGS[name]), batch()

    def step(**options) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp is not None):
            out = automix(images, targets, **options)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        automix.update_teacher()

    for _ in range(2):
        step()
    with no_host_wait():
        for _ in range(2):
            step()
        step(lam=(torch.full((), 0.3, device="cuda"), 0.6))


@pytest.fixture
def same_sums():
    """Convolutions that add in a fixed order."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_captured_automix_step_trains_like_an_eager_one(name, amp, same_sums):
    trained, losses = [], []
    for kind in (TrainStep, GraphedStep):
        automix, optimizer = small_automix(**SETTINGS[name])
        generator = torch.Generator("cuda").manual_seed(5)
        given = (batch()[0],) if kind is TrainStep else batch()
        step = kind(automix, optimizer, *given, amp_dtype=amp, generator=generator)
        losses.append(torch.stack([torch.stack(step(*batch(seed=seed))[:5]) for seed in range(12)]))
        trained.append(dict(automix.state_dict()))
    assert losses[0].isfinite().all()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    for key, eager in trained[0].items():
        if isinstance(eager, Tensor):
            torch.testing.assert_close(
                trained[1][key], eager, rtol=1e-2, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}"
            )


def test_a_captured_mixup_step_trains_like_an_eager_one(same_sums):
    weights = []
    for kind in (TrainStep, GraphedStep):
        torch.manual_seed(0)
        model, mixup, (images, targets) = TinyNet().cuda(), create("mixup"), batch()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=True)

        def loss(x: Tensor, y: Tensor, model=model, mixup=mixup) -> Tensor:
            mixed = mixup(x, y)
            return mixed.loss(model(mixed.x))

        torch.cuda.manual_seed(5)
        step = kind(loss, optimizer, *((images,) if kind is TrainStep else (images, targets)))
        for seed in range(8):
            step(*batch(seed=seed))
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=1e-4)


def test_replays_draw_anew_and_follow_the_schedules():
    automix, optimizer = small_automix(
        momentum=lambda step: float(step < 12), gamma=lambda step: float(step >= 8), mask_margin=0.0
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    images, targets = batch()
    step = GraphedStep(automix, optimizer, images, targets)
    outs = [step(images, targets) for _ in range(10)]
    assert len({out.cls.item() for out in outs[4:]}) == 1, "nothing but the mixes changes while the rate is 0"
    assert len({out.mix.item() for out in outs[4:]}) == 6 and len({out.gen.item() for out in outs[4:]}) == 6
    assert all(out.mask == 0 for out in outs[:8]) and all(out.mask > 0 for out in outs[8:])
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    before = automix.student.mix.weight.clone()
    step(images, targets)
    step(images, targets)
    assert not torch.equal(automix.student.mix.weight, before)
    assert torch.equal(automix.teacher.mix.weight, before), "momentum 1 keeps the teacher"
    step(images, targets)
    # Momentum 0 copies the student.
    torch.testing.assert_close(automix.teacher.mix.weight, automix.student.mix.weight.detach())


def test_a_replay_never_makes_the_host_wait():
    (automix, optimizer), (images, targets) = small_automix(gen_every=2), batch()
    step = GraphedStep(automix, optimizer, images, targets, amp_dtype=torch.bfloat16)
    for _ in range(10):
        step(images, targets)
    with no_host_wait():
        for _ in range(4):
            step(images, targets)
