"""The AutoMix step: the released step to rounding, its cheaper forms, schedules, inference, resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from automix_support import ROOT, SHARED, TinyEncoder, TinyNet, Vectors, error, from_released
from torch import Tensor, nn

from fastmix.bench import published_mix as published
from fastmix.nn import MixBlock
from fastmix.train import AutoMix, schedules
from fastmix.train.automix import HEADS, default_momentum
from fastmix.train.ema import ema_update

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = ["step1_cifar_style_f64", "step2_imagenet_style_lamcat_f64"]


def batch(n: int = 8, size: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=g, dtype=dtype), torch.randint(0, 10, (n,), generator=g)


def pair(n: int = 8, lam: tuple[float, float] = (0.3, 0.6), dtype: torch.dtype = torch.float32) -> dict:
    """Fixed draws (student's, generator's)."""
    index = torch.arange(n)
    return dict(lam=tuple(torch.tensor(value, dtype=dtype) for value in lam), index=(index.roll(1), index.flip(0)))


def build(seed: int = 0, net: Callable[[], nn.Module] = TinyNet, **options) -> AutoMix:
    torch.manual_seed(seed)
    return AutoMix(net(), 10, **options).train()


def gradients(automix: AutoMix) -> dict[str, Tensor]:
    return {name: p.grad for name, p in automix.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        assert error(got[name], expected[name]) <= tolerance, name


def backward(automix: AutoMix, images: Tensor, targets: Tensor, **options):
    automix.zero_grad()
    out = automix(images, targets, **options)
    out.loss.backward()
    return out


# The released step.


@pytest.mark.parametrize("sequential", [False, True], ids=["joint", "sequential"])
@pytest.mark.parametrize("name", STEPS)
def test_released_preset_agrees_with_the_released_step(name, sequential):
    vectors = Vectors(SHARED / f"{name}.npz")
    block = vectors.options["mix_block"]
    automix = AutoMix.released(
        TinyEncoder().double(),
        10,
        "relu3",
        lam_embed="qkv" if block["lam_concat"] else "none",
        mask_margin=block["mask_loss_margin"],
        sequential=sequential,
    )
    automix.load_state_dict({**from_released(vectors.group("init.")), "_extra_state": {"step": 0}})
    optimizer = torch.optim.SGD(automix.param_groups(0.1), momentum=0.9, weight_decay=1e-4)
    out = automix(
        vectors["x"].double(),
        vectors["y"],
        lam=(vectors["lam_bb"], vectors["lam_mb"]),
        index=(vectors["index_bb"], vectors["index_mb"]),
    )
    out.loss.backward()
    stored = dict(cls="loss_one_q", mix="loss_mix_q", gen="loss_mix_k", mask="mask_loss", loss="loss_total")
    for part, key in stored.items():
        assert error(getattr(out, part), vectors[key]) < 1e-9, part
    assert error(out.gen_draw.mixed, vectors["img_mix_mb"]) < 1e-9
    assert error(out.mix_draw.mixed, vectors["img_mix_bb"]) < 1e-9
    assert error(out.gen_draw.mask, vectors["mask_mb"][:, 0]) < 1e-9
    assert error(out.mix_draw.mask, vectors["mask_bb_raw"][:, 0]) < 1e-9
    assert_same(gradients(automix), from_released(vectors.group("grad.")), 1e-9)

    optimizer.step()
    automix.update_teacher()
    state = automix.state_dict()
    assert state.pop("_extra_state") == {"step": 1}
    assert_same(state, from_released(vectors.group("after.")), 1e-9)


class LiteralPipeline:
    """The four losses and the update written out one after another, with the published mixing."""

    def __init__(self, automix: AutoMix, lam_embed: str, gamma: float, margin: float, momentum: float) -> None:
        self.q, self.k = copy.deepcopy(automix.student), copy.deepcopy(automix.teacher)
        block = automix.mix_block
        self.block = published.PublishedMixBlock(block.in_channels, lam_embed=lam_embed).double()
        self.block.load_state_dict(
            {
                "query.conv.weight": block.query.weight.detach()[:, :, None, None],
                "query.conv.bias": block.query.bias.detach(),
                "value.weight": block.value.weight.detach()[:, :, None, None],
                "value.bias": block.value.bias.detach(),
            }
        )
        parameters = [*self.q.parameters(), *self.block.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        self.gamma, self.margin, self.momentum = gamma, margin, momentum

    def classify(self, branch: nn.Module, x: Tensor, head: str) -> Tensor:
        return getattr(branch, head)(branch.encoder(x).mean((2, 3)))

    def step(self, x: Tensor, y: Tensor, lam: tuple, index: tuple, lam_margin: float) -> list[Tensor]:
        def mixed_loss(logits, lam, index):
            return lam * F.cross_entropy(logits, y) + (1 - lam) * F.cross_entropy(logits, y[index])

        (lam_q, lam_k), (index_q, index_k) = (float(value) for value in lam), index
        with torch.no_grad():
            z = x
            for i in (1, 2, 3, 4):
                z_next = getattr(self.k.encoder, f"conv{i}")(z)
                z_next = getattr(self.k.encoder, f"relu{i}")(getattr(self.k.encoder, f"bn{i}")(z_next))
                feature, z = (z_next, z_next) if i <= 3 else (z, z_next)
        mask_k = self.block(feature, lam_k, index_k, 4)
        mask_q = self.block(feature, lam_q, index_q, 4).detach()
        if lam_q <= lam_margin or 1 - lam_q <= lam_margin:
            mask_q = torch.cat([torch.full_like(mask_q[:, :1], lam_q), torch.full_like(mask_q[:, :1], 1 - lam_q)], 1)
        x_k = published.published_blend(x, mask_k, index_k)
        x_q = published.published_blend(x, mask_q, index_q)
        gen = mixed_loss(self.classify(self.k, x_k, "mix"), lam_k, index_k)
        gap = self.gamma * published.published_mask_loss(mask_k, lam_k, self.margin)
        cls = F.cross_entropy(self.classify(self.q, x, "one_hot"), y)
        mix = mixed_loss(self.classify(self.q, x_q, "mix"), lam_q, index_q)
        self.optimizer.zero_grad()
        (cls + mix + gen + gap).backward()
        self.optimizer.step()
        for k, q in zip(self.k.parameters(), self.q.parameters(), strict=True):
            k.data = self.momentum * k.data + (1 - self.momentum) * q.data
        return [cls, mix, gen, gap]


@pytest.mark.parametrize("lam_embed", ["none", "qkv"])
def test_released_preset_follows_a_literal_pipeline_for_three_steps(lam_embed):
    torch.manual_seed(1)
    automix = AutoMix.released(
        TinyEncoder().double(), 10, "relu3", lam_embed=lam_embed, init_std=0.5, mask_margin=0.0, momentum=0.9
    )
    literal = LiteralPipeline(automix, lam_embed, gamma=0.1, margin=0.0, momentum=0.9)
    optimizer = torch.optim.SGD(automix.param_groups(0.1), momentum=0.9)
    for step, lam_q in enumerate((0.4, 0.05, 0.93)):  # the last two lie within lam_margin of an end
        x, y = batch(seed=step, dtype=torch.float64)
        draws = pair(lam=(lam_q, 0.7), dtype=torch.float64)
        out = automix(x, y, **draws)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        automix.update_teacher()
        expected = literal.step(x, y, **draws, lam_margin=0.08)
        for got, want in zip((out.cls, out.mix, out.gen, out.mask), expected, strict=True):
            assert error(got, want) < 1e-9
    assert_same(automix.student.state_dict(), literal.q.state_dict(), 1e-9)
    assert_same(automix.teacher.state_dict(), literal.k.state_dict(), 1e-9)


# Cheaper forms of the step.


def test_truncated_teacher_changes_only_deep_running_statistics():
    whole = build(truncate_teacher=False, teacher_buffers="own").double()
    short = build(truncate_teacher=True, teacher_buffers="own").double()
    images, targets = batch(dtype=torch.float64)
    draws = pair(dtype=torch.float64)
    first, second = backward(whole, images, targets, **draws), backward(short, images, targets, **draws)
    assert torch.equal(first.loss, second.loss)
    assert_same(gradients(short), gradients(whole), 0.0)
    changed = {n for n, b in whole.named_buffers() if not torch.equal(b, short.get_buffer(n))}
    assert changed and all(name.startswith("teacher.encoder.layer4") for name in changed)


def test_truncation_does_not_run_deeper_layers():
    automix = build()
    calls = []
    automix.teacher.encoder.layer4.register_forward_hook(lambda *_: calls.append("layer4"))
    automix.teacher.encoder.layer3.register_forward_hook(lambda *_: calls.append("layer3"))
    automix(*batch())
    assert calls == ["layer3", "layer3", "layer4"]


def test_feature_is_not_changed_by_a_later_inplace_layer():
    class InPlace(TinyNet):
        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(self.stem(x))))
            return self.fc(self.layer4(x.sub_(0.5)).mean((2, 3)))

    whole = build(net=InPlace, truncate_teacher=False, teacher_buffers="student")
    short = build(net=InPlace, truncate_teacher=True, teacher_buffers="student")
    images, targets = batch()
    assert torch.equal(
        whole(images, targets, **pair()).mix_draw.logits, short(images, targets, **pair()).mix_draw.logits
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_sequential_gradients_are_those_of_the_joint_loss(autocast):
    images, targets = batch()
    results = []
    for sequential in (False, True):
        automix = build(sequential=sequential)
        automix.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = automix(images, targets, **pair())
        (out.loss / 4).backward()
        results.append((out, gradients(automix)))
    (joint, expected), (sequential, got) = results
    for part in ("loss", "cls", "mix", "gen", "mask"):
        assert error(getattr(sequential, part), getattr(joint, part)) < 1e-6
    assert_same(got, expected, 3e-2 if autocast else 1e-5)


def saved_bytes(sequential: bool) -> tuple[int, list[int]]:
    """What a step keeps for its backward passes: at most, and when each of the student's passes begins."""
    live = {"now": 0, "peak": 0}

    class Saved:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            live["now"] += self.size
            live["peak"] = max(live["peak"], live["now"])

        def __del__(self):
            live["now"] -= self.size

    automix = build(net=lambda: TinyNet(width=4), sequential=sequential)
    at_start = []
    automix.student.encoder.register_forward_pre_hook(lambda *_: at_start.append(live["now"]))
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        automix(*batch(16, 32), **pair(16)).loss.backward()
    assert live["now"] == 0
    return live["peak"], at_start


def test_sequential_holds_the_activations_of_one_pass():
    peak, at_start = saved_bytes(sequential=True)
    peak_of_all, at_start_of_all = saved_bytes(sequential=False)
    assert peak < 0.45 * peak_of_all
    # The generator's draw shares its launches with the student's, and yet nothing of its graph is left.
    assert at_start == [0, 0] and all(at_start_of_all)


def test_sequential_loss_back_propagates_once_and_can_be_scaled():
    automix = build(sequential=True)
    images, targets = batch()
    expected = gradients(automix) if backward(automix, images, targets, **pair()) else None
    expected = {name: g.clone() for name, g in expected.items()}
    scale = torch.tensor(256.0)
    automix.zero_grad()
    out = automix(images, targets, **pair(), grad_scale=scale)
    (out.loss * scale).backward()
    assert_same({n: g / 256 for n, g in gradients(automix).items()}, expected, 1e-5)
    with pytest.raises(RuntimeError, match="once"):
        out.loss.backward()


def test_generator_every_kth_step():
    automix = build(gen_every=3)
    images, targets = batch()
    trained = []
    for _ in range(6):
        out = backward(automix, images, targets, **pair())
        active = automix.mix_block.query.weight.grad is not None
        assert active == (out.gen_draw is not None) == bool(out.gen > 0)
        assert error(out.loss, out.cls + out.mix + out.gen + out.mask) < 1e-6
        trained.append(active)
        automix.update_teacher()
    assert trained == [True, False, False, True, False, False]


def test_without_clean_loss():
    automix = build(clean_loss=False)
    assert automix.head == "teacher_mix"
    out = backward(automix, *batch())
    assert out.cls == 0 and automix.student.one_hot.weight.grad is None
    assert all(p.grad is not None for group in automix.param_groups(0.1) for p in group["params"])
    with pytest.raises(ValueError, match="not trained with clean_loss=False"):
        automix.eval().classify(batch()[0], "student_one_hot")


# What a step does and does not touch.


@pytest.mark.parametrize("sequential", [False, True])
def test_gradients_exist_on_student_and_block_only(sequential):
    automix = build(sequential=sequential)
    before = {n: p.clone() for n, p in automix.teacher.named_parameters()}
    out = backward(automix, *batch())
    expected = {n for n, _ in automix.named_parameters() if not n.startswith("teacher.")}
    assert gradients(automix).keys() == expected
    assert all(torch.equal(p, before[n]) for n, p in automix.teacher.named_parameters())
    detached = (out.cls, out.mix, out.gen, out.mask, *out.mix_draw[:5], *out.gen_draw[:5])
    assert not any(value.requires_grad for value in detached)
    assert out.loss.requires_grad


def test_block_learns_from_the_generator_losses_alone():
    automix = build()
    images, targets = batch()
    out = automix(images, targets, **pair())
    reference = build()
    reference.load_state_dict(automix.state_dict())
    reference.student.requires_grad_(False)
    backward(reference, images, targets, **pair())
    out.loss.backward()
    for name, gradient in gradients(reference).items():
        assert name.startswith("mix_block.")
        assert error(automix.get_parameter(name).grad, gradient) < 1e-6


def test_targets_of_the_draw_are_the_images_shown():
    automix = build()
    images, targets = batch()
    out = automix(images, targets, **pair())
    for draw in (out.mix_draw, out.gen_draw):
        mask = draw.mask.unsqueeze(1)
        assert error(draw.mixed, mask * images + (1 - mask) * images[draw.index]) < 1e-6
        assert error(draw.mean, draw.mask.mean((1, 2))) < 1e-6


def test_gradient_accumulation_adds_up():
    automix = build(lam_margin=0.0)
    first, second = batch(seed=1), batch(seed=2)
    single = []
    for images, targets in (first, second):
        backward(automix, images, targets, **pair())
        single.append({n: g.clone() for n, g in gradients(automix).items()})
    automix.zero_grad()
    for images, targets in (first, second):
        (automix(images, targets, **pair()).loss / 2).backward()
    assert_same(gradients(automix), {n: (g + single[1][n]) / 2 for n, g in single[0].items()}, 1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("lam", [0.02, 0.97])
def test_lam_margin_mixes_by_a_constant(lam, per_sample):
    automix = build(lam_margin=0.08, init_std=1.0, per_sample=per_sample)
    images, targets = batch()
    values = torch.full((8,), lam) if per_sample else torch.tensor(lam)
    if per_sample:
        values[3] = 0.5
    draws = pair() | {"lam": (values, values)}
    out = automix(images, targets, **draws)
    near = torch.arange(8) != 3 if per_sample else torch.ones(8, dtype=torch.bool)
    assert (out.mix_draw.mask[near] - lam).abs().max() < 1e-6
    expected = lam * images + (1 - lam) * images[out.mix_draw.index]
    assert error(out.mix_draw.mixed[near], expected[near]) < 1e-6
    assert out.gen_draw.mask.std() > 1e-3
    if per_sample:
        assert out.mix_draw.mask[3].std() > 1e-3


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_lam_at_the_ends_gives_an_unmixed_image(lam):
    automix = build()
    images, targets = batch()
    out = backward(automix, images, targets, **pair(lam=(lam, lam)))
    expected = images if lam == 1 else images[out.mix_draw.index]
    assert torch.equal(out.mix_draw.mixed, expected)
    assert all(g.isfinite().all() for g in gradients(automix).values())


def test_smoothing_and_per_sample_mask_loss_reach_the_losses():
    plain, smooth = build(), build(smoothing=0.2)
    sample = build(mask_loss_per_sample=True, mask_margin=0.0)
    images, targets = batch()
    a, b, c = (m(images, targets, **pair()) for m in (plain, smooth, sample))
    logits = smooth.student(images, "one_hot")
    assert error(b.cls, F.cross_entropy(logits, targets, label_smoothing=0.2)) < 1e-5
    assert a.mix != b.mix and a.gen != b.gen
    assert error(c.mask, 3.0 * (c.gen_draw.mean - 0.6).abs().mean()) < 1e-6


# Randomness.


def test_draws_follow_the_generator():
    automix = build(alpha=2.0)
    images, targets = batch()
    first, second, third = (
        automix(images, targets, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    for a, b, c in zip(first.mix_draw[:2], second.mix_draw[:2], third.mix_draw[:2], strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert first.mix_draw.lam != first.gen_draw.lam
    assert not torch.equal(first.mix_draw.index, first.gen_draw.index)
    torch.manual_seed(4)
    fourth = automix(images, targets).mix_draw
    assert torch.equal(fourth.lam, first.mix_draw.lam) and torch.equal(fourth.index, first.mix_draw.index)
    assert sorted(first.mix_draw.index.tolist()) == list(range(8))


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_lam_is_beta_distributed(alpha):
    automix = build(alpha=alpha, per_sample=True)
    g = torch.Generator().manual_seed(0)
    lam_mix, lam_gen = automix._draw_lam(torch.empty(20_000, 3, 1, 1), g)
    for lam in (lam_mix, lam_gen):
        assert lam.shape == (20_000,) and lam.min() >= 0 and lam.max() <= 1
        assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert torch.corrcoef(torch.stack([lam_mix, lam_gen]))[0, 1].abs() < 0.03


# Kinds of targets.


def dense(n: int = 8, seed: int = 0) -> Tensor:
    """Several labels each, float, not one to a row."""
    return (torch.rand(n, 10, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("labels", ["classes", "dense"])
def test_losses_of_every_kind_of_targets(labels, kind, smoothing):
    automix = build(kind=kind, smoothing=smoothing, momentum=0.5)
    images, targets = batch()
    one_hot = F.one_hot(targets, 10).float()
    if labels == "dense":
        targets = one_hot = dense()
    out = backward(automix, images, targets, **pair())

    # As timm smooths: labels by e / K, several labels of binary losses by e / 2.
    even = 0.5 if kind == "bce" and labels == "dense" else 0.1
    smooth = (1 - smoothing) * one_hot + smoothing * even

    def expected(logits: Tensor, lam: float = 1.0, index: Tensor | None = None) -> Tensor:
        t = smooth if index is None else lam * smooth + (1 - lam) * smooth[index]
        if kind == "bce":
            return F.binary_cross_entropy_with_logits(logits, t)
        if labels == "classes":
            return -(t * logits.log_softmax(1)).sum(1).mean()
        own = one_hot if index is None else lam * one_hot + (1 - lam) * one_hot[index]
        log = logits.log_softmax(1)
        return -((1 - smoothing) * (own * log).sum(1) + smoothing * log.mean(1)).mean()

    with torch.no_grad():
        for p in automix.parameters():
            assert p.grad is None or p.grad.isfinite().all()
        draw, gen = out.mix_draw, out.gen_draw
        assert error(out.cls, expected(automix.student(images, "one_hot"))) < 1e-5
        assert error(out.mix, expected(automix.student(draw.mixed, "mix"), 0.3, draw.index)) < 1e-5
        assert error(out.gen, expected(automix.teacher(gen.mixed, "mix"), 0.6, gen.index)) < 1e-5


def test_dense_targets_that_are_one_hot_are_class_numbers():
    images, targets = batch()
    plain, soft = build(), build()
    first = backward(plain, images, targets, **pair())
    second = backward(soft, images, F.one_hot(targets, 10).double(), **pair())
    assert error(second.loss, first.loss) < 1e-6
    assert_same(gradients(soft), gradients(plain), 1e-5)


@pytest.mark.parametrize("sequential", [False, True])
def test_dense_targets_train(sequential):
    automix = build(kind="bce", sequential=sequential, gen_every=2)
    optimizer = torch.optim.SGD(automix.param_groups(1.0), momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        out = automix(batch()[0], dense(), generator=torch.Generator().manual_seed(0))
        out.loss.backward()
        optimizer.step()
        automix.update_teacher()
        losses.append(out.cls.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("convention", ["released", "paper"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_label_maps_are_mixed_by_the_generated_mask(mode, convention):
    automix = build(mode=mode, convention=convention, init_std=1.0, lam_margin=0.0)
    images, targets = batch()
    out = automix(images, targets, **pair())
    mixed, mask, index = out.batch, out.mix_draw.mask, out.mix_draw.index
    assert torch.equal(mixed.x, out.mix_draw.mixed) and torch.equal(mixed.y_b, targets[index])
    assert 0 < (mask >= 0.5).float().mean() < 1
    maps = torch.arange(8).view(8, 1, 1).expand(8, 16, 16) * 7 + 300
    assert torch.equal(mixed.apply(maps), torch.where(mask >= 0.5, maps, maps[index]))
    depth = torch.randn(8, 2, 16, 16)
    weight = mask.unsqueeze(1)
    torch.testing.assert_close(mixed.apply(depth), weight * depth + (1 - weight) * depth[index])
    torch.testing.assert_close(mixed.apply(images), mixed.x)
    torch.testing.assert_close(mixed.apply(dense()), 0.3 * dense() + 0.7 * dense()[index])
    torch.testing.assert_close(mixed.pixel_weight(), mask)
    assert error(mixed.loss(automix.student(mixed.x, "mix")), out.mix) < 1e-5


# Teacher and schedules.


def test_ema_update_by_hand():
    teacher = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0]], dtype=torch.float64), torch.tensor(3)]
    student = [torch.tensor([2.0, 4.0]), torch.tensor([[0.0]], dtype=torch.float64), torch.tensor(9)]
    ema_update(teacher, student, 0.75)
    assert teacher[0].tolist() == [1.25, 2.5] and teacher[1].item() == 3.0 and teacher[2].item() == 9
    kept = [t.clone() for t in teacher]
    ema_update(teacher, student, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher, kept, strict=True))
    ema_update(teacher, student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher, student, strict=True))
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\], got 1\.5"):
        ema_update(teacher, student, 1.5)
    with pytest.raises(ValueError, match=r"momentum must be one number, got shape \(2,\)"):
        ema_update(teacher, student, torch.ones(2))
    with pytest.raises(ValueError, match="targets and sources must be as many, got 3 and 2"):
        ema_update(teacher, student[:2], 0.5)


@pytest.mark.parametrize("momentum", [0.0, 0.75, 0.95, 0.999, 0.999999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ema_update_by_a_tensor_equals_that_by_a_number(dtype, momentum):
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(40, 3, generator=g, dtype=dtype), torch.randn(7, generator=g, dtype=dtype), torch.tensor(3)]
    student = [t + torch.randn(t.shape, generator=g, dtype=dtype) for t in start[:2]] + [torch.tensor(9)]
    found, expected = ([t.clone() for t in start] for _ in range(2))
    ema_update(found, student, torch.tensor(momentum, dtype=torch.float64))
    ema_update(expected, student, momentum)
    for a, b, old in zip(found[:2], expected[:2], start[:2], strict=True):
        step = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(a, b, rtol=step, atol=step)
        assert a.dtype is dtype and torch.equal(a, old) == (momentum == 1)
    assert found[2] == 9


@pytest.mark.parametrize("buffers", ["ema", "student", "own"])
def test_teacher_buffers(buffers):
    automix = build(teacher_buffers=buffers, momentum=0.75)
    start = {n: b.clone() for n, b in automix.teacher.named_buffers()}
    backward(automix, *batch(), **pair())
    after = {n: b.clone() for n, b in automix.teacher.named_buffers()}
    automix.update_teacher()
    for name, buffer in automix.teacher.named_buffers():
        student = automix.student.get_buffer(name)
        if buffers == "own":
            assert torch.equal(buffer, after[name])
        elif name.endswith("num_batches_tracked"):
            assert buffer == student == 2
        else:
            assert torch.equal(after[name], start[name])
            share = 0.75 if buffers == "ema" else 0.0
            assert error(buffer, share * start[name] + (1 - share) * student) < 1e-6
            assert not torch.equal(buffer, start[name])
    moved = [n for n in after if n.endswith("running_mean") and not torch.equal(after[n], start[n])]
    assert bool(moved) == (buffers == "own")


def test_step_given_to_update_teacher_sets_the_schedules():
    seen = []

    def momentum(step: int) -> float:
        seen.append(step)
        return 0.9

    automix = build(momentum=momentum, gamma=schedules.Linear(1.0, 0.0, 100))
    automix.update_teacher()
    automix.update_teacher()
    automix.update_teacher(step=40)
    assert seen == [0, 1, 40] and automix.step == 41
    assert automix.gamma(automix.step) == pytest.approx(0.59)


def test_schedules_by_hand():
    linear = schedules.Linear(0.1, 0.0, 10)
    assert [linear(0), linear(5), linear(10), linear(20)] == pytest.approx([0.1, 0.05, 0.0, 0.0])
    cosine = schedules.Cosine(0.999, 1.0, 100)
    assert [cosine(0), cosine(50), cosine(100), cosine(500)] == pytest.approx([0.999, 0.9995, 1.0, 1.0], abs=1e-12)
    momentum = schedules.ReleasedMomentum(800)
    assert momentum(0) == momentum(79) == 0.999
    assert momentum(80) == pytest.approx(0.9990244, abs=1e-7)
    assert momentum(400) == pytest.approx(0.9994995, abs=1e-7)
    assert momentum(800) == pytest.approx(0.999999, abs=1e-12)
    assert schedules.as_schedule(0.5)(123) == 0.5 and schedules.as_schedule(cosine) is cosine


def test_compounding_cosine_multiplies_its_factors():
    total = 500_400
    gamma = schedules.CompoundingCosine(0.1, total)
    value = 0.1
    for u in range(300):
        value *= (1 + math.cos(math.pi * u / total)) / 2
    assert gamma(299) == pytest.approx(value, rel=1e-12)
    assert gamma(5953) > 0.05 > gamma(5955)
    assert gamma(12_000) < 0.001 and gamma(3) == pytest.approx(0.1)
    again = schedules.CompoundingCosine(0.1, total)
    assert again(5953) == gamma(5953)


def test_default_momentum_spans_a_thirtieth_of_the_training():
    assert default_momentum(600)(0) == pytest.approx(0.95)
    assert default_momentum(100)(0) == 0.9 and default_momentum(10**6)(0) == 0.999
    assert default_momentum(600)(600) == 1.0 and default_momentum(None)(10) == 0.999


# Inference, settings, saving.


def test_evaluation_uses_one_named_head():
    automix = build()
    with torch.no_grad():
        for p in automix.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
        automix.student.mix.weight.add_(1.0)
        automix.teacher.mix.weight.mul_(2.0)
    automix.eval()
    images, targets = batch()
    logits = {head: automix(images, head=head) for head in HEADS}
    assert torch.equal(automix(images), logits["teacher_one_hot"])
    values = list(logits.values())
    assert all(not torch.allclose(values[i], values[j]) for i in range(4) for j in range(i))
    automix.head = "student_mix"
    assert torch.equal(automix(images), logits["student_mix"])
    with pytest.raises(ValueError, match="head must be one of"):
        automix(images, head="best")
    with pytest.raises(ValueError, match="targets are for training"):
        automix(images, targets)
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        automix.train()(images)


@pytest.mark.parametrize("head", HEADS)
def test_export_is_the_encoder_with_its_classifier(head):
    automix = build()
    for _ in range(3):
        backward(automix, *batch())
        with torch.no_grad():
            for p in automix.student.parameters():
                p.sub_(0.05 * p.grad) if p.grad is not None else None
        automix.update_teacher()
    model = automix.export(head)
    plain = TinyNet()
    plain.load_state_dict(model.state_dict())
    images, _ = batch(seed=7)
    automix.eval()
    assert torch.equal(plain.eval()(images), automix(images, head=head))
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.requires_grad for p in model.parameters())


def test_export_of_an_encoder_without_classifier():
    torch.manual_seed(0)
    automix = AutoMix(TinyEncoder(), 10, "relu3").eval()
    images, _ = batch()
    assert torch.equal(automix.export()(images), automix(images))


def test_parameter_groups_cover_what_is_trained():
    automix = build()
    groups = automix.param_groups(0.1, mix_lr=0.03, weight_decay=1e-4)
    assert [g["lr"] for g in groups] == [0.1, 0.03] and all(g["weight_decay"] == 1e-4 for g in groups)
    listed = {id(p) for g in groups for p in g["params"]}
    assert listed == {id(p) for p in automix.parameters() if p.requires_grad}
    assert automix.param_groups(0.1)[1]["lr"] == 0.1


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_resumed_training_is_exact(momentum):
    options = dict(total_steps=6, gamma=schedules.CompoundingCosine(3.0, 6), momentum=momentum, gen_every=2)

    def steps(automix, optimizer, numbers):
        losses = []
        for i in numbers:
            out = backward(automix, *batch(seed=i))
            optimizer.step()
            automix.update_teacher()
            losses.append(out.loss.item())
        return losses

    def optimizer(automix):
        return torch.optim.SGD(automix.param_groups(0.05, mix_lr=0.02), momentum=0.9)

    whole = build(**options)
    torch.manual_seed(11)
    expected = steps(whole, optimizer(whole), range(6))

    first = build(**options)
    first_optimizer = optimizer(first)
    torch.manual_seed(11)
    head = steps(first, first_optimizer, range(3))
    saved = copy.deepcopy((first.state_dict(), first_optimizer.state_dict(), torch.get_rng_state()))

    second = build(seed=99, **options)
    second_optimizer = optimizer(second)
    second.load_state_dict(saved[0])
    second_optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert second.step == 3
    assert head + steps(second, second_optimizer, range(3, 6)) == expected
    for name, value in whole.state_dict().items():
        if name != "_extra_state":
            assert torch.equal(value, second.state_dict()[name]), name


def test_state_dict_survives_a_file(tmp_path):
    automix = build()
    automix.update_teacher(step=8)
    torch.save(automix.state_dict(), tmp_path / "state.pt")
    other = build(seed=5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.step == 9
    assert torch.equal(other.eval()(batch()[0]), automix.eval()(batch()[0]))


def test_generate_for_pictures_changes_nothing():
    automix = build(init_std=1.0)
    backward(automix, *batch())
    before = copy.deepcopy(automix.state_dict())
    images, _ = batch(4)
    draws = [automix.generate(images, torch.tensor([1, 0, 3, 2]), lam) for lam in (0.0, 0.5, 1.0)]
    assert all(torch.equal(value, automix.state_dict()[n]) for n, value in before.items() if n != "_extra_state")
    assert automix.training and automix.teacher.training
    assert draws[0].mask.shape == (4, 16, 16)
    assert not torch.allclose(draws[0].mask, draws[2].mask)


# Precision, layout, compilation.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    automix, exact = build(), build()
    images, targets = batch()
    with torch.autocast("cpu", dtype):
        out = automix(images, targets, **pair())
    out.loss.backward()
    expected = backward(exact, images, targets, **pair())
    assert out.loss.dtype is out.mix_draw.mixed.dtype is out.mix_draw.logits.dtype is torch.float32
    assert error(out.loss, expected.loss) < 0.02
    for name, gradient in gradients(automix).items():
        assert gradient.dtype is torch.float32 and gradient.isfinite().all(), name


def test_channels_last_is_kept_and_gives_the_same():
    automix = build()
    images, targets = batch()
    expected = automix(images, targets, **pair())
    other = build().to(memory_format=torch.channels_last)
    out = other(images.contiguous(memory_format=torch.channels_last), targets, **pair())
    assert error(out.loss, expected.loss) < 1e-5
    assert out.mix_draw.mixed.is_contiguous(memory_format=torch.channels_last)


def test_compiled_encoders_give_the_same():
    automix, plain = build(), build()
    automix.compile_encoders(backend="aot_eager")
    images, targets = batch()
    out = backward(automix, images, targets, **pair())
    expected = backward(plain, images, targets, **pair())
    assert error(out.loss, expected.loss) < 1e-6
    assert_same(gradients(automix), gradients(plain), 1e-4)
    assert automix.state_dict().keys() == plain.state_dict().keys()


# Encoders.


class ViT(nn.Module):
    """A small vision transformer with a class token in front."""

    def __init__(self, size: int = 16, patch: int = 4, dim: int = 12, prefix: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.image_size = size
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.prefix = nn.Parameter(torch.randn(1, prefix, dim))
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + prefix, dim) * 0.1)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 2, 24, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.heads = nn.Sequential(nn.Linear(dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size:
            raise AssertionError(f"wants {self.image_size} pixels")
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.heads(x[:, 0])


@pytest.mark.parametrize("prefix", [1, 5])
def test_tokens_of_a_vision_transformer(prefix):
    torch.manual_seed(0)
    automix = AutoMix(ViT(prefix=prefix), 10, "blocks.1", init_std=1.0)
    assert automix.mix_block.in_channels == 12
    images, targets = batch()
    out = backward(automix, images, targets)
    assert out.mix_draw.logits.shape == (8, 4, 4)
    assert gradients(automix).keys() == {n for n, p in automix.named_parameters() if p.requires_grad}
    features = automix._teacher_features(images)
    seen = []
    handle = automix.teacher.encoder.blocks[1].register_forward_hook(lambda _m, _a, o: seen.append(o))
    with torch.no_grad():
        automix.teacher.encoder(images)
    handle.remove()
    assert torch.equal(features[:, :, 1, 2], seen[0][:, prefix + 4 + 2])
    assert automix.eval()(images).shape == (8, 10)


def test_classifier_is_found_and_its_weights_are_kept():
    net = TinyNet()
    weight = net.fc.weight.clone()
    automix = AutoMix(net, 10)
    assert automix.classifiers == ("fc",) and isinstance(automix.student.encoder.fc, nn.Identity)
    for branch in (automix.student, automix.teacher):
        assert torch.equal(branch.one_hot.weight, weight) and torch.equal(branch.mix.weight, weight)
    other = AutoMix(TinyNet(num_classes=7), 10)
    assert other.student.one_hot.out_features == 10
    nested = AutoMix(ViT(), 10, "blocks.2")
    assert nested.classifiers == ("heads.0",)


def test_inspection_leaves_the_encoder_as_it_was():
    net = TinyNet()
    net.layer2.eval()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    from fastmix.train.classifier import inspect_encoder

    assert inspect_encoder(net, "layer2").channels == 16
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert net.training and not net.layer2.training and not net.layer3._forward_hooks and not net.fc._forward_hooks


def test_own_mix_block():
    block = MixBlock(32, lam_embed="v", mode="bicubic", convention="transposed", init_std=0.1)
    automix = AutoMix(TinyNet(), 10, mix_block=block)
    out = backward(automix, *batch())
    assert automix.mix_block is block and block.value.weight.grad is not None
    assert out.mix_draw.mode == "bicubic"
    with pytest.raises(ValueError, match="mix_block must take the 32 channels of 'layer3', got in_channels=8"):
        AutoMix(TinyNet(), 10, mix_block=MixBlock(8))


@pytest.mark.parametrize("width", [4, 64])
def test_default_initialisation_spreads_masks_alike_at_any_width(width):
    automix = build(net=lambda: TinyNet(width=width))
    spread = automix(*batch(32), **pair(32)).gen_draw.mask.std()
    assert 0.1 < spread < 0.45
    flat = AutoMix.released(TinyNet(width=width), 10)
    assert flat.mix_block.init_std == 0.01
    assert flat.generate(batch()[0], torch.arange(8).roll(1), 0.5).mask.std() < 0.03


@pytest.mark.parametrize("convention", ["released", "transposed", "paper"])
def test_every_convention_trains(convention):
    automix = build(convention=convention)
    backward(automix, *batch())
    assert automix.mix_block.query.weight.grad.abs().max() > 0


def test_example_loop_runs(capsys):
    pytest.importorskip("sklearn")
    source = (ROOT / "examples" / "automix_loop.py").read_text()
    assert len(source.splitlines()) <= 60
    shortened = source.replace("STEPS, BATCH = 300, 50", "STEPS, BATCH = 50, 8")
    assert shortened != source
    exec(compile(shortened, "automix_loop.py", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "step 50: cls" in printed and "test accuracy of the teacher_one_hot head" in printed


class Unusual(nn.Module):
    """Runs its middle layer twice, or returns something that is no feature vector."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.fc = kind, nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 10)

    def forward(self, x: Tensor):
        if self.kind == "twice":
            x = self.body(x)
        x = self.body(x)
        if self.kind == "tuple":
            return x, x
        return self.fc(x.mean((2, 3))).softmax(1).unsqueeze(1) if self.kind == "3d" else self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: AutoMix(TinyNet(), 10, "layer5"), ValueError, "got 'layer5'; .*close names: layer"),
        (lambda: AutoMix(TinyNet(), 10, "zzz"), ValueError, "it has stem"),
        (lambda: AutoMix(TinyNet(), 10, "fc"), ValueError, r"must give a map .* got \(2, 10\)"),
        (lambda: AutoMix(Unusual("twice"), 10, "body"), ValueError, "must run once .* got 2 times"),
        (lambda: AutoMix(Unusual("tuple"), 10, "body"), ValueError, "must end in an nn.Linear.*got tuple"),
        (lambda: AutoMix(Unusual("3d"), 10, "body"), ValueError, r"got \(2, 1, 10\)"),
        (
            lambda: AutoMix(ViT(size=20), 10, "blocks.0", example=torch.zeros(2, 3, 8, 8)),
            AssertionError,
            "20 pixels",
        ),
        (lambda: AutoMix(torch.compile(TinyNet()), 10), TypeError, "compile_encoders"),
        (lambda: AutoMix(nn.ReLU(), 10), TypeError, "with parameters, got ReLU"),
        (
            lambda: build(teacher_buffers="mean"),
            ValueError,
            "teacher_buffers must be one of ema, student, own",
        ),
        (lambda: AutoMix(TinyNet(), 10.0), ValueError, r"num_classes must be an int >= 1, got 10\.0"),
        (lambda: AutoMix(TinyNet(), 0), ValueError, "num_classes must be an int >= 1, got 0"),
        (lambda: AutoMix(TinyNet(), True), ValueError, "num_classes must be an int >= 1, got True"),
        (lambda: AutoMix(TinyNet(), 10, 3), ValueError, "feature must name a submodule of the encoder, got 3"),
        (
            lambda: AutoMix(TinyNet(), 10, example=torch.zeros(3, 8, 8)),
            ValueError,
            r"example must be images \(n, C, H, W",
        ),
        (lambda: build(gen_every=2.0), ValueError, "gen_every must be an int"),
        (lambda: build(total_steps=1e5), ValueError, "total_steps must be an int"),
        (lambda: build(alpha="1"), ValueError, "alpha must be a finite number > 0, got '1'"),
        (lambda: build(alpha=0), ValueError, "alpha must be a finite number > 0, got 0"),
        (lambda: build(alpha=math.nan), ValueError, "alpha must be a finite number > 0, got nan"),
        (lambda: build(alpha=math.inf), ValueError, "alpha must be a finite number > 0, got inf"),
        (lambda: build(smoothing=1.5), ValueError, r"smoothing must be a number in \[0, 1\], got 1\.5"),
        (lambda: build(lam_margin=-0.1), ValueError, r"lam_margin must be a number in \[0, 1\]"),
        (lambda: build(mask_margin=None), ValueError, "mask_margin must be a finite number"),
        (lambda: AutoMix(TinyNet(), None), ValueError, "num_classes must be an int >= 1, got None"),
        (lambda: build(gamma=None), ValueError, "gamma must be a finite number >= 0, got None"),
        (lambda: build(gamma="3"), ValueError, "gamma must be a finite number"),
        (lambda: build(momentum=1.5), ValueError, r"momentum must be a number in \[0, 1\]"),
        (lambda: build(init_std=-1.0), ValueError, "init_std must be a finite number >= 0"),
        (lambda: build(clean_loss="no"), ValueError, "clean_loss must be True or False, got 'no'"),
        (lambda: build(kind="mse"), ValueError, "kind must be one of ce, bce, got 'mse'"),
        (lambda: build(mix_block=3), TypeError, "mix_block must be a MixBlock, got 3"),
        (lambda: build(alhpa=1.0), TypeError, "AutoMix.*alhpa"),
        (lambda: AutoMix.released(TinyNet(), 10, alhpa=1.0), TypeError, "AutoMix.*alhpa"),
        (lambda: build()(batch()), TypeError, r"images must be a tensor, got tuple; pass what the batch holds"),
        (lambda: build()({"x": batch()[0]}), TypeError, "images must be a tensor, got dict"),
        (lambda: build()(batch()[0]), ValueError, "targets are missing"),
        (
            lambda: build()(batch()[0][0], torch.zeros(3).long()),
            ValueError,
            r"shape \(N, C, H, W\), got float32 of shape",
        ),
        (
            lambda: build()(batch()[0].permute(0, 2, 3, 1), batch()[1]),
            ValueError,
            r"channels come second: x\.permute\(0, 3, 1, 2\)",
        ),
        (
            lambda: build()(batch()[0], batch()[1][:6]),
            ValueError,
            r"targets must be int64 of shape \(8,\).*shape \(6,\)",
        ),
        (
            lambda: build()(batch()[0], torch.zeros(8, 7)),
            ValueError,
            r"floating of shape \(8, 10\), got float32 of .*7\)",
        ),
        (lambda: build()(batch()[0], [0] * 8), TypeError, "targets must be int64 of shape .* got list"),
        (
            lambda: build(gen_every=2)(batch()[0], torch.full((8,), 10)),
            ValueError,
            r"AutoMix: targets must lie in \[0, 10\)",
        ),
        (lambda: build(gen_every=0), ValueError, "gen_every must be an int >= 1, got 0"),
        (lambda: build(head="mix"), ValueError, "head must be one of teacher_one_hot"),
        (
            lambda: build()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long()),
            ValueError,
            "floating",
        ),
        (lambda: build()(*batch()[:1], torch.zeros(8)), ValueError, "targets must be int64"),
        (lambda: build()(*batch(), lam=(0.1, 0.2, 0.3)), ValueError, "lam must be a pair"),
    ],
)
def test_errors_name_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_encoder_that_runs_on_no_usual_size():
    class Odd(TinyNet):
        def forward(self, x):
            if x.shape[2] != 17:
                raise RuntimeError("only 17")
            return super().forward(x)

    with pytest.raises(ValueError, match=r"pass example=images\[:2\] \(384x384: only 17\)"):
        AutoMix(Odd(), 10)
    assert AutoMix(Odd(), 10, example=torch.zeros(2, 3, 17, 17)).mix_block.in_channels == 32
