"""`train.PuzzleMixStep`: what it computes, and what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmix.methods import PuzzleMix
from fastmix.train import PuzzleMixStep
from fastmix.train.puzzlemix import PRESETS

N, CLASSES = 6, 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(self.drop(x.mean((2, 3))))


def net(seed: int = 0, dropout: float = 0.0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    model.drop.p = dropout
    for step in range(3):  # running statistics that are not those of a fresh model
        model(torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(step)))
    return model


def data(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N, 3, 16, 16, generator=generator).to(dtype), torch.arange(N) % CLASSES


def options(seed: int = 0) -> dict:
    return {"generator": torch.Generator().manual_seed(seed), "blocks": 4}


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def shares(grad: torch.Tensor) -> torch.Tensor:
    """Saliency maps up to their scale."""
    maps = grad.double().square().mean(1).sqrt()
    return maps / maps.sum((1, 2), keepdim=True)


def test_saliency_is_the_gradient_of_the_loss_in_evaluation_mode():
    model, (x, y) = net(dropout=0.5), data()
    found = PuzzleMixStep(model).saliency(x, y)
    leaf = x.clone().requires_grad_()
    model.eval()
    expected = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0]
    torch.testing.assert_close(shares(found), shares(expected), rtol=1e-4, atol=1e-7)
    predicted = PuzzleMixStep(model).saliency(x)
    torch.testing.assert_close(predicted, PuzzleMixStep(model).saliency(x, model(x).argmax(1)))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [0.0, 30.0, 80.0])
def test_saliency_of_well_learnt_images_is_not_lost(dtype, margin):
    """At a margin of 80 the loss is exactly 0 in float32."""
    model, (x, y) = net(), data()
    y = torch.full_like(y, 2)
    with torch.no_grad():
        model.head.weight.div_(model.head.weight.abs().max())
        model.head.bias[2] += margin
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        found = PuzzleMixStep(model).saliency(x, y)
    assert found.isfinite().all() and (found.abs().flatten(1).amax(1) > 0).all()
    exact = PuzzleMixStep(model.double()).saliency(x.double(), y)
    assert ((shares(found) - shares(exact)).abs().sum((1, 2)) < (1e-4 if dtype is None else 0.1)).all()


@pytest.mark.parametrize("clean_lam", [0.0, 1.0])
def test_accumulated_gradients_and_modes_are_left_alone(clean_lam):
    model, (x, y) = net(), data()
    model.bn1.eval()
    model(x).sum().backward()
    before = gradients(model)
    step = PuzzleMixStep(model, clean_lam=clean_lam)
    model.bn1.eval()
    out = step(x, y, **options())
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(model), strict=True))
    assert model.training and model.bn2.training and not model.bn1.training
    assert not x.requires_grad
    out.loss.backward()
    added = [a - b for a, b in zip(gradients(model), before, strict=True)]
    model.zero_grad()
    torch.manual_seed(0)
    step(x, y, **options()).loss.backward()
    for a, b in zip(added, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("clean_lam", "passes"), [(0.0, 1), (1.0, 2)])
def test_running_statistics_see_what_they_saw_in_the_published_code(clean_lam, passes):
    model, (x, y) = net(), data()
    twin, counted = copy.deepcopy(model), model.bn1.num_batches_tracked.clone()
    out = PuzzleMixStep(model, clean_lam=clean_lam)(x, y, **options())
    assert model.bn1.num_batches_tracked - counted == passes
    if clean_lam:
        twin(x)
    twin(out.batch.x)
    assert torch.equal(twin.bn2.running_mean, model.bn2.running_mean)


@pytest.mark.parametrize("loss", ["cross_entropy", "softmax_bce"])
@pytest.mark.parametrize("clean_lam", [0.0, 0.7])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_those_of_the_sum_of_the_losses(loss, clean_lam, scale):
    model, (x, y) = net(), data()
    twin = copy.deepcopy(model)
    step = PuzzleMixStep(model, PuzzleMix(alpha=0.5), clean_lam, loss)
    out = step(x, y, grad_scale=scale, **options())
    (out.loss * (scale or 1)).backward()

    weight = clean_lam * (2 / CLASSES if loss == "softmax_bce" else 1)
    clean = weight * F.cross_entropy(twin(x), y) if clean_lam else torch.zeros(())
    logits, batch = twin(out.batch.x), out.batch
    if loss == "softmax_bce":
        r = batch.lam.unsqueeze(1)
        target = r * F.one_hot(y, CLASSES) + (1 - r) * F.one_hot(y[batch.index], CLASSES)
        mix = F.binary_cross_entropy(logits.softmax(1), target)
    else:
        mix = (batch.lam * F.cross_entropy(logits, y, reduction="none")).mean()
        mix = mix + ((1 - batch.lam) * F.cross_entropy(logits, y[batch.index], reduction="none")).mean()
    (clean + mix).backward()
    torch.testing.assert_close(out.loss, clean + mix)
    torch.testing.assert_close(out.mix, mix.detach())
    torch.testing.assert_close(out.clean, clean.detach())
    for a, b in zip(gradients(model), gradients(twin), strict=True):
        torch.testing.assert_close(a / (scale or 1), b, rtol=1e-4, atol=1e-7)


def test_the_clean_pass_gives_the_saliency_too():
    model, (x, y) = net(), data()
    twin = copy.deepcopy(model)
    found = PuzzleMixStep(model, clean_lam=1.0)(x, y, **options())
    leaf = x.clone().requires_grad_()
    saliency = torch.autograd.grad(F.cross_entropy(twin(leaf), y), leaf)[0]
    expected = PuzzleMix()(x, y, saliency=saliency, **options())
    assert torch.equal(found.batch.x, expected.x)


def test_the_loss_with_a_clean_part_is_back_propagated_once():
    model, (x, y) = net(), data()
    out = PuzzleMixStep(model, clean_lam=1.0)(x, y, **options())
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be back-propagated once"):
        out.loss.backward()


def test_gradients_known_beforehand_are_not_differentiated_again():
    model, (x, y) = net(), data()
    out = PuzzleMixStep(model, clean_lam=1.0)(x, y, **options())
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again \(create_graph=True\)"):
        torch.autograd.grad(out.loss, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize("clean_lam", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(clean_lam, dtype):
    model, (x, y) = net(), data()
    step = PuzzleMixStep(model, PuzzleMix(dtype=dtype), clean_lam, "softmax_bce")
    with torch.autocast("cpu", dtype=dtype):
        out = step(x, y, **options())
    assert out.batch.x.dtype is dtype and out.loss.dtype is torch.float32
    out.loss.backward()
    assert all(g.isfinite().all() and g.dtype is torch.float32 for g in gradients(model))


def test_noise_enters_the_saliency_and_the_mix():
    model, (x, y) = net(), data()
    plain = PuzzleMixStep(copy.deepcopy(model), PuzzleMix())(x, y, **options())
    noisy = PuzzleMixStep(copy.deepcopy(model), PuzzleMix(adv_prob=1.0, adv_eps=8.0))(x, y, **options())
    assert noisy.batch.x.min() >= 0 and noisy.batch.x.max() <= 1 and noisy.batch.x.isfinite().all()
    assert not torch.equal(noisy.batch.x, plain.batch.x)
    clean = PuzzleMixStep(copy.deepcopy(model), PuzzleMix(adv_prob=1.0), clean_lam=1.0)(x, y, **options())
    assert clean.loss.isfinite()


def test_works_under_no_grad_only_to_evaluate():
    model, (x, y) = net(), data()
    step = PuzzleMixStep(model).eval()
    with torch.no_grad():
        assert torch.equal(step(x), model(x))
        assert step.saliency(x, y).abs().max() > 0
    assert not step.training and not model.training


def test_compile_is_that_of_the_model():
    model, (x, y) = net(), data()
    step = PuzzleMixStep(copy.deepcopy(model))
    step.compile(backend="aot_eager")
    found, expected = step(x, y, **options()), PuzzleMixStep(model)(x, y, **options())
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_the_published_settings(name):
    step = PuzzleMixStep.preset(name, net(), smoothing=0.1)
    assert step.clean_lam == (1.0 if name in ("tiny_imagenet", "imagenet_fast") else 0.0)
    assert step.loss == ("cross_entropy" if name.startswith("imagenet") else "softmax_bce")
    assert step.smoothing == 0.1 and repr(step.method) == repr(PuzzleMix.preset(name))
    method = PuzzleMix(n_labels=2)
    assert PuzzleMixStep.preset(name, net(), method=method, clean_lam=0.5).method is method


def test_trains():
    """Bright squares in one of four corners are learnt."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    y = torch.arange(200) % 4
    x = torch.rand(200, 1, 16, 16, generator=generator) * 0.3
    for k in range(4):
        x[y == k, :, 8 * (k // 2) : 8 * (k // 2) + 6, 8 * (k % 2) : 8 * (k % 2) + 6] += 0.6
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 4),
    )  # fmt: skip
    step = PuzzleMixStep(model, PuzzleMix(blocks=(2, 4, 8)))
    optimizer = torch.optim.SGD(step.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        rows = torch.randperm(200, generator=generator)[:40]
        out = step(x[rows], y[rows], generator=generator)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert (step.eval()(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("clean_lam", [0.0, 1.0])
@pytest.mark.parametrize("loss", ["cross_entropy", "softmax_bce"])
def test_dense_targets_that_are_one_hot_are_class_numbers(loss, clean_lam):
    x, y = data()
    dense = F.one_hot(y, CLASSES).float()
    found = []
    for targets in (y, dense):
        step = PuzzleMixStep(net(), PuzzleMix(), clean_lam, loss, smoothing=0.1)
        out = step(x, targets, **options())
        out.loss.backward()
        found.append((out, gradients(step.model), shares(step.saliency(x, targets))))
    (first, expected, maps), (second, got, dense_maps) = found
    torch.testing.assert_close(second.loss, first.loss)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(dense_maps, maps)


def test_saliency_of_dense_targets_is_the_gradient_of_their_loss():
    model, (x, _) = net(), data()
    targets = torch.rand(N, CLASSES, generator=torch.Generator().manual_seed(5))
    leaf = x.clone().requires_grad_()
    log = model.eval()(leaf).log_softmax(1)
    (expected,) = torch.autograd.grad(-(targets * log).sum(), leaf)
    torch.testing.assert_close(shares(PuzzleMixStep(model).saliency(x, targets)), shares(expected))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda x, y: PuzzleMixStep(net(), clean_lam=-1.0),
            ValueError,
            "clean_lam must be a finite number >= 0, got -1.0",
        ),
        (
            lambda x, y: PuzzleMixStep(net(), clean_lam="1"),
            ValueError,
            "clean_lam must be a finite number >= 0, got '1'",
        ),
        (lambda x, y: PuzzleMixStep(net(), smoothing=2), ValueError, r"smoothing must be a number in \[0, 1\]"),
        (lambda x, y: PuzzleMixStep(net(), PuzzleMix), TypeError, "method must be a PuzzleMix, got <class"),
        (lambda x, y: PuzzleMixStep(net), TypeError, "model must be a Module, got <function"),
        (lambda x, y: PuzzleMixStep(net(), loss="mse"), ValueError, "loss must be one of cross_entropy, softmax_bce"),
        (lambda x, y: PuzzleMixStep(net())(x), ValueError, "targets are missing; to classify, call .eval"),
        (lambda x, y: PuzzleMixStep(net())((x * 255).byte(), y), ValueError, "images must be floating of shape"),
        (lambda x, y: PuzzleMixStep(net())((x, y)), TypeError, "images must be a tensor, got tuple; pass what"),
        (lambda x, y: PuzzleMixStep(net())({"x": x}, y), TypeError, "images must be a tensor, got dict"),
        (lambda x, y: PuzzleMixStep(net()).eval()([x, y]), TypeError, "images must be a tensor, got list"),
        (lambda x, y: PuzzleMixStep(net())(x[0], y), ValueError, r"images must be floating of shape \(N, C, H, W\)"),
        (
            lambda x, y: PuzzleMixStep(net())(x.permute(0, 2, 3, 1), y),
            ValueError,
            r".* channels come second: .*PuzzleMix\(check_layout=False\)",
        ),
        (lambda x, y: PuzzleMixStep(net())(x, y[:-1]), ValueError, r"targets must be int64 of shape \(6,\) or"),
        (lambda x, y: PuzzleMixStep(net())(x, y.int()), ValueError, r"targets must be int64 .*got int32"),
        (lambda x, y: PuzzleMixStep(net())(x, y.tolist()), TypeError, r"targets must be int64 .*got list"),
        (lambda x, y: PuzzleMixStep(net())(x, torch.zeros(6, 4)), ValueError, r"targets must have the 5 classes"),
        (lambda x, y: PuzzleMixStep(nn.Identity())(x, y), ValueError, r"model must return logits \(N, K\), got \(6, 3"),
        (lambda x, y: PuzzleMixStep(net(), clean_lam=1.0)(x, y + 1), ValueError, r"targets must lie in \[0, 5\)"),
        (lambda x, y: PuzzleMixStep(net())(x, y + 1), ValueError, r"targets must lie in \[0, 5\)"),
    ],
)
def test_bad_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=f"fastmix.PuzzleMixStep: {message}"):
        call(*data())


@pytest.mark.parametrize("clean_lam", [0.0, 1.0])
def test_ignored_images_are_mixed_and_count_nowhere(clean_lam):
    (x, y), step = data(), PuzzleMixStep(net(), PuzzleMix(), clean_lam)
    y[2] = -100
    assert step.saliency(x, y)[2].abs().max() == 0
    out = step(x, y, **options(), index=torch.tensor([1, 0, 2, 4, 3, 5]))
    assert out.loss.isfinite() and (out.batch.lam[2] == 1 or torch.equal(out.batch.x[2], x[2]))


def test_a_mistyped_keyword_names_the_class():
    for call in (lambda: PuzzleMixStep(net(), cleanlam=1), lambda: PuzzleMixStep.preset("cifar100", net(), cleanlam=1)):
        with pytest.raises(TypeError, match=r"PuzzleMixStep.*cleanlam"):
            call()


def test_example_loop_runs(capsys):
    pytest.importorskip("sklearn")
    source = (Path(__file__).parents[2] / "examples" / "puzzlemix_loop.py").read_text()
    assert len(source.splitlines()) <= 60
    shortened = source.replace("STEPS, BATCH = 300, 50", "STEPS, BATCH = 50, 8")
    assert shortened != source
    exec(compile(shortened, "puzzlemix_loop.py", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "step 50: loss" in printed and "test accuracy" in printed
