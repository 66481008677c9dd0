"""Several methods in one batch, and methods that change the batch or run the model."""

import sys

import pytest
import torch
import torch.nn.functional as F
from method_cases import SIZE, build, generator, images, needed
from torch import nn

from fastmix import dispatch, methods
from fastmix.methods import CutMix, ManifoldMixup, Mixer, MixUp, RegMixup, Switch

N = 9


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """Names of the kernels that run."""
    names: list[str] = []

    def spied(op, backend):
        kernels = dispatch.kernels(op, backend)

        class Spy:
            def __getattr__(self, name):
                names.append(name)
                return getattr(kernels, name)

        return Spy()

    for op in ("blend", "box_blend", "mask_blend"):
        monkeypatch.setattr(sys.modules[f"fastmix.ops.{op}"], "kernels", spied)
    return names


FAMILIES = {
    "mixup, cutmix": (["mixup", "cutmix"], 1),
    "mixup, cutmix, resizemix, none": (["mixup", "cutmix", "resizemix", "none"], 1),
    "mixup, mixup": (["mixup", "mixup"], 1),
    "cutmix, gridmix": (["cutmix", "gridmix"], 1),
    "mixup, cutmix, smoothmix, attentivemix": (["mixup", "cutmix", "smoothmix", "attentivemix"], 1),
    "resizemix, gridmix, mixup": (["resizemix", "gridmix", "mixup"], 2),
    "puzzlemix, mixup": (["puzzlemix", "mixup"], 2),
}


@pytest.mark.parametrize("mode", ["batch", "pair", "sample"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_sample_is_mixed_by_the_method_of_its_choice(family, mode, launches):
    names, count = FAMILIES[family]
    x, y = images(N)
    extra = {}
    for name in names:
        extra |= needed(name, x)
    parts = [build(name, mode="sample") for name in names]
    mixer = Mixer(parts, [0.9 / len(parts)] * len(parts), mode=mode)
    chosen = set()
    for seed in range(4):
        choice = torch.randint(len(names) + 1, () if mode == "batch" else (N,), generator=generator(seed))
        index = torch.randperm(N, generator=generator(seed))
        torch.manual_seed(seed)
        launches.clear()
        batch = mixer(x, y, index=index, choice=choice, **extra)
        assert len(launches) == count
        torch.manual_seed(seed)
        mixer.draw(x, None, None, index)  # what the mixer draws before its methods do
        singles = [method(x, y, index=index, **(extra if method.needs else {})) for method in parts]
        singles.append(methods.NoMix()(x, y))
        for n, k in enumerate(choice.expand(N).tolist()):
            chosen.add(k)
            torch.testing.assert_close(batch.x[n], singles[k].x[n])
            torch.testing.assert_close(batch.lam.expand(N)[n], singles[k].lam.expand(N)[n])
        labels = torch.randint(0, 9, (N, *SIZE), generator=generator(seed))
        applied, apart = batch.apply(labels), [single.apply(labels) for single in singles]
        for n, k in enumerate(choice.expand(N).tolist()):
            assert torch.equal(applied[n], apart[k][n])
    assert len(chosen) > 1


@pytest.mark.parametrize(
    "setting",
    [{"normalize": ((0.5,), (0.2,))}, {"pairing": "flip"}, {"dtype": torch.float16}, {"backend": "reference"}],
)
def test_settings_of_a_member_that_the_mixer_decides_are_refused(setting):
    (name,) = setting
    for make in (lambda **o: Switch(MixUp(**setting), **o), lambda **o: Mixer([CutMix(), MixUp(**setting)], **o)):
        with pytest.raises(ValueError, match=f"{name} must be given to the (Switch|Mixer) itself, not to its MixUp"):
            make()
        make(**setting)  # the same for all


def test_probabilities():
    x, y = torch.zeros(20000, 1, 4, 4), torch.zeros(20000, dtype=torch.int64)
    mixer = Mixer([MixUp(0.5, mode="sample"), MixUp(0.5, mode="sample"), "none"], [0.5, 0.2, 0.1])
    lam = mixer(x, y, generator()).lam
    assert (lam == 1).float().mean().item() == pytest.approx(0.3, abs=0.02)
    whole = Mixer(["mixup", "cutmix", "gridmix"], [0.1, 0.2, 0.7])
    assert whole._chosen(torch.tensor([0.0, 0.05, 0.15, 0.29, 0.31, 1.0])).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_switch_is_one_or_the_other():
    x, y = images(N)
    switch, seen = Switch(p=0.3), []
    for seed in range(400):
        batch = switch(x, y, generator(seed))
        cut = bool((batch.box[:, 2] > batch.box[:, 0]).all())
        seen.append(cut)
        if seed < 20:
            weight = batch.pixel_weight()[:, None]
            torch.testing.assert_close(batch.x, weight * x + (1 - weight) * x[batch.index])
            assert cut or (weight == batch.lam).all()
    assert 0.2 < sum(seen) / len(seen) < 0.36  # a few boxes are empty
    assert [m.alpha for m in Switch().methods] == [0.8, 1.0]
    assert Switch(alpha=0.1).methods[0].alpha == 0.1
    custom = Switch(CutMix(0.5), MixUp(0.1, mode="sample"), p=1.0)
    assert custom(x, y, generator()).lam.shape == (N,)


@pytest.mark.parametrize("eta", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_regmixup_adds_the_mixed_to_the_clean_loss(eta, channels_last, launches):
    x, y = images(N)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    batch = RegMixup(eta=eta, mode="sample")(x, y, generator())
    assert launches == ["blend"]
    assert torch.equal(batch.x[:N], x) and len(batch) == 2 * N
    lam = batch.lam[N:] * (1 + eta) / (2 * eta)
    torch.testing.assert_close(batch.x[N:], MixUp()(x, y, lam=lam, index=batch.index[N:]).x)
    logits = torch.randn(2 * N, 4, generator=generator(2))
    clean, mixed = logits.split(N)
    soft = lam[:, None] * F.one_hot(y, 4) + (1 - lam[:, None]) * F.one_hot(y[batch.index[N:]], 4)
    expected = (F.cross_entropy(clean, y) + eta * F.cross_entropy(mixed, soft)) / (1 + eta)
    torch.testing.assert_close(batch.loss(logits), expected)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(6, 5), nn.Linear(5, 4)
        self.twice = nn.ReLU()
        self.unused, self.pair = nn.Linear(1, 1), Pair()

    def forward(self, x):
        return self.layer2(self.twice(self.layer1(self.twice(x)))) + self.pair(x)[0].sum() * 0


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def literal(net, x, layer, lam, index):
    """The forward pass written out, mixed at the layer."""

    def mix(h, name):
        return lam[:, None] * h + (1 - lam[:, None]) * h[index] if name == layer else h

    h = mix(net.twice(mix(x, "input")), "twice")
    h = net.twice(mix(net.layer1(h), "layer1"))
    return mix(net.layer2(h), "layer2")


@pytest.mark.parametrize("layer", ["input", "layer1", "layer2", "twice"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_manifold_mixup_mixes_one_layer_with_gradients_through_both(layer, wrapped):
    net = Net()
    x, y, index = torch.randn(N, 6), torch.arange(N) % 4, torch.tensor([1, 1, 0, 3, 5, 4, 8, 8, 8])
    x.requires_grad_()
    lam = torch.rand(N, generator=generator())
    method = ManifoldMixup(layers=("input", "layer1"))
    model = nn.DataParallel(net) if wrapped else net
    found = []
    for run in (0, 1):
        if run:
            out = literal(net, x, layer, lam, index)
        else:
            batch = method(x, y, lam=lam, index=index, layer=layer)
            assert batch.layer == (None if layer == "input" else layer)
            out = method.forward(model, batch)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, net.layer1.weight, net.layer1.bias])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    # nothing is left behind
    torch.testing.assert_close(model(x), literal(net, x, None, lam, index))


def test_manifold_mixup_draws_its_layer_and_names_what_is_wrong():
    net, (x, y) = Net(), (torch.randn(N, 6), torch.arange(N) % 4)
    method = ManifoldMixup(layers=("input", "layer1", "layer2"))
    layers = [method(x, y, generator(seed)).layer for seed in range(300)]
    assert all(60 < layers.count(layer) < 140 for layer in (None, "layer1", "layer2"))
    with pytest.raises(ValueError, match="no layer 'layer9'; it has layer1, layer2"):
        method.forward(net, method(x, y, layer="layer9"))
    with pytest.raises(RuntimeError, match="unused was not run"):
        method.forward(net, method(x, y, layer="unused"))
    with pytest.raises(TypeError, match="pair must give a tensor"):
        method.forward(net, method(x, y, layer="pair"))
    assert not any(module._forward_hooks for module in net.modules())
