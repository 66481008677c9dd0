import pytest
import torch
import torch.nn.functional as F

from fastmix import methods
from fastmix.batch import MixBatch
from fastmix.methods.base import draw_beta
from fastmix.methods.cutmix import random_box
from fastmix.methods.mixup import MixUp

N, H, W = 6, 12, 17
NAMES = [name for name in methods.METHODS if name != "puzzlemix"]  # which needs a saliency: test_puzzlemix.py


def images(n=N, seed=0):
    return torch.rand(n, 3, H, W, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_every_method_gives_a_consistent_batch(name, per_sample):
    x, y = images()
    before = x.clone()
    batch = methods.create(name, alpha=0.7, per_sample=per_sample)(x, y, generator())
    assert isinstance(batch, MixBatch) and len(batch) == N
    assert batch.x.shape == x.shape and batch.x.dtype == x.dtype
    assert batch.lam.dtype == torch.float32
    assert batch.lam.shape == ((N,) if per_sample and name != "none" else ())
    assert ((batch.lam >= 0) & (batch.lam <= 1)).all()
    assert torch.equal(batch.y, y) and torch.equal(batch.y_b, y[batch.index])
    assert torch.equal(batch.index.sort().values, torch.arange(N))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_decides_everything(name):
    x, y = images()
    method = methods.create(name, per_sample=True)
    first, again, other = (method(x, y, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x) and torch.equal(first.lam, again.lam)
    if name != "none":
        assert not torch.equal(first.x, other.x)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    method(x, y, generator(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_size(name, n):
    x, y = images(n)
    batch = methods.create(name)(x, y, generator())
    assert batch.x.shape == x.shape
    if n == 1:
        # its own partner
        torch.testing.assert_close(batch.x, x)


@pytest.mark.parametrize("lam", [0.25, torch.tensor(0.25), torch.linspace(0, 1, N)])
def test_mixup_is_the_convex_combination(lam):
    x, y = images()
    index = torch.tensor([1, 2, 3, 4, 5, 0])
    batch = MixUp()(x, y, lam=lam, index=index)
    w = torch.as_tensor(lam).view(-1, 1, 1, 1)
    torch.testing.assert_close(batch.x, w * x + (1 - w) * x[index])


def test_mixup_takes_any_rank():
    x = torch.rand(4, 9, generator=generator())
    batch = MixUp()(x, torch.arange(4), lam=0.5, index=torch.tensor([1, 0, 3, 2]))
    torch.testing.assert_close(batch.x, 0.5 * x + 0.5 * x[[1, 0, 3, 2]])


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_pastes_the_box_and_reports_the_area_it_left(per_sample):
    x, y = images()
    for seed in range(20):
        batch = methods.CutMix(per_sample=per_sample)(x, y, generator(seed))
        assert batch.box.shape == (N, 4) and batch.box.dtype == torch.int32
        for n, (y0, x0, y1, x1) in enumerate(batch.box.tolist()):
            expected = x[n].clone()
            expected[:, y0:y1, x0:x1] = x[batch.index[n]][:, y0:y1, x0:x1]
            assert torch.equal(batch.x[n], expected)
            kept = 1 - (y1 - y0) * (x1 - x0) / (H * W)
            assert batch.lam.expand(N)[n].item() == pytest.approx(kept, abs=1e-6)
        if not per_sample:
            assert (batch.box == batch.box[0]).all()


def test_cutmix_box_law_against_a_literal_one():
    g = generator(3)
    lam, centre = torch.rand(200, generator=g), torch.rand(2, 200, generator=g)
    boxes = random_box(lam, centre, H, W).tolist()
    for share, row, column, box in zip(lam.tolist(), *centre.tolist(), boxes, strict=True):
        side = (1 - share) ** 0.5
        h, w, cy, cx = int(H * side), int(W * side), int(H * row), int(W * column)
        clip = lambda v, top: min(max(v, 0), top)  # noqa: E731
        assert box == [
            clip(cy - h // 2, H), clip(cx - w // 2, W), clip(cy + h // 2, H), clip(cx + w // 2, W)
        ]  # fmt: skip


def test_cutmix_box_at_the_ends_of_lam_and_of_the_draw():
    centre = torch.tensor([[0.5, 0.5, 1.0], [0.5, 0.5, 1.0]])
    whole, none, corner = random_box(torch.tensor([0.0, 1.0, 0.0]), centre, 8, 8).tolist()
    assert whole == [0, 0, 8, 8]
    assert none[0] == none[2] and none[1] == none[3]
    assert corner == [3, 3, 8, 8]


def test_none_returns_the_images_themselves_or_normalised():
    x, y = images()
    batch = methods.NoMix()(x, y)
    assert batch.x is x and batch.lam.item() == 1 and torch.equal(batch.y_b, y)
    raw = (x * 255).byte()
    got = methods.NoMix(normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))(raw, y).x
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(got, (raw.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_normalising_in_the_same_pass(name):
    x, y = images()
    raw = (x * 255).byte()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plan = {"lam": 0.4, "index": torch.arange(N).roll(1)}
    fused = methods.create(name, normalize=(mean, std))(raw, y, generator(), **plan)
    assert fused.x.dtype == torch.float32
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    apart = methods.create(name)((raw.float() / 255 - m) / s, y, generator(), **plan)
    torch.testing.assert_close(fused.x, apart.x, rtol=1e-5, atol=1e-5)
    half = methods.create(name, normalize=(mean, std), dtype=torch.bfloat16)(raw, y, generator(), **plan)
    assert half.x.dtype == torch.bfloat16


def test_beta_law():
    for alpha in (0.2, 1.0, 2.0):
        lam = draw_beta(alpha, (20000,), generator(), torch.device("cpu"))
        assert lam.dtype == torch.float32 and lam.isfinite().all()
        assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    tiny = draw_beta(0.02, (1000,), generator(), torch.device("cpu"))
    assert tiny.isfinite().all() and ((tiny < 1e-6) | (tiny > 1 - 1e-6)).float().mean() > 0.7


def test_soft_labels_and_loss_agree():
    x, y = images()
    batch = methods.MixUp(per_sample=True)(x, y, generator())
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
        (lambda x, y: methods.MixUp(alpha=0), ValueError, "MixUp: alpha must be > 0, got 0"),
        (lambda x, y: methods.MixUp()(x, y.int()), TypeError, "y must be int64"),
        (lambda x, y: methods.MixUp()(x, y[:2]), ValueError, "y must have shape"),
        (lambda x, y: methods.MixUp()(x, y, lam=torch.rand(2)), ValueError, "lam must have shape"),
        (lambda x, y: methods.CutMix()(x[:, 0], y), ValueError, r"CutMix: x must have shape \(N, C, H, W\)"),
        (lambda x, y: methods.create("blur"), ValueError, "name must be one of"),
    ],
)
def test_wrong_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(*images())
