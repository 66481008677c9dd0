"""What every method refuses before it mixes anything, and what it must not refuse."""

import math

import numpy as np
import pytest
import torch
from method_cases import NAMES, build, generator, images, needed

from fastmix import _checks, methods, ops
from fastmix.methods.base import MODES

N = 6
NOT_NUMBERS = ["1", None, True, [0.5], torch.tensor(0.5), 1j]
OUT_OF_RANGE = [math.nan, math.inf, -math.inf, -0.5]

# What each setting takes: the values that lie just out of its range, beside those that are no numbers at all.
NUMBERS = {
    "mixup": {"alpha": (0,)},
    "cutmix": {"minmax": ((0.5, 0.2), (0.2, 1.5), (0.5,), (math.nan, 1), "ab")},
    "fmix": {"decay": (), "softness": (0.51,), "cycles": (0, 1.5)},
    "resizemix": {"scope": ((0.5, 0.2), (-0.1, 1), (0.1, math.inf), 0.5), "law": ("any",), "resize": ("cubic",)},
    "attentivemix": {"top_k": (0, 2.0), "grid": (0, 2.0), "features": (3,)},
    "randomgrids": {"grid": (0, 2.0, (2, 0), (2, 2, 2)), "law": ("any",)},
    "gridmix": {
        "holes": ((0, 2), (3, 2), (1.5, 2)),
        "area": ((0, 1), (0.5, 1.2), (math.nan, 1)),
        "aspect": ((0, 1), (2, 1), (0.5, math.inf)),
    },
    "regmixup": {"eta": ()},
    "manifoldmix": {"layers": ((), 3, (1,))},
    "puzzlemix": {
        **{name: () for name in ("beta", "gamma", "eta", "t_eps", "adv_eps")},
        "adv_prob": (1.5,),
        "n_labels": (1, 5, 3.0),
        "blocks": (0, 33, 2.0, ()),
        "neighborhood": (0, 4.0),
        "t_size": (0, 4.0),
        "solver": ("gco",),
        "assignment": ("best",),
        "transport": (1,),
        "blocks_per_sample": ("yes",),
    },
    "switch": {"p": (1.5,), "mix_prob": (1.5,), "first": ("mixup", 3), "second": (methods.CutMix,)},
    "mixer": {"probs": ((0.5,), (0.7, 0.7), (math.nan, 0.5), (-0.1, 0.5), (True, 0), "ab", 0.5)},
}
EVERY = {"alpha": (0,), "p": (1.5,), "mode": ("elem", 3), "pairing": ("all", None), "check_layout": (0, "no")}
# Of the values that are no numbers, those that a setting takes.
FINE = {
    **dict.fromkeys(("alpha", "mode", "minmax", "cycles", "top_k", "grid", "features", "holes", "t_size"), (None,)),
    **dict.fromkeys(("first", "second", "probs"), (None,)),
    **dict.fromkeys(("check_layout", "transport", "blocks_per_sample"), (True,)),
    "layers": ("1",),
}


def wrong_settings(name: str):
    for key, bad in {**EVERY, **NUMBERS.get(name, {})}.items():
        if (name, key) == ("randomgrids", "grid"):
            yield key, None
        for value in (*bad, *NOT_NUMBERS, *OUT_OF_RANGE):
            if not any(value is fine for fine in FINE.get(key, ())):
                yield key, value


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_checked(name):
    kind = methods.METHODS[name].__name__
    for key, value in wrong_settings(name):
        with pytest.raises(ValueError, match=rf"fastmix\.{kind}: .*{key}"):
            methods.create(name, **{key: value})


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_numpy_are_numbers(name):
    method = methods.create(name, alpha=np.float32(0.5), p=np.float64(0.25))
    assert method.alpha == 0.5 and (name == "switch" or method.p == 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_keyword_names_the_class_and_the_nearest(name):
    kind = methods.METHODS[name].__name__
    with pytest.raises(TypeError, match=rf"fastmix\.{kind}: there is no argument 'alhpa'; did you mean 'alpha'\?"):
        methods.create(name, alhpa=1)
    with pytest.raises(TypeError, match=rf"fastmix\.{kind}: there is no argument 'zzz'; it takes .*normalize"):
        methods.create(name, zzz=1)
    if name != "none":  # which takes what any other method is given
        with pytest.raises(TypeError, match=rf"{kind}.*'indx'"):
            build(name)(*images(N), indx=None, **needed(name, images(N)[0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (torch.rand(8, 3, 8, 8), torch.zeros(6).long(), ValueError, "as many labels as x has samples, 8"),
        (torch.rand(3, 8, 8), torch.tensor([1]), ValueError, r"as many labels.*x\[None\]"),
        (torch.rand(3, 8, 8), torch.tensor(1), ValueError, "as many labels"),
        (
            torch.rand(4, 8, 8, 3),
            torch.arange(4),
            ValueError,
            r"looks like images of 3 channels .*permute\(0, 3, 1, 2\)",
        ),
        (torch.rand(4, 8, 6, 1), torch.arange(4), ValueError, "looks like images of 1 channels"),
        (torch.rand(2, 5, 5, 4), torch.arange(2), ValueError, "check_layout=False"),
        (torch.tensor(1.0), torch.arange(1), TypeError, "a tensor of shape"),
        ({"image": torch.rand(4, 3, 8, 8)}, None, TypeError, "got dict; pass the images and the labels"),
        ((torch.rand(4, 3, 8, 8), torch.arange(4)), None, TypeError, "got tuple; pass the images and the labels"),
        ([torch.rand(3, 8, 8)] * 4, torch.arange(4), TypeError, "got list"),
        (np.zeros((4, 3, 8, 8)), torch.arange(4), TypeError, "got ndarray"),
        (torch.rand(4, 3, 8, 8), {"a": torch.arange(4)}, TypeError, "got dict; mix one of them, and the others by"),
        (torch.rand(4, 3, 8, 8), [0, 1, 2, 3], TypeError, "y must be a tensor of 4 labels, got list"),
        (torch.rand(4, 3, 8, 8), torch.rand(4, 2, 2), ValueError, "y must have shape"),
    ],
)
def test_every_method_looks_at_its_batch(name, x, y, error, words):
    with pytest.raises(error, match=rf"fastmix\.{methods.METHODS[name].__name__}: .*{words}"):
        build(name)(x, y)


@pytest.mark.parametrize("channels", _checks.CHANNELS)
def test_channels_first_is_never_refused(channels):
    for height in (1, 2, 3, 4, 5, 64):
        for width in (1, 2, 3, 4, 5, 64):
            _checks.channels_first("op", torch.empty(2, channels, height, width))
            _checks.channels_first("op", torch.empty(2, channels, 7, height, width))
    for shape in ((2, 64, 4, 4), (2, 64, 1, 1), (2, 64, 3, 3), (2, 512, 7, 7), (2, 64, 4), (2, 9), (2, 16, 1, 4)):
        _checks.channels_first("op", torch.empty(shape))
    with pytest.raises(ValueError, match="permute"):
        _checks.channels_first("op", torch.empty(2, 8, 16, 16, 3))


def test_a_layout_that_is_right_can_be_forced():
    x, y = torch.rand(4, 8, 5, 3), torch.arange(4)
    for name in ("mixup", "cutmix", "regmixup", "mixer", "switch", "none", "manifoldmix"):
        assert build(name, check_layout=False)(x, y, generator()).x.shape[1:] == x.shape[1:]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize(
    "lam", [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5], torch.full((N,), 1), torch.rand(N) + 1]
)
def test_a_given_lam_is_checked(name, lam):
    x, y = images(N)
    with pytest.raises((TypeError, ValueError), match=rf"fastmix\.{methods.METHODS[name].__name__}: lam must"):
        build(name)(x, y, generator(), lam=lam, **needed(name, x))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize(
    "index",
    [[0] * N, torch.zeros(N), torch.zeros(N).int(), torch.arange(N + 1), torch.full((N,), N), torch.full((N,), -1)],
)
def test_a_given_index_is_checked(name, index):
    x, y = images(N)
    with pytest.raises((TypeError, ValueError), match=rf"fastmix\.{methods.METHODS[name].__name__}: index must"):
        build(name)(x, y, generator(), index=index, **needed(name, x))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("cutmix", {"centre": torch.tensor([0.5, 1.5])}, r"centre must lie in \[0, 1\], got 1.5"),
        ("cutmix", {"box": torch.rand(4)}, "box must be torch.int32, got torch.float32"),
        ("cutmix", {"centre": "middle"}, "centre must be a number or a tensor"),
        ("resizemix", {"tau": math.nan}, "tau must lie in"),
        ("smoothmix", {"sigma": -1.0}, "sigma must lie in"),
        ("randomgrids", {"noise": torch.full((8, 8), 2.0)}, "noise must lie in"),
        ("randomgrids", {"mask": torch.full((8, 8), -1.0)}, "mask must lie in"),
        ("mixer", {"choice": torch.tensor(3)}, r"choice must lie in \[0, 2\], got 3"),
        ("fmix", {"coin": 2}, "coin must lie in"),
        ("puzzlemix", {"blocks": 2.0}, "blocks must be an int"),
        ("puzzlemix", {"saliency": [1]}, "saliency must be a floating tensor, got list"),
    ],
)
def test_other_given_draws_are_checked(name, given, words):
    x, y = images(N)
    with pytest.raises((TypeError, ValueError), match=f"fastmix.{methods.METHODS[name].__name__}: {words}"):
        build(name)(x, y, generator(), **{**needed(name, x), **given})


def test_a_given_box_is_clipped_to_the_image():
    x, y = images(N)
    batch = methods.CutMix()(x, y, generator(), box=torch.tensor([-3, 2, 100, 6], dtype=torch.int32))
    assert batch.box[0].tolist() == [0, 2, 12, 6] and batch.lam == 0.75


NORMALIZE = [
    ((0.5, 0.5), TypeError, "the mean of normalize must hold one number a channel, got float 0.5"),
    (0.5, TypeError, r"normalize must be a pair \(mean, std\)"),
    (((0.5,) * 3, 0.5), TypeError, "the std of normalize must hold"),
    (((0.5,) * 3,) * 3, TypeError, "normalize must be a pair"),
    (("abc", (0.5,) * 3), TypeError, "the mean of normalize must hold"),
    (((0.5,) * 3, (0.5, 0.0, 0.5)), ValueError, "the std of normalize must hold finite numbers > 0"),
    (((0.5,) * 3, (0.5, -0.1, 0.5)), ValueError, "the std of normalize must hold finite numbers > 0"),
    (((0.5, math.nan, 0.5), (0.5,) * 3), ValueError, "the mean of normalize must hold finite numbers"),
    (((0.5,) * 3, torch.tensor([0.5, 0.5, 0.0])), ValueError, "the std of normalize must hold finite numbers > 0"),
    (((0.5,) * 3, (0.5,) * 2), ValueError, "normalize must hold"),
]


@pytest.mark.parametrize(("normalize", "error", "words"), NORMALIZE)
def test_normalize_is_checked(normalize, error, words):
    x, index = images(N)[0], torch.arange(N)
    box, mask = torch.zeros(N, 4, dtype=torch.int32), torch.rand(N, 2, 2)
    calls = [
        ("blend", lambda: ops.blend(x, index, 0.5, normalize=normalize)),
        ("box_blend", lambda: ops.box_blend(x, index, box, normalize=normalize)),
        ("mask_blend", lambda: ops.mask_blend(x, index, mask, normalize=normalize)),
        *((methods.METHODS[name].__name__, lambda name=name: build(name, normalize=normalize)) for name in NAMES),
    ]
    for where, call in calls:
        with pytest.raises(error, match=f"fastmix.{where}: {words}"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda **given: methods.SaliencyMix(**given),
        lambda **given: methods.PuzzleMix(**given),
        lambda **given: ops.fine_grained_saliency(images(2)[0], **given),
        lambda **given: ops.puzzle_energy(
            images(2)[0], torch.rand(2, 2, 2), torch.arange(2), 0.5, 3, neighborhood=2, **given
        ),
    ],
    ids=["SaliencyMix", "PuzzleMix", "fine_grained_saliency", "puzzle_energy"],
)
def test_mean_and_std_are_checked(call):
    three = (0.5,) * 3
    with pytest.raises(TypeError, match="mean must hold one number a channel, got float"):
        call(mean=0.5, std=three)
    with pytest.raises(TypeError, match="std must hold one number a channel"):
        call(mean=three, std=["a"] * 3)
    for bad in ((0.5, 0.0, 0.5), (0.5, math.nan, 0.5)):
        with pytest.raises(ValueError, match="std must hold finite numbers > 0"):
            call(mean=three, std=bad)


@pytest.mark.parametrize("name", NAMES)
def test_an_unlabelled_batch(name):
    x, y = images(N)
    extra = needed(name, x)
    labelled, bare = build(name)(x, y, generator(), **extra), build(name)(x, None, generator(), **extra)
    assert torch.equal(bare.x, labelled.x) and torch.equal(bare.index, labelled.index) and bare.y is bare.y_b is None
    torch.testing.assert_close(bare.apply(x), labelled.apply(x))
    logits = torch.zeros(len(bare), 4)
    for call in (lambda: bare.loss(logits), lambda: bare.soft(4), lambda: bare.accuracy(logits)):
        with pytest.raises(ValueError, match="the batch has no labels"):
            call()


def with_chance(name: str, p: float, **options) -> methods.MixMethod:
    return build(name, **{"mix_prob" if name == "switch" else "p": p}, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_is_left_alone(name, mode):
    x, y = images(N)
    extra = needed(name, x)
    batch = with_chance(name, 0.0, mode=mode)(x, y, generator(), **extra)
    assert torch.equal(batch.x, x.repeat(len(batch) // N, 1, 1, 1))
    assert (batch.lam == 1).all() and torch.equal(batch.index, torch.arange(N).repeat(len(batch) // N))
    assert torch.equal(batch.y_b, batch.y) and (batch.pixel_weight() == 1).all()
    areas = torch.arange(len(x[0, 0].flatten())).view(x.shape[-2:]).expand(N, -1, -1) + 1000 * y.view(-1, 1, 1)
    assert torch.equal(batch.apply(areas), areas.repeat(len(batch) // N, 1, 1))
    same, always = build(name, mode=mode)(x, y, generator(), **extra), with_chance(name, 1.0, mode=mode)
    assert torch.equal(always(x, y, generator(), **extra).x, same.x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_some_are_left_alone_and_the_others_mixed_as_before(name, mode):
    n = 40
    x, y = images(n)
    extra = {key: torch.randn(n, *value.shape[1:], generator=generator(9)) for key, value in needed(name, x).items()}
    half, whole, alone = with_chance(name, 0.5, mode=mode, pairing="flip"), build(name, mode=mode, pairing="flip"), 0
    for seed in range(6):
        some, every = (method(x, y, generator(seed), **extra) for method in (half, whole))
        assert some.layer == every.layer
        left = (some.index == torch.arange(n).repeat(len(some) // n))[-n:]
        alone += left.sum().item()
        assert torch.equal(some.x[-n:][left], x[left]) and (some.lam.expand(len(some))[-n:][left] == 1).all()
        mixed, lam = (torch.equal(a[-n:][~left], b[-n:][~left]) for a, b in (
            (some.x, every.x), (some.lam.expand(len(some)), every.lam.expand(len(some)))
        ))  # fmt: skip
        assert mixed and lam
        if mode == "pair":
            assert torch.equal(left, left.flip(0))
        if mode == "batch":
            assert left.all() or not left.any()
    assert 0 < alone < 6 * n and (mode == "batch" or 0.3 < alone / (6 * n) < 0.7)


def test_a_mixer_keeps_the_chances_of_its_methods():
    x, y = torch.rand(4000, 1, 4, 4), torch.zeros(4000, dtype=torch.int64)
    mixer = methods.Mixer([methods.MixUp(p=0.5, mode="sample"), methods.CutMix(p=0.0)], [0.4, 0.4], p=0.5)
    batch = mixer(x, y, generator())
    left = batch.lam == 1
    assert torch.equal(batch.x[left], x[left]) and (~left).float().mean().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: methods.Mixer(["regmixup"]),
            "Mixer: methods must be methods of one plan a batch, .*RegMixup does not",
        ),
        (lambda: methods.Mixer([methods.ManifoldMixup()]), "Mixer: .*ManifoldMixup does not mix images in one plan"),
        (lambda: methods.Mixer(["mixup", "mixer"]), "Mixer: .*Mixer is a mixer itself: list its methods"),
        (lambda: methods.Mixer([methods.Switch()]), "Mixer: .*Switch is a mixer itself"),
        (lambda: methods.Mixer(["mixxup"]), "Mixer: each method must be .*one of the names .*mixup, cutmix.*'mixxup'"),
        (lambda: methods.Mixer([methods.MixUp]), r"Mixer: each method must be .*make it first: MixUp\(\)"),
        (lambda: methods.Mixer([lambda x, y: x]), "Mixer: each method must be"),
        (lambda: methods.Mixer("mixup"), "Mixer: methods must be a list"),
        (lambda: methods.Mixer(methods.MixUp()), "Mixer: methods must be a list"),
        (lambda: methods.Switch("mixup"), "Switch: first must be a method or None, got 'mixup'"),
        (lambda: methods.Switch(methods.MixUp(), methods.RegMixup()), "Switch: methods must be .*RegMixup does not"),
        (lambda: methods.Switch(methods.Switch(), methods.MixUp()), "Switch: .*Switch is a mixer itself"),
        (lambda: methods.Switch(methods.MixUp, methods.CutMix), "Switch: first must be a method or None"),
    ],
)
def test_mixers_name_what_they_cannot_hold(call, words):
    with pytest.raises(ValueError, match=f"fastmix.{words}"):
        call()
