"""timm's objects: bit-equal to recorded and, where timm is installed, live calls; what is fixed and added."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compat_support import CLASSES, SEEDS, collate_case, load_timm, run_timm, timm_case
from torch.utils.data import DataLoader

from fastmix import methods
from fastmix.batch import MixBatch
from fastmix.compat import timm as ours
from fastmix.compat.timm import FastCollateMixup, Mixup

RECORDED = Path(__file__).parents[1] / "data" / "compat_timm.npz"
MODES = ["batch", "pair", "elem"]


def batch(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    r = np.random.RandomState(seed)
    return torch.from_numpy(255 * r.rand(n, 3, 9, 12)).to(dtype), torch.from_numpy(r.randint(0, CLASSES, n))


def samples(n: int) -> list[tuple[np.ndarray, int]]:
    images, labels = batch(n, torch.uint8)
    return list(zip(images.numpy(), labels.tolist(), strict=True))


def test_a_thousand_recorded_seeds():
    recorded = np.load(RECORDED)
    assert set(map(len, recorded.values())) == {SEEDS}
    for seed in range(SEEDS):
        for name, found in run_timm(ours, seed).items():
            assert recorded[name][seed].tolist() == found, (seed, name, timm_case(seed)[0])


def test_live_timm():
    theirs = load_timm()
    if theirs is None:
        pytest.skip("timm is not installed")
    for seed in range(SEEDS, 2 * SEEDS):
        assert run_timm(theirs, seed) == run_timm(ours, seed), seed


@pytest.mark.parametrize("mode", MODES)
def test_constructor_and_attributes(mode):
    mixup = Mixup(0.8, 1.0, None, 0.9, 0.4, mode, False, 0.2, 10, False)
    wanted = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "cutmix_minmax": None, "mix_prob": 0.9, "switch_prob": 0.4}
    wanted |= {"mode": mode, "correct_lam": False, "label_smoothing": 0.2, "num_classes": 10, "multi_label": False}
    assert vars(mixup).items() >= (wanted | {"mixup_enabled": True}).items()
    assert Mixup(cutmix_minmax=(0.2, 0.8)).cutmix_alpha == 1.0
    assert f"mode={mode!r}" in repr(mixup)


@pytest.mark.parametrize("mode", MODES)
def test_the_images_given_are_the_images_returned(mode):
    x, y = batch(6)
    before = x.clone()
    np.random.seed(0)
    mixed, target = Mixup(mode=mode, num_classes=CLASSES)(x, y)
    assert mixed is x and not torch.equal(x, before) and target.dtype is torch.float32
    np.random.seed(0)
    kept = before.clone()
    other, again = Mixup(mode=mode, num_classes=CLASSES, inplace=False)(kept, y)
    assert torch.equal(kept, before) and torch.equal(other, mixed) and torch.equal(again, target)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("n", [1, 7])
def test_the_middle_of_an_odd_batch_stays(mode, alphas, n):
    x, y = batch(n)
    before = x.clone()
    mixup = Mixup(*alphas, mode=mode, num_classes=CLASSES)
    for seed in range(5):
        x.copy_(before)
        np.random.seed(seed)
        target = mixup(x, y)[1]
        assert torch.equal(x[n // 2], before[n // 2])
        torch.testing.assert_close(target[n // 2], ours.mixup_target(y, CLASSES, 1.0, 0.1)[n // 2])
        assert target.sum(1).sub(1).abs().max() < 1e-6
    if mode != "batch":
        # The others are mixed as in a batch without the middle one.
        pair = torch.cat((before[: n // 2], before[n // 2 + 1 :]))
        if mode == "pair":
            np.random.seed(4)
            mixup(pair, torch.cat((y[: n // 2], y[n // 2 + 1 :])))
            assert torch.equal(pair, torch.cat((x[: n // 2], x[n // 2 + 1 :])))


def test_an_empty_batch():
    for mode in MODES:
        x, target = Mixup(1.0, 1.0, mode=mode, num_classes=CLASSES)(*batch(0))
        assert x.shape == (0, 3, 9, 12) and target.shape == (0, CLASSES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_labels_do_not_depend_on_the_dtype_of_the_images(mode, dtype):
    found = []
    for kind in (torch.float32, dtype):
        x, y = batch(8, kind)
        before = x.double()
        np.random.seed(3)
        found.append(Mixup(0.9, 0.0, mode=mode, num_classes=CLASSES, label_smoothing=0)(x, y)[1])
    assert torch.equal(*found)
    x, y = batch(8, dtype)
    before = x.double()
    np.random.seed(3)
    mixed, batch_of = Mixup(0.9, 0.0, mode=mode, num_classes=CLASSES, soft=False)(x, y)
    lam = batch_of.lam.double().expand(8).view(-1, 1, 1, 1)
    exact = lam * before + (1 - lam) * before.flip(0)
    unit = 1.0 if dtype is torch.uint8 else exact.abs() * torch.finfo(dtype).eps
    assert ((mixed.double() - exact).abs() <= 0.5001 * unit).all()


@pytest.mark.parametrize("mode", MODES)
def test_disabled_mixing_still_smooths(mode):
    x, y = batch(6)
    before = x.clone()
    mixup = Mixup(mode=mode, num_classes=CLASSES)
    mixup.mixup_enabled = False
    state = np.random.get_state()[1].copy()
    mixed, target = mixup(x, y)
    assert torch.equal(mixed, before) and np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(target, ours.mixup_target(y, CLASSES, 1.0, 0.1))
    torch.testing.assert_close(target[0, y[0]], torch.tensor(0.9 + 0.1 / CLASSES))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_mix_batch_instead_of_dense_targets(mode, multi_label):
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "num_classes": CLASSES}
    for seed in range(6):
        x, y = batch(7)
        y = torch.nn.functional.one_hot(y, CLASSES) if multi_label else y
        options |= {"multi_label": multi_label, "label_smoothing": 0.0}
        other, masks = x.clone(), x.clone()
        np.random.seed(seed)
        dense = Mixup(**options)(other, y)[1]
        np.random.seed(seed)
        mixed, result = Mixup(**options, soft=False)(x, y)
        assert isinstance(result, MixBatch) and mixed is x is result.x and torch.equal(x, other)
        # Any other tensor of the batch is mixed likewise.
        torch.testing.assert_close(result.apply(masks), x, rtol=1e-5, atol=1e-4)
        if not multi_label:
            logits = torch.randn(7, CLASSES)
            torch.testing.assert_close(result.soft(CLASSES), dense)
            loss = torch.nn.functional.cross_entropy(logits, dense)
            torch.testing.assert_close(result.loss(logits), loss)


def test_any_layout_and_rank():
    y = torch.arange(4)
    for shape in ((4, 10), (4, 5, 8), (4, 3, 8, 8), (4, 2, 3, 8, 8)):
        for mode in MODES:
            base = torch.rand(shape)
            for layout in (base.clone(), base.repeat_interleave(2, -1)[..., ::2], base.transpose(1, -1)):
                layout = layout if layout.shape == base.shape else layout.contiguous().transpose(1, -1)
                np.random.seed(1)
                wanted = Mixup(mode=mode, num_classes=4)(base.clone(), y)
                np.random.seed(1)
                found = Mixup(mode=mode, num_classes=4)(layout, y)
                assert found[0] is layout
                assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_volumes_are_cut_in_their_last_two_dimensions():
    x = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 3, 4, 10, 10).clone()
    np.random.seed(0)
    mixed, target = Mixup(0.0, 1.0, num_classes=2, label_smoothing=0)(x, torch.arange(2))
    assert torch.equal(mixed[0], mixed[0, :1, :1].expand_as(mixed[0]))
    torch.testing.assert_close(mixed[0].mean(), target[0, 1])


def test_a_gradient_passes():
    x, y = batch(6)
    x.div_(255).requires_grad_()
    for options in ({}, {"inplace": False}):
        np.random.seed(0)
        mixed = Mixup(0.8, 1.0, mode="elem", num_classes=CLASSES, **options)(1 * x, y)[0]
        (gradient,) = torch.autograd.grad(mixed.sum(), x)
        assert gradient.abs().sum() > 0
    with pytest.raises(RuntimeError, match="leaf"):
        Mixup(num_classes=CLASSES)(x, y)


def test_subclasses_may_fix_the_draw():
    class Half(Mixup):
        def _params_per_batch(self):
            return 0.5, False

        def _params_per_elem(self, batch_size):
            return np.full(batch_size, 0.25, dtype=np.float32), np.zeros(batch_size, dtype=bool)

    x, y = batch(4)
    assert torch.equal(Half(num_classes=CLASSES)(x.clone(), y)[0], 0.5 * x + 0.5 * x.flip(0))
    assert torch.equal(Half(num_classes=CLASSES, mode="pair")(x.clone(), y)[0], 0.25 * x + 0.75 * x.flip(0))

    class Doubled(Mixup):
        def _mix_batch(self, x):
            x.mul_(2)
            return 1.0

    assert torch.equal(Doubled(num_classes=CLASSES)(x.clone(), y)[0], 2 * x)


@pytest.mark.parametrize("kind", [Mixup, FastCollateMixup])
def test_bad_settings_are_named(kind):
    with pytest.raises(ValueError, match=r"mode must be one of batch, pair, elem.*, got 'all'"):
        kind(mode="all")
    with pytest.raises(ValueError, match=r"cutmix_minmax must be \(low, high\)"):
        kind(cutmix_minmax=(0.1, 0.2, 0.3))
    for name, bad in (
        *(("mixup_alpha", bad) for bad in (float("inf"), float("nan"), -1.0, "1", True)),
        *(("prob", bad) for bad in (1.5, float("nan"), "1")),
        ("switch_prob", -0.1),
        ("label_smoothing", 2),
        ("num_classes", 10.0),
        ("cutmix_minmax", (0.5, 0.2)),
    ):
        with pytest.raises(ValueError, match=f"fastmix.{kind.__name__}: {name} must be"):
            kind(**{name: bad})
    with pytest.raises(TypeError, match=f"fastmix.{kind.__name__}: .*'mixup_alpah'; did you mean 'mixup_alpha'"):
        kind(mixup_alpah=1.0)
    for mode in MODES:
        x, y = batch(4)
        given = (x, y) if kind is Mixup else (samples(4),)
        with pytest.raises(ValueError, match="mixup_alpha or cutmix_alpha must be > 0"):
            kind(0.0, mode=mode, num_classes=CLASSES)(*given)
    with pytest.raises(ValueError, match=r"target must be dense \(N, 7\)"):
        ours.mixup_target(batch(4)[1], CLASSES, multi_label=True)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 16, 16), torch.tensor([1]), r"as many labels as x has samples, 3, got.*x\[None\]"),
        (torch.rand(3, 16, 16), torch.tensor(1), "as many labels"),
        (torch.rand(3, 16, 16), torch.arange(3), r"looks like a single image \(C, H, W\), got \(3, 16, 16\)"),
        (torch.rand(8, 3, 16, 16), torch.zeros(6).long(), "target must hold as many labels as x has samples, 8"),
        (torch.rand(4, 16, 16, 3), torch.arange(4), r"looks like images of 3 channels.*\(4, 16, 16, 3\)"),
        (torch.rand(4, 3, 16, 16), torch.tensor([0, 7, 1, 2]), r"num_classes=7 must lie in \[0, 6\], got 7"),
        (torch.rand(4, 3, 16, 16), torch.tensor([0, -1, 1, 2]), "got -1"),
        (torch.rand(4, 3, 16, 16), torch.rand(4, 7), "one class number an image"),
        ({"image": torch.rand(4, 3, 8, 8)}, torch.arange(4), "got dict; pass the images"),
        (torch.rand(4, 3, 8, 8), [0, 1, 2, 3], "target must be a tensor of 4 labels, got list"),
    ],
)
def test_bad_batches_are_named_and_left_alone(x, y, message, inplace, soft):
    before = copy.deepcopy(x)
    for mode in MODES:
        with pytest.raises((TypeError, ValueError), match=message):
            Mixup(0.8, 1.0, mode=mode, num_classes=CLASSES, inplace=inplace, soft=soft)(x, y)
    assert isinstance(x, dict) or torch.equal(x, before)
    with pytest.raises(ValueError, match=r"target must be dense \(N, 7\) with multi_label"):
        Mixup(num_classes=CLASSES, multi_label=True)(torch.rand(4, 3, 8, 8), torch.rand(4, 6))
    assert Mixup(num_classes=4, check_layout=False)(torch.rand(4, 8, 5, 3), torch.arange(4))[0].shape == (4, 8, 5, 3)


def test_collate_names_bad_samples():
    with pytest.raises(ValueError, match="looks like images of 3 channels"):
        FastCollateMixup()([(np.zeros((8, 8, 3), np.uint8), 0)] * 2)
    with pytest.raises(ValueError, match=r"images must have one shape \(C, H, W\), got \(8, 8\)"):
        FastCollateMixup()([(np.zeros((8, 8), np.uint8), 0)] * 2)
    with pytest.raises(ValueError, match="images must have one shape"):
        FastCollateMixup()([(torch.zeros(3, 8, side, dtype=torch.uint8), 0) for side in (8, 9)])
    with pytest.raises(ValueError, match=r"num_classes=10 must lie in \[0, 9\], got 10"):
        FastCollateMixup(num_classes=10)([(np.zeros((3, 8, 8), np.uint8), 10)] * 2)


def test_helpers():
    y = torch.tensor([2, 0])
    assert ours.one_hot(y, 3, 0.9, 0.05).tolist() == torch.tensor([[0.05, 0.05, 0.9], [0.9, 0.05, 0.05]]).tolist()
    for size in (None, 5):
        np.random.seed(0)
        y0, y1, x0, x1 = map(np.asarray, ours.rand_bbox((3, 40, 30), 0.3, margin=0.1, count=size))
        assert ((y0 >= 0) & (y0 < y1) & (y1 <= 40) & (x0 >= 0) & (x0 < x1) & (x1 <= 30)).all()
        y0, y1, x0, x1 = map(np.asarray, ours.rand_bbox_minmax((3, 40, 30), (0.2, 0.5), count=size))
        assert ((y1 - y0 >= 8) & (y1 - y0 < 20) & (x1 - x0 >= 6) & (x1 - x0 < 15) & (y1 <= 40) & (x1 <= 30)).all()


def test_collate_reads_only():
    for seed in range(20):
        options, given = collate_case(seed)
        before = copy.deepcopy(given)
        FastCollateMixup(**options)(given)
        for (image, _), (kept, _) in zip(given, before, strict=True):
            assert (image == kept).all()


def test_collate_toggles_and_takes_odd_batches():
    for mode in (*MODES, "half"):
        collate = FastCollateMixup(0.8, 1.0, mode=mode, num_classes=CLASSES)
        given = samples(7)
        np.random.seed(0)
        images, target = collate(given)
        assert len(images) == len(target) == (4 if mode == "half" else 7) and images.dtype is torch.uint8
        assert (images[3].numpy() == given[3][0]).all()
        collate.mixup_enabled = False
        images, target = collate(given)
        assert all((image.numpy() == sample[0]).all() for image, sample in zip(images, given, strict=False))
        assert target.argmax(1).tolist() == [label for _, label in given][: len(target)]


def test_collate_takes_bytes_only():
    with pytest.raises(TypeError, match="images must be uint8 arrays or tensors, got float32"):
        FastCollateMixup()([(np.zeros((3, 4, 4), np.float32), 0)] * 2)
    # As timm's ToNumpy leaves them: channels moved to the front of an image in memory.
    given = samples(4)
    views = [(np.moveaxis(np.ascontiguousarray(np.moveaxis(image, 0, 2)), 2, 0), label) for image, label in given]
    found = []
    for each in (given, views):
        np.random.seed(0)
        found.append(FastCollateMixup(num_classes=CLASSES)(each)[0])
    assert torch.equal(*found)


def test_collate_in_workers():
    collate = pickle.loads(pickle.dumps(FastCollateMixup(0.8, 1.0, mode="elem", num_classes=CLASSES)))
    collate.mixup_enabled = False
    assert pickle.loads(pickle.dumps(collate)).mixup_enabled is False
    assert copy.copy(collate).mode == copy.deepcopy(collate).mode == "elem"
    collate.mixup_enabled = True
    Mixup(num_classes=CLASSES)(*batch(64))  # a pool of threads before the fork
    loaded = list(DataLoader(samples(16), batch_size=8, collate_fn=collate, num_workers=2))
    assert [images.shape for images, _ in loaded] == [(8, 3, 9, 12)] * 2
    assert loaded[0][1].sum(1).sub(1).abs().max() < 1e-6


def test_collate_is_an_instance_of_timm_s_once_that_is_imported(monkeypatch):
    collate = FastCollateMixup()
    assert collate.__class__ is FastCollateMixup

    class Theirs:
        pass

    monkeypatch.setitem(sys.modules, "timm.data.mixup", SimpleNamespace(FastCollateMixup=Theirs))
    assert isinstance(collate, Theirs) and isinstance(collate, FastCollateMixup)
    assert type(pickle.loads(pickle.dumps(collate))) is FastCollateMixup
    assert not isinstance(Mixup(), Theirs)


def test_the_native_methods_are_untouched_by_numpy():
    """The drop-in alone draws from numpy's global state."""
    state = np.random.get_state()[1].copy()
    methods.CutMix()(*batch(4))
    assert np.array_equal(state, np.random.get_state()[1])
