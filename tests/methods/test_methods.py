"""What all mixing methods have in common, and the laws of their random numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_cases import NAMES, build, generator, images, needed
from support import sweep
from torch import nn

from fastmix import methods
from fastmix.batch import MixBatch
from fastmix.methods.base import MODES, PAIRINGS, draw_beta, draw_partners
from fastmix.methods.cutmix import CutMix, box_around
from fastmix.methods.mixup import MixUp

N, H, W = 7, 12, 16
CPU = torch.device("cpu")


def rows(name: str, n: int) -> int:
    return 2 * n if name == "regmixup" else n


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_every_method_gives_a_consistent_batch(name, mode):
    x, y = images(N)
    before = x.clone()
    batch = build(name, mode=mode)(x, y, generator(), **needed(name, x))
    n = rows(name, N)
    assert isinstance(batch, MixBatch) and len(batch) == n
    assert batch.x.shape == (n, *x.shape[1:]) and batch.x.dtype == x.dtype and batch.x.isfinite().all()
    assert batch.lam.dtype == torch.float32 and batch.lam.shape in ((), (n,))
    assert ((batch.lam >= 0) & (batch.lam <= 1)).all()
    assert torch.equal(batch.y, y.repeat(n // N)) and torch.equal(batch.y_b, y[batch.index])
    assert torch.equal(batch.index[-N:].sort().values, torch.arange(N))
    assert batch.box is None or (batch.box.shape == (n, 4) and batch.box.dtype == torch.int32)
    assert batch.mask is None or (batch.mask.shape[0] == n and ((batch.mask >= 0) & (batch.mask <= 1)).all())
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_a_generator_decides_everything(name, mode):
    x, y = images(N)
    method, extra = build(name, mode=mode), needed(name, x)
    first, again = (method(x, y, generator(1), **extra) for _ in range(2))
    assert torch.equal(first.x, again.x) and torch.equal(first.lam, again.lam) and first.layer == again.layer
    others = [method(x, y, generator(seed), **extra) for seed in range(2, 6)]
    if name != "none":
        assert any(not torch.equal(first.index, other.index) for other in others)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    method(x, y, generator(1), **extra)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    one = method(x, y, **extra)
    torch.manual_seed(5)
    assert torch.equal(one.x, method(x, y, **extra).x)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_size_and_pairing(name, n, mode, pairing):
    x, y = images(n)
    batch = build(name, mode=mode, pairing=pairing)(x, y, generator(), **needed(name, x))
    assert len(batch) == rows(name, n)
    if n == 1 and name != "resizemix" and batch.layer is None:  # its own partner
        torch.testing.assert_close(batch.x, x.expand_as(batch.x))


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_self_pairs_and_the_ends_of_lam(name, lam):
    x, y = images(N)
    index = torch.tensor([0, 2, 1, 1, 4, 0, 6])
    for value in (lam, torch.full((N,), lam)):
        batch = build(name)(x, y, generator(), lam=value, index=index, **needed(name, x))
        mixed = batch.x[-N:]
        assert mixed.isfinite().all() and batch.lam.isfinite().all()
        if name != "resizemix" and batch.layer is None:
            same = index == torch.arange(N)
            torch.testing.assert_close(mixed[same], x[same])
        if lam == 1 and name not in ("attentivemix", "puzzlemix"):
            torch.testing.assert_close(mixed, x)
            torch.testing.assert_close(batch.lam, torch.ones_like(batch.lam))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["plain", "autocast", "channels_last", "bytes"])
@pytest.mark.parametrize("n", sweep([1, 2, 7], [7]))
def test_two_training_steps(name, setting, n):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"normalize": ((0.5,) * 3, (0.25,) * 3)} if setting == "bytes" else {}
    method = build(name, mode="sample", **options)
    before = [p.clone() for p in model.parameters()]
    for seed in range(2):
        x, y = images(n, seed)
        extra = needed(name, x)
        if setting == "bytes":
            x = (x * 255).byte()
        if setting == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            batch = method(x, y, generator(seed), **extra)
            loss = batch.loss(method.forward(model, batch), smoothing=0.1)
        assert loss.isfinite() and batch.x.dtype is torch.float32
        if setting == "channels_last":
            assert batch.x.is_contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_images_may_go_into_a_buffer(name):
    x, y = images(N)
    method, extra = build(name, mode="sample"), needed(name, x)
    expected = method(x, y, generator(), **extra)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        out = torch.full_like(expected.x, math.nan).contiguous(memory_format=layout)
        batch = method(given, y, generator(), out=out, **extra)
        assert batch.x is out
        torch.testing.assert_close(out, expected.x)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_images(name):
    x, y = images(N)
    x.requires_grad_()
    method = build(name, mode="sample")
    batch = method(x, y, generator(), **needed(name, x))
    method.forward(Net(), batch).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_normalising_in_the_same_pass(name):
    x, y = images(N)
    extra, raw = needed(name, x), (x * 255).byte()
    if name == "saliencymix":
        extra = {"saliency": x.mean(1)}
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    options = {"mean": mean, "std": std} if name == "puzzlemix" else {}
    given = {"lam": 0.4, "index": torch.arange(N).roll(1), **extra}
    fused = build(name, normalize=(mean, std))(raw, y, generator(), **given)
    assert fused.x.dtype == torch.float32
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    apart = build(name, **options)((raw.float() / 255 - m) / s, y, generator(), **given)
    torch.testing.assert_close(fused.x, apart.x, rtol=1e-5, atol=1e-5)
    half = build(name, normalize=(mean, std), dtype=torch.bfloat16)(raw, y, generator(), **given)
    assert half.x.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_both_of_a_pair_share_what_is_drawn(name):
    x, y = images(8)
    batch = build(name, mode="pair", pairing="flip")(x, y, generator(), **needed(name, x))
    lam = batch.lam.expand(len(batch))[-8:]
    if name not in ("saliencymix", "attentivemix", "puzzlemix"):  # whose boxes and masks depend on the image
        torch.testing.assert_close(lam, lam.flip(0))
        if batch.mask is not None:
            torch.testing.assert_close(batch.mask, batch.mask.flip(0))
    if name in ("mixup", "cutmix", "mixer"):
        assert len(set(lam[:4].tolist())) > 1


def test_in_pair_mode_the_smaller_number_of_two_decides():
    x, y = images(6)
    index = torch.tensor([1, 2, 0, 3, 3, 0])
    lam = MixUp(mode="pair")(x, y, generator(), index=index).lam
    assert lam[0] == lam[2] == lam[5] and lam[3] == lam[4] and len(set(lam.tolist())) == 3


def test_pairings():
    partners = {name: draw_partners(name, 7, generator(), CPU).tolist() for name in PAIRINGS}
    assert partners["flip"] == [6, 5, 4, 3, 2, 1, 0] and partners["roll"] == [6, 0, 1, 2, 3, 4, 5]
    for seed in range(200):
        index = draw_partners("derangement", 5, generator(seed), CPU)
        assert (index != torch.arange(5)).all() and torch.equal(index.sort().values, torch.arange(5))
    assert draw_partners("derangement", 1, None, CPU).tolist() == [0]


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 1e-2, 0.05, 0.099, 0.1, 0.5, 1.0, 5.0, 20.0])
def test_beta_law_in_all_its_range(alpha):
    """Kolmogorov and Smirnov's distance; what float32 rounds to 0 and 1 is no error."""
    stats = pytest.importorskip("scipy.stats")
    n = 40000
    lam = draw_beta(alpha, (n,), generator(7), CPU)
    assert lam.dtype == torch.float32 and ((lam >= 0) & (lam <= 1)).all()
    at = torch.cat((torch.logspace(-30, -1, 60), torch.linspace(0.1, 0.9, 81), 1 - torch.logspace(-1, -6, 30)))
    share = torch.searchsorted(lam.sort().values, at, right=True).double() / n
    law = torch.from_numpy(stats.beta.cdf(at.double().numpy(), max(alpha, 1e-12), max(alpha, 1e-12)))
    assert (share - law).abs().max() < 1.95 / math.sqrt(n)
    assert lam.double().var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert (lam == 0.5).float().mean() < 1e-3


@pytest.mark.parametrize("alpha", [5e-324, 1e18, 1e308])
def test_beta_law_at_the_ends_of_its_range(alpha):
    lam = draw_beta(alpha, (1000,), generator(), CPU)
    ends = (lam == 0) | (lam == 1) if alpha < 1 else lam == 0.5
    assert ends.all() and (alpha > 1 or 0.4 < lam.mean() < 0.6)


def test_beta_law():
    for alpha in (0.2, 1.0, 2.0):
        lam = draw_beta(alpha, (20000,), generator(), CPU)
        assert lam.dtype == torch.float32 and lam.isfinite().all()
        assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    tiny = draw_beta(0.02, (1000,), generator(), CPU)
    assert tiny.isfinite().all() and ((tiny < 1e-6) | (tiny > 1 - 1e-6)).float().mean() > 0.7


@pytest.mark.parametrize(
    ("name", "options", "mean"),
    [
        ("mixup", {}, 0.5),
        ("cutmix", {}, 0.68),  # boxes are cut off at the border
        ("cutmix", {"minmax": (0.25, 0.75)}, 0.76),
        ("resizemix", {}, 0.83),
        ("gridmix", {}, 0.5),
        ("randomgrids", {"law": "exact"}, 0.51),
        ("regmixup", {}, 0.75),
        ("smoothmix", {}, 0.57),  # the Gaussian, integrated over the square, squared
        ("manifoldmix", {}, 0.5),
        ("switch", {"mode": "sample"}, 0.59),
        ("fmix", {}, 0.5),
    ],
)
def test_mean_lam(name, options, mean):
    x, y = torch.zeros(4000, 1, 32, 32), torch.zeros(4000, dtype=torch.int64)
    lam = methods.create(name, **{"mode": "sample", **options})(x, y, generator()).lam
    assert lam.mean().item() == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "resizemix", "regmixup", "switch", "mixer", "none"])
@pytest.mark.parametrize("shape", [(5, 3, 20), (5, 3, 4, 8, 10), (5, 4, 3, 8, 10)])
def test_intervals_volumes_and_videos(name, shape):
    x, y = torch.rand(shape, generator=generator()), torch.arange(5)
    method = methods.create(name, mode="sample", normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    batch = method(x, y, generator(1))
    channels = shape.index(3)
    mean, std = (torch.tensor(v).view(-1, *[1] * (len(shape) - channels - 1)) for v in method.normalize)
    plain = methods.create(name, mode="sample")((x - mean) / std, y, generator(1))
    torch.testing.assert_close(batch.x, plain.x)
    if name in ("cutmix", "mixup"):
        weight = batch.pixel_weight()  # (5, H, W), H = 1 for intervals
        weight = weight if len(shape) == 3 else weight.view(5, 1, 1, 8, 10)
        same = methods.create(name, mode="sample")(x, y, generator(1))
        torch.testing.assert_close(same.x, weight * x + (1 - weight) * x[batch.index])
        assert torch.allclose(weight.flatten(1).mean(1), batch.lam)
    if name == "cutmix" and len(shape) == 3:
        sizes = batch.box[:, 3] - batch.box[:, 1]
        assert (sizes > 0).any() and (batch.box[:, 2] == 1).all()


def test_mixup_takes_any_rank():
    x = torch.rand(4, 9, generator=generator())
    batch = MixUp()(x, torch.arange(4), lam=0.5, index=torch.tensor([1, 0, 3, 2]))
    torch.testing.assert_close(batch.x, 0.5 * x + 0.5 * x[[1, 0, 3, 2]])


@pytest.mark.parametrize("y", [torch.rand(N, 5), torch.rand(N), torch.rand(N, 5).double()])
def test_dense_targets_pass_through(y):
    x, _ = images(N)
    batch = CutMix(mode="sample")(x, y, generator())
    assert torch.equal(batch.y, y) and torch.equal(batch.y_b, y[batch.index])
    weight = batch.lam.view(-1, *[1] * (y.dim() - 1))
    torch.testing.assert_close(batch.apply(y), (weight * y + (1 - weight) * y[batch.index]).to(y.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_several_labels_an_image(name):
    x, _ = images(N)
    y = (torch.rand(N, 5, generator=generator(4)) < 0.4).float()
    batch = build(name, mode="sample")(x, y, generator(), **needed(name, x))
    target = batch.apply(y)
    torch.testing.assert_close(batch.soft(5), target)
    logits = torch.randn(len(batch), 5, generator=generator(5))
    assert batch.loss(logits, kind="bce").isfinite() and batch.loss(logits).isfinite()
    torch.testing.assert_close(batch.loss(logits), F.cross_entropy(logits, target))


def test_cutmix_box_at_the_ends_of_lam_and_of_the_draw():
    centre = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]])
    ratio = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    whole, none, corner = box_around(centre, ratio, 8, 8).tolist()
    assert whole == [0, 0, 8, 8]
    assert none[0] == none[2] and none[1] == none[3]
    assert corner == [3, 3, 8, 8]


def test_none_returns_the_images_themselves_or_normalised():
    x, y = images(N)
    batch = methods.NoMix()(x, y)
    assert batch.x is x and batch.lam.item() == 1 and torch.equal(batch.y_b, y)
    raw = (x * 255).byte()
    got = methods.NoMix(normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))(raw, y).x
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(got, (raw.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_soft_labels_and_loss_agree():
    x, y = images(N)
    batch = methods.MixUp(mode="sample")(x, y, generator())
    logits = torch.randn(N, 4, generator=generator())
    for smoothing in (0.0, 0.1):
        soft = batch.soft(4, smoothing)
        torch.testing.assert_close(soft.sum(1), torch.ones(N))
        torch.testing.assert_close(batch.loss(logits, smoothing), F.cross_entropy(logits, soft))
    same = MixBatch(x, y, y, torch.tensor(0.3), torch.arange(N)).soft(4)
    torch.testing.assert_close(same, F.one_hot(y, 4).float())


def test_accuracy_weighs_both_labels():
    y, y_b = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    logits = F.one_hot(torch.tensor([0, 1, 0]), 3).float()
    batch = MixBatch(torch.zeros(3, 1), y, y_b, torch.tensor([0.75, 0.5, 0.75]), torch.arange(3))
    assert batch.accuracy(logits).item() == pytest.approx((0.75 + 1 + 0.25) / 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, y: methods.MixUp(alpha=0), ValueError, "MixUp: alpha must be a finite number > 0, got 0"),
        (lambda x, y: methods.MixUp(mode="elem"), ValueError, "mode must be one of batch, pair, sample"),
        (lambda x, y: methods.MixUp(pairing="all"), ValueError, "pairing must be one of"),
        (lambda x, y: methods.MixUp()(x, y[:2]), ValueError, r"y must hold as many labels as x has samples, 7, got"),
        (lambda x, y: methods.MixUp()(x, torch.rand(N, 2, 2)), ValueError, "y must have shape"),
        (lambda x, y: methods.MixUp()(x, y, lam=torch.rand(2)), ValueError, "lam must have shape"),
        (lambda x, y: methods.MixUp()(x, y, index=torch.arange(2)), ValueError, "index must be int64 of shape"),
        (lambda x, y: methods.CutMix()(x[:, 0, 0], y), ValueError, r"CutMix: x must have shape \(N, C, L\) or"),
        (lambda x, y: methods.CutMix()(x, y, centre=torch.rand(3)), ValueError, r"centre must have shape \(2\)"),
        (lambda x, y: methods.CutMix(minmax=(0.5, 0.2)), ValueError, "minmax must be"),
        (lambda x, y: methods.RandomGrids(law="any"), ValueError, "law must be one of bernoulli, exact"),
        (lambda x, y: methods.RandomGrids(grid=0), ValueError, "grid must be an int >= 1, got 0"),
        (lambda x, y: methods.SmoothMix()(x[:, 0], y), ValueError, r"SmoothMix: x must have shape \(N, C, H, W\)"),
        (lambda x, y: methods.ResizeMix(scope=(0.9, 0.1)), ValueError, "scope must be"),
        (lambda x, y: methods.RegMixup(eta=-1), ValueError, "eta must be a finite number >= 0, got -1"),
        (lambda x, y: methods.AttentiveMix()(x, y), ValueError, "AttentiveMix: saliency is missing"),
        (lambda x, y: methods.AttentiveMix()(x, y, saliency=x[:2]), ValueError, "saliency must have shape"),
        (lambda x, y: methods.AttentiveMix(top_k=0), ValueError, "top_k must be an int >= 1, got 0"),
        (lambda x, y: methods.Switch(p=2), ValueError, r"Switch: p must be a number in \[0, 1\], got 2"),
        (lambda x, y: methods.Mixer([]), ValueError, "methods must not be empty"),
        (lambda x, y: methods.Mixer(["regmixup"]), ValueError, "methods of one plan a batch"),
        (lambda x, y: methods.Mixer(probs=[0.7, 0.7]), ValueError, "sum to more than 1"),
        (lambda x, y: methods.Mixer(probs=[0.7]), ValueError, "probs must hold 2 numbers"),
        (lambda x, y: methods.ManifoldMixup(layers=()), ValueError, "layers must name at least one"),
        (lambda x, y: methods.create("blur"), ValueError, "name must be one of"),
    ],
)
def test_wrong_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(*images(N))
