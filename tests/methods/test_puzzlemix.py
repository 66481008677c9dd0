"""`methods.PuzzleMix` as a whole: the released results, what it repairs, and its options."""

from __future__ import annotations

import pytest
import torch
from puzzle_support import NAMES, Stored

from fastmix import methods, ops
from fastmix.methods.puzzlemix import PRESETS, PuzzleMix, _refined

N = 6
OVERFLOW = "c13_overflow_B16_L2"


def batch(n: int = N, size: tuple[int, int] = (32, 32), seed: int = 0):
    """Images in [0, 1], labels and gradients that are large in one place."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.rand(n, 3, *size, generator=generator), torch.randn(n, 3, *size, generator=generator)
    for k in range(n):
        y, x0 = (int(torch.randint(s - 8 + 1, (), generator=generator)) for s in size)
        grad[k, :, y : y + 8, x0 : x0 + 8] *= 6
    return x, torch.arange(n) % 4, grad


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed_from(stored: Stored, saliency: str = "saliency", **options):
    t_size = stored["t_size"]
    settings = {**stored.settings, "t_eps": stored["t_eps"], "t_size": None if t_size < 0 else t_size}
    method = PuzzleMix(**{**settings, **options})
    plan = {"lam": stored["lam"], "index": stored["index"], "blocks": stored["block_num"]}
    return method(stored.images, stored["labels_img"], saliency=stored[saliency], **plan)


@pytest.mark.parametrize("name", [name for name in NAMES if name != OVERFLOW])
@pytest.mark.parametrize("saliency", ["saliency", "grad"])
def test_released_batches(name, saliency):
    stored = Stored(name)
    if saliency not in stored:
        pytest.skip("no gradient was stored")
    found = mixed_from(stored, saliency, solver="swap")
    assert torch.equal(found.mask, stored["mask_gco"])
    assert torch.equal(found.x, stored["out"])
    assert torch.equal(found.lam, stored["lam_out"])


@pytest.mark.parametrize("solver", ["exact", "swap"])
def test_the_most_salient_block_survives(solver):
    """There its cost overflowed in the released code, which hides it in every image."""
    stored = Stored(OVERFLOW)
    found = mixed_from(stored, solver=solver)
    own, partner = (stored[name].flatten(1).argmax(1) for name in ("s1_t", "s2_t"))
    samples = torch.arange(len(own))
    assert (found.mask.flatten(1)[samples, own] == 1).all() and (found.mask.flatten(1)[samples, partner] == 0).all()
    assert torch.equal(found.mask, 1 - stored["labels_exact_nowrap"].float())
    released = stored["mask_gco"].flatten(1)
    assert (released[samples, own] == 0).all()


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
@pytest.mark.parametrize("n_labels", [2, 3, 4])
@pytest.mark.parametrize("t_size", [None, 2])
def test_is_the_composition_of_its_parts(size, n_labels, t_size):
    x, y, grad = batch(size=size)
    method = PuzzleMix(n_labels=n_labels, blocks=4, t_size=t_size, t_eps=0.1)
    found = method(x, y, generator(), saliency=grad)
    share = ops.saliency_pool(grad, 4)
    lam = method.draw(x, generator(), None, None).lam
    energy = ops.puzzle_energy(x, share, found.index, lam, n_labels)
    mask = 1 - ops.grid_cut(*energy)[0].float() / (n_labels - 1)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.lam, mask.mean((1, 2)))
    fine = 4 if t_size is None else min(size) // t_size
    shown = torch.nn.functional.interpolate(mask.unsqueeze(1), size=(fine, fine)).squeeze(1)
    share = ops.saliency_pool(grad, fine)
    plans = [
        ops.transport(shown > 0, share, 0.1),
        ops.transport(shown < 1, share[found.index], 0.1),
    ]
    own, partner = (moved(*pair) for pair in zip((x, x[found.index]), plans, strict=True))
    weight = torch.nn.functional.interpolate(mask.unsqueeze(1), size=size)
    torch.testing.assert_close(found.x, weight * own + (1 - weight) * partner)
    assert torch.equal(found.y_b, y[found.index])


def moved(x: torch.Tensor, plan: torch.Tensor) -> torch.Tensor:
    """Blocks put where the plan says, by the dense product of the released code; the own block where it is empty."""
    n, c, height, width = x.shape
    side = int(plan.shape[1] ** 0.5)
    plan = torch.where(plan < 0, torch.arange(side * side), plan).long()
    tiles = x.view(n, c, side, height // side, side, width // side).permute(0, 2, 4, 1, 3, 5).reshape(n, side**2, -1)
    tiles = torch.nn.functional.one_hot(plan, side * side).float() @ tiles
    tiles = tiles.view(n, side, side, c, height // side, width // side).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(x.shape)


def test_without_transport_blocks_stay():
    x, y, grad = batch()
    found = PuzzleMix(blocks=8, transport=False)(x, y, generator(), saliency=grad)
    weight = torch.nn.functional.interpolate(found.mask.unsqueeze(1), size=(32, 32))
    torch.testing.assert_close(found.x, weight * x + (1 - weight) * x[found.index])


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_no_saliency_spoils_no_image(bad):
    x, y, grad = batch()
    grad[1] = bad
    found = PuzzleMix()(x, y, generator(), saliency=grad, lam=0.5)
    assert found.x.isfinite().all() and found.lam.isfinite().all()
    pair = (found.index == 1).nonzero().item()
    grad[1] = 1
    assert torch.equal(found.x, PuzzleMix()(x, y, generator(), saliency=grad, lam=0.5).x)
    assert 0 < found.lam[1] <= 1 and 0 <= found.lam[pair] < 1  # the image with a saliency shows


def test_scale_of_the_saliency_does_not_matter():
    x, y, grad = batch()
    plain = PuzzleMix()(x, y, generator(), saliency=grad)
    for scale in (2.0**-100, 2.0**60):
        assert torch.equal(PuzzleMix()(x, y, generator(), saliency=grad * scale).x, plain.x)
    maps = grad.square().mean(1).double().sqrt()
    torch.testing.assert_close(PuzzleMix()(x, y, generator(), saliency=maps).lam, plain.lam, atol=0.05, rtol=0)


def test_weight_follows_lam():
    x, y, grad = batch(64)
    method = PuzzleMix(blocks=8)
    means = [method(x, y, generator(), saliency=grad, lam=lam).lam.mean().item() for lam in (0.1, 0.5, 0.9)]
    assert means[0] < 0.4 < means[1] < 0.6 < means[2]


def test_block_sizes_are_drawn_for_the_batch():
    x, y, grad = batch()
    found = {PuzzleMix()(x, y, generator(seed), saliency=grad).mask.shape[1] for seed in range(30)}
    assert found == {2, 4, 8, 16}
    state = torch.get_rng_state()
    first, again = (PuzzleMix()(x, y, generator(3), saliency=grad) for _ in range(2))
    assert torch.equal(first.x, again.x) and torch.equal(torch.get_rng_state(), state)


def test_block_sizes_for_each_image():
    x, y, grad = batch(40)
    method = PuzzleMix(blocks_per_sample=True, t_eps=0.1, t_size=4)
    found = method(x, y, generator(), saliency=grad, lam=0.4)
    assert found.mask.shape == (40, 16, 16)
    alone = [PuzzleMix(t_eps=0.1, t_size=4)(
        x, y, saliency=grad, lam=0.4, index=found.index, blocks=count) for count in method.blocks]  # fmt: skip
    same = torch.stack([(one.x == found.x).flatten(1).all(1) for one in alone])
    assert same.any(0).all() and same.any(1).all()  # every image is that of one size, and every size occurs
    k = same.int().argmax(0)
    assert torch.equal(found.lam, torch.stack([one.lam for one in alone])[k, torch.arange(40)])


def test_a_refined_plan_moves_the_same_pixels():
    x, plan = torch.rand(5, 3, 24, 24), torch.randint(-1, 16, (5, 16), generator=generator()).int()
    torch.testing.assert_close(moved(x, _refined(plan, 12)), moved(x, plan))


def test_bytes_are_mixed_before_they_are_normalised():
    x, y, grad = batch()
    u8, mean, std = (x * 255).round().to(torch.uint8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    found = PuzzleMix(normalize=(mean, std))(u8, y, generator(), saliency=grad)
    plain = PuzzleMix()(u8.float() / 255, y, generator(), saliency=grad)
    assert found.x.dtype is torch.float32
    shape = (1, 3, 1, 1)
    torch.testing.assert_close(found.x, (plain.x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))


def test_normalised_images_give_the_mix_of_plain_ones():
    x, y, grad = batch()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    shift, scale = (torch.tensor(part).view(1, 3, 1, 1) for part in (mean, std))
    found = PuzzleMix(mean=mean, std=std)((x - shift) / scale, y, generator(), saliency=grad)
    plain = PuzzleMix()(x, y, generator(), saliency=grad)
    torch.testing.assert_close(found.x * scale + shift, plain.x)


def test_reduced_dtypes_and_layouts():
    x, y, grad = batch()
    plain = PuzzleMix()(x, y, generator(), saliency=grad)
    last = PuzzleMix()(x.contiguous(memory_format=torch.channels_last), y, generator(), saliency=grad)
    assert torch.equal(last.x, plain.x) and last.x.is_contiguous(memory_format=torch.channels_last)
    assert PuzzleMix(dtype=torch.bfloat16)(x, y, generator(), saliency=grad).x.dtype is torch.bfloat16
    half = PuzzleMix()(x.half(), y, generator(), saliency=grad.half())
    assert half.x.dtype is torch.float16 and half.x.isfinite().all()


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    x, y, grad = batch(max(n, 1))
    found = PuzzleMix(t_eps=10.0)(x[:n], y[:n], generator(), saliency=grad[:n])
    assert found.x.shape == (n, 3, 32, 32)
    torch.testing.assert_close(found.x, x[:n])  # its own partner


def test_cells_are_the_largest_that_fit():
    x, y, grad = batch(size=(40, 40))  # 4 x 4 blocks of 10 x 10 pixels: cells of 2
    found = PuzzleMix(blocks=4)(x, y, generator(), saliency=grad)
    assert torch.equal(found.x, PuzzleMix(blocks=4, neighborhood=2)(x, y, generator(), saliency=grad).x)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_the_published_settings(name):
    method = PuzzleMix.preset(name, solver="swap")
    beta = 1.5 if name == "imagenet_fast" else 1.2
    assert (method.alpha, method.n_labels, method.t_eps, method.blocks) == (1.0, 3, 0.8, (2, 4, 8, 16))
    assert (method.beta, method.gamma, method.eta) == (beta, 0.5, 0.2)
    assert method.neighborhood == (2 if name.startswith("imagenet") else 4)
    assert method.t_size == (4 if name == "cifar100" else None)
    assert method.solver == "swap" and method.transport and method.adv_prob == 0
    assert isinstance(methods.create("puzzlemix", alpha=0.5), PuzzleMix)
    size = 224 if name.startswith("imagenet") else 32
    x, y, grad = batch(2, (size, size))
    for blocks in method.blocks:
        assert method(x, y, generator(), saliency=grad, blocks=blocks).x.isfinite().all()


def test_noise_keeps_to_its_bounds():
    x, _, grad = batch(30)
    method = PuzzleMix(adv_prob=1.0, adv_eps=10.0)
    start = method.start_noise(x, generator())
    assert start.own and start.partner and start.delta.abs().max() <= 10 / 255
    seen = method.with_noise(x, start)
    assert seen.min() >= 0 and seen.max() <= 1
    torch.testing.assert_close(seen, x + start.delta)
    drawn = generator()
    noise = method.finish_noise(start, grad, drawn)
    length = torch.rand((), generator=generator())
    expected = (start.delta + 12 / 255 * grad.sign()).clamp(-10 / 255, 10 / 255) * length
    torch.testing.assert_close(noise.delta, expected)
    assert PuzzleMix().start_noise(x) is None
    coins = [PuzzleMix(adv_prob=0.5).start_noise(x, generator(seed)) for seed in range(40)]
    assert {(c.own, c.partner) if c else None for c in coins} == {None, (True, False), (False, True), (True, True)}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("partner", [False, True])
def test_noise_changes_the_images_not_the_masks(own, partner):
    x, y, grad = batch()
    method = PuzzleMix(adv_prob=1.0, mean=(0.5,) * 3, std=(0.2,) * 3, blocks=4)
    x = (x - 0.5) / 0.2
    noise = method.finish_noise(method.start_noise(x, generator()), grad, generator())
    noise = noise._replace(own=own, partner=partner)
    found = method(x, y, generator(), saliency=grad, noise=noise)
    clean = method(x, y, generator(), saliency=grad)
    assert torch.equal(found.mask, clean.mask) and torch.equal(found.lam, clean.lam)
    weight = torch.nn.functional.interpolate(clean.mask.unsqueeze(1), size=(32, 32)).expand_as(x)
    only_own, only_partner = weight == 1, weight == 0
    assert torch.equal(found.x[only_own], clean.x[only_own]) == (not own)
    assert torch.equal(found.x[only_partner], clean.x[only_partner]) == (not partner)
    if own and partner:
        assert ((found.x - clean.x).abs() <= 10 / 255 / 0.2 + 1e-5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, "blocks must be numbers from 1 to 32"),
        ({"blocks": (2, 33)}, r"blocks must be an int in \[1, 32\], got 33"),
        ({"blocks": (4, 6), "blocks_per_sample": True}, "all blocks must divide the largest"),
        ({"n_labels": 5}, r"n_labels must be an int in \[2, 4\], got 5"),
        ({"beta": -1.0}, "beta must be a finite number >= 0, got -1.0"),
        ({"adv_prob": 1.5}, r"adv_prob must be a number in \[0, 1\]"),
        ({"t_size": 0}, "t_size must be an int >= 1, got 0"),
        ({"solver": "gco"}, "solver must be one of exact, swap, got 'gco'"),
        ({"assignment": "best"}, "assignment must be one of reference, exact"),
        ({"mean": (0.5,)}, "mean and std must be given together"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=f"fastmix.PuzzleMix: .*{message}"):
        PuzzleMix(**options)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, {"saliency": None}, "saliency is missing: pass the gradient .*PuzzleMixStep"),
        ({}, {"saliency": torch.rand(6, 3, 16, 16)}, r"saliency must have shape \(6, 3, 32, 32\) or \(6, 32, 32\)"),
        ({}, {"blocks": 5}, "5 blocks do not divide images of 32 x 32 pixels; .* these do: 2, 4, 8, 16"),
        ({"t_size": 3, "blocks": 4}, {}, "t_size must divide the 8 pixels of 4 blocks a side, got 3"),
    ],
)
def test_bad_calls_are_named(options, call, message):
    x, y, grad = batch()
    with pytest.raises(ValueError, match=f"fastmix.PuzzleMix: {message}"):
        PuzzleMix(**options)(x, y, **({"saliency": grad} | call))
    with pytest.raises(ValueError, match=r"fastmix.PuzzleMix.preset: name must be one of cifar100"):
        PuzzleMix.preset("mnist")
