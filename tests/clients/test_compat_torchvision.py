"""torchvision's transforms: bit-equal to recorded and, where it is installed, live calls; what is fixed and added."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compat_support import CLASSES, SEEDS, load_torchvision, run_torchvision, torchvision_case
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, default_collate

from fastmix.batch import MixBatch
from fastmix.compat import torchvision as ours
from fastmix.compat.torchvision import CutMix, MixUp

RECORDED = Path(__file__).parents[1] / "data" / "compat_torchvision.npz"
BOTH = [MixUp, CutMix]


def batch(n: int = 6, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    r = np.random.RandomState(seed)
    return torch.from_numpy(255 * r.rand(n, 3, 9, 12)).to(dtype), torch.from_numpy(r.randint(0, CLASSES, n))


def seeded(transform, *inputs, seed: int = 0):
    torch.manual_seed(seed)
    return transform(*inputs)


@pytest.fixture
def tv(monkeypatch) -> SimpleNamespace:
    """Stand-ins for torchvision.tv_tensors, which need not be installed."""

    class TVTensor(Tensor):
        pass

    names = ("Image", "Video", "Mask", "BoundingBoxes", "KeyPoints")
    kinds = {name: type(name, (TVTensor,), {}) for name in names}

    def wrap(tensor: Tensor, *, like: Tensor) -> Tensor:
        return tensor.as_subclass(type(like))

    module = SimpleNamespace(TVTensor=TVTensor, wrap=wrap, **kinds)
    monkeypatch.setitem(sys.modules, "torchvision.tv_tensors", module)
    return module


def test_a_thousand_recorded_seeds():
    recorded = np.load(RECORDED)
    assert set(map(len, recorded.values())) == {SEEDS}
    for seed in range(SEEDS):
        for name, found in run_torchvision(ours, seed).items():
            assert recorded[name][seed].tolist() == found, (seed, name, torchvision_case(seed)[:2])


def test_live_torchvision():
    theirs = load_torchvision()
    if theirs is None:
        pytest.skip("torchvision is not installed")
    for seed in range(SEEDS, 2 * SEEDS):
        assert run_torchvision(theirs, seed) == run_torchvision(ours, seed), seed


def test_live_containers():
    theirs = load_torchvision()
    if theirs is None:
        pytest.skip("torchvision is not installed")
    kinds = sys.modules["torchvision.tv_tensors"]
    x, y = batch()
    inputs = [
        (x, y, "name", torch.ones(3)),
        ({"images": x, "labels": y, "more": [1, torch.ones(2)]},),
        ((kinds.Image(x), {"MyLabel": y, "plain": x.clone()}),),
        (kinds.Video(x.unsqueeze(1).expand(6, 2, 3, 9, 12)), y),
    ]
    for given in inputs:
        for name in ("MixUp", "CutMix"):
            pair = [seeded(getattr(module, name)(num_classes=CLASSES), *given) for module in (theirs, ours)]
            (wanted, spec), (found, again) = map(tree_flatten, pair)
            assert spec == again
            for a, b in zip(wanted, found, strict=True):
                assert type(a) is type(b) and (torch.equal(a, b) if isinstance(a, Tensor) else a == b)
    chain = theirs.Compose([theirs.RandomChoice([CutMix(num_classes=CLASSES), MixUp(num_classes=CLASSES)])])
    assert chain(x, y)[1].shape == (6, CLASSES)
    with pytest.raises(ValueError, match="bounding boxes"):
        MixUp(num_classes=CLASSES)(x, y, kinds.BoundingBoxes(torch.zeros(1, 4), format="XYXY", canvas_size=(9, 12)))


@pytest.mark.parametrize("kind", BOTH)
def test_inputs_are_left_as_they_are(kind):
    x, y = batch()
    before = x.clone()
    mixed, target = seeded(kind(num_classes=CLASSES), x, y)
    assert torch.equal(x, before) and not torch.equal(mixed, x)
    assert target.dtype is torch.float32 and target.shape == (6, CLASSES)
    torch.testing.assert_close(target.sum(1), torch.ones(6))


@pytest.mark.parametrize("kind", BOTH)
def test_containers_come_back(kind):
    x, y = batch()
    transform = kind(num_classes=CLASSES)
    mixed, target = seeded(transform, x, y)
    found = seeded(transform, {"image": x, "labels": y, "path": "a", "extra": [torch.ones(2), None]})
    assert list(found) == ["image", "labels", "path", "extra"] and found["path"] == "a"
    assert torch.equal(found["image"], mixed) and torch.equal(found["labels"], target)
    assert torch.equal(found["extra"][0], torch.ones(2)) and found["extra"][1] is None
    # Labels first are still labels.
    found = seeded(transform, {"Some_LABEL": y, "image": x})
    assert torch.equal(found["image"], mixed) and torch.equal(found["Some_LABEL"], target)
    found = seeded(kind(num_classes=CLASSES, labels_getter=lambda inputs: inputs[2]), x, "text", y)
    assert torch.equal(found[0], mixed) and found[1] == "text" and torch.equal(found[2], target)
    found = seeded(transform, [x, y])
    assert isinstance(found, list) and torch.equal(found[0], mixed)


@pytest.mark.parametrize("kind", BOTH)
def test_tv_tensors_keep_their_class(kind, tv):
    x, y = batch()
    transform = kind(num_classes=CLASSES)
    mixed, _ = seeded(transform, x, y)
    image, plain, _ = seeded(transform, x.as_subclass(tv.Image), {"label": y, "features": x}, 3)
    assert type(image) is tv.Image and torch.equal(image.as_subclass(Tensor), mixed) and plain["features"] is x
    video = x.unsqueeze(1).expand(6, 2, 3, 9, 12).clone().as_subclass(tv.Video)
    found = seeded(transform, video, y)[0]
    assert type(found) is tv.Video
    assert torch.equal(found.as_subclass(Tensor), mixed.unsqueeze(1).expand(6, 2, 3, 9, 12))
    for name in ("BoundingBoxes", "KeyPoints"):
        with pytest.raises(ValueError, match=f"got {name}"):
            transform(x, y, torch.zeros(6, 4).as_subclass(getattr(tv, name)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("channels", [None, 1, 4])
def test_masks_are_mixed_as_the_images(dtype, channels, tv):
    x, y = batch()
    shape = (6, 9, 12) if channels is None else (6, channels, 9, 12)
    mask = (torch.arange(6 * 108 * (channels or 1)).view(shape) % 251).to(dtype)
    for kind in BOTH:
        transform = kind(num_classes=CLASSES)
        torch.manual_seed(5)
        params = transform.make_params([x])
        found = seeded(transform, x, y, mask.as_subclass(tv.Mask), seed=5)[2]
        assert type(found) is tv.Mask and found.dtype is dtype
        wanted, before = mask.clone(), mask.roll(1, 0)
        if kind is CutMix:
            x0, y0, x1, y1 = params["box"]
            wanted[..., y0:y1, x0:x1] = before[..., y0:y1, x0:x1]
        elif dtype.is_floating_point:
            wanted = mask * params["lam"] + before * (1 - params["lam"])
        elif params["lam"] < 0.5:
            wanted = before
        torch.testing.assert_close(found.as_subclass(Tensor), wanted)


def test_bytes_are_rounded_half_to_even():
    transform = MixUp(num_classes=2)
    transform.make_params = lambda _: {"lam": 0.5}
    x = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8).view(5, 1, 1, 1)
    assert transform(x, torch.zeros(5, dtype=torch.int64))[0].flatten().tolist() == [2, 0, 2, 2, 4]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_labels_as_probabilities(kind, dtype):
    x, _ = batch()
    labels = torch.eye(6)[:, :3].to(dtype)
    target = seeded(kind(), x, labels)[1]
    assert target.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(target.float(), seeded(kind(), x, labels.float())[1])


def test_a_layout_that_is_right_can_be_forced():
    x = torch.rand(4, 8, 5, 3)
    with pytest.raises(ValueError, match="check_layout=False"):
        MixUp(num_classes=4)(x, torch.arange(4))
    assert MixUp(num_classes=4, check_layout=False)(x, torch.arange(4))[0].shape == x.shape


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("n", [0, 1])
def test_tiny_batches(kind, n):
    x, y = batch(n)
    mixed, target = kind(num_classes=CLASSES)(x, y)
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(target, torch.nn.functional.one_hot(y, CLASSES).float())


@pytest.mark.parametrize("kind", BOTH)
def test_a_mix_batch_instead_of_dense_labels(kind):
    x, y = batch()
    mixed, dense = seeded(kind(num_classes=CLASSES), x, y)
    found, result = seeded(kind(num_classes=CLASSES, soft=False), x, y)
    assert isinstance(result, MixBatch) and torch.equal(found, mixed) and result.x is found
    torch.testing.assert_close(result.soft(CLASSES), dense)
    torch.testing.assert_close(result.apply(x), mixed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_a_gradient_passes(kind):
    x, y = batch()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(seeded(kind(num_classes=CLASSES), x, y)[0].sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x))


@pytest.mark.parametrize("kind", BOTH)
def test_pickled_in_the_workers_of_a_loader(kind):
    transform = pickle.loads(pickle.dumps(kind(num_classes=CLASSES)))
    x, y = batch(8)
    assert torch.equal(seeded(transform, x, y)[0], seeded(kind(num_classes=CLASSES), x, y)[0])
    transform(*batch(64))  # a pool of threads before the fork

    def collate(samples):
        return transform(*default_collate(samples))

    loaded = list(DataLoader(list(zip(x, y.tolist(), strict=True)), 4, collate_fn=collate, num_workers=2))
    assert [target.shape for _, target in loaded] == [(4, CLASSES)] * 2
    assert repr(transform) == f"{kind.__name__}(alpha=1.0, num_classes={CLASSES}, soft=True)"


X, Y = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((X, "cat"), ValueError, "must be a dictionary, or a pair"),
        ((X, {"class": Y}), ValueError, "must hold 'label'"),
        ((X, {"label": 3}), ValueError, "labels must be a tensor, got int"),
        ((X, Y[:, None, None]), ValueError, r"labels must have shape \(B,\) or"),
        ((X, torch.rand(4, 5)), ValueError, r"labels must have shape \(B, 3\)"),
        ((X, Y[:3]), ValueError, "tensors must be as many as labels, 3, got 4"),
        ((X[0], Y), ValueError, "must have 4 dimensions"),
        ((X[None], Y), ValueError, "must have 4 dimensions"),
        ((X, Y.float()), RuntimeError, "labels of shape .* must be class numbers, got torch.float32"),
        ((X, Y + 1), ValueError, r"labels for num_classes=3 must lie in \[0, 2\], got 3"),
        ((X, Y - 1), ValueError, r"labels for num_classes=3 must lie in \[0, 2\], got -1"),
        ((X.permute(0, 2, 3, 1), Y), ValueError, "looks like images of 3 channels in the last dimension"),
    ],
)
def test_bad_inputs_are_named(kind, inputs, error, message):
    with pytest.raises(error, match=message):
        kind(num_classes=3)(*inputs)


def test_bad_settings_are_named(tv):
    with pytest.raises(ValueError, match="num_classes must be given"):
        MixUp()(X, Y)
    with pytest.raises(ValueError, match="labels_getter must be 'default'"):
        MixUp(labels_getter="second")
    with pytest.raises(ValueError, match="labels must be a tensor, got NoneType"):
        MixUp(labels_getter=None)(X, Y)
    with pytest.raises(ValueError, match="must return one of the inputs"):
        MixUp(num_classes=3, labels_getter=lambda inputs: inputs[1].clone())(X, Y)
    with pytest.raises(ValueError, match="alpha must be a finite number > 0"):
        MixUp(alpha=0.0)
    for bad in (float("nan"), float("inf"), -1.0, "1", True):
        with pytest.raises(ValueError, match=r"fastmix.CutMix: alpha must be a finite number > 0"):
            CutMix(alpha=bad)
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"fastmix.MixUp: num_classes must be an int >= 1"):
            MixUp(num_classes=bad)
    with pytest.raises(TypeError, match=r"fastmix.MixUp: there is no argument 'alhpa'; did you mean 'alpha'\?"):
        MixUp(alhpa=1.0)
    with pytest.raises(TypeError):
        MixUp(1.0)
    with pytest.raises(TypeError, match="must hold images"):
        CutMix(num_classes=3)("text", Y)
    with pytest.raises(ValueError, match="must have one size"):
        CutMix(num_classes=3)(X, Y, torch.zeros(4, 5, 5).as_subclass(tv.Mask))
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 4))
    with pytest.raises(ValueError, match="without PIL images"):
        MixUp(num_classes=3)(image, Y)
