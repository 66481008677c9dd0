"""Images and label weights of every method against a second, literal implementation of it."""

import literal_methods as literal
import numpy as np
import pytest
import torch
from method_cases import generator

from fastmix import methods, ops
from fastmix.ops.spectral_mask import spectral_mask_noise_shape

N, H, W = 6, 12, 17
INDEX = torch.tensor([3, 2, 2, 5, 4, 0])  # with fixed points, and not a permutation


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(N, 3, H, W, generator=generator(seed), dtype=torch.float64), torch.arange(N) % 4


def unit(seed: int, *shape: int) -> torch.Tensor:
    """Float32 draws; a few at the ends of the range."""
    value = torch.rand(shape, generator=generator(seed + 100))
    value.view(-1)[seed % value.numel()] = 0.0
    return value


CASES = {
    "none": lambda s: ({}, {}, literal.none, ()),
    "mixup": lambda s: ({}, {"lam": unit(s, N)}, literal.mixup, ("lam",)),
    "cutmix": lambda s: ({}, {"lam": unit(s, N), "centre": unit(s, N, 2)}, literal.cutmix, ("lam", "centre")),
    "regmixup": lambda s: ({}, {"lam": unit(s, N)}, literal.regmixup, ("lam",)),
    "resizemix": lambda s: ({}, {"tau": unit(s, N), "centre": unit(s, N, 2)}, literal.resizemix, ("tau", "centre")),
    "smoothmix": lambda s: (
        {}, {"centre": unit(s, N, 2), "sigma": 0.25 + unit(s, N) / 4}, literal.smoothmix, ("centre", "sigma")
    ),
}  # fmt: skip


def check(batch, expected) -> None:
    mixed, lam = expected
    np.testing.assert_allclose(batch.x.numpy(), mixed, rtol=0, atol=2e-6)
    np.testing.assert_allclose(batch.lam.expand(len(batch)).numpy(), lam, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_drawn_for_each_sample(name, seed):
    options, given, function, names = CASES[name](seed)
    x, y = images(seed)
    batch = methods.create(name, **options)(x, y, generator(), index=INDEX, **given)
    index = np.arange(N) if name == "none" else INDEX.numpy()
    check(batch, function(x.numpy(), index, *(given[key].double().numpy() for key in names)))


@pytest.mark.parametrize("name", CASES)
def test_drawn_for_the_batch(name):
    options, given, function, names = CASES[name](1)
    given = {key: value[2] for key, value in given.items()}
    x, y = images(1)
    batch = methods.create(name, **options)(x, y, generator(), index=INDEX, **given)
    index = np.arange(N) if name == "none" else INDEX.numpy()
    rows = (np.stack([given[key].double().numpy()] * N) for key in names)
    check(batch, function(x.numpy(), index, *rows))


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_by_the_range_of_its_sides(seed):
    x, y = images(seed)
    sides, centre = unit(seed, N, 2), unit(seed + 1, N, 2)
    batch = methods.CutMix(minmax=(0.2, 0.8))(x, y, index=INDEX, sides=sides, centre=centre)
    parts = (sides.double().numpy(), centre.double().numpy())
    check(batch, literal.cutmix_minmax(x.numpy(), INDEX.numpy(), (0.2, 0.8), *parts))


def test_a_given_box():
    x, y = images(0)
    box = torch.tensor([[0, 0, H, W], [2, 3, 7, 9], [1, 1, 2, 2], [0, 0, 0, 0], [4, 4, 12, 12], [0, 16, 12, 17]])
    batch = methods.CutMix()(x, y, index=INDEX, box=box.int())
    check(batch, literal.pasted(x.numpy(), INDEX.numpy(), box.tolist()))


@pytest.mark.parametrize("name", ["randomgrids", "gridmix"])
@pytest.mark.parametrize("law", ["bernoulli", "exact"])
@pytest.mark.parametrize("grid", [4, (3, 5)])
def test_random_cells(name, law, grid):
    x, y = images(2)
    size = (grid, grid) if isinstance(grid, int) else grid
    lam, noise = unit(3, N), unit(4, N, *size)
    batch = methods.create(name, grid=grid, law=law)(x, y, index=INDEX, lam=lam, noise=noise)
    expected = literal.random_grids(x.numpy(), INDEX.numpy(), lam.double().numpy(), noise.numpy(), law)
    check(batch, expected)
    again = methods.create(name, grid=grid)(x, y, index=INDEX, mask=batch.mask)
    check(again, expected)
    if name == "gridmix":
        labels = methods.GridMix(grid=grid).cell_labels(batch)
        for n in range(N):
            for row in range(size[0]):
                for column in range(size[1]):
                    owner = n if batch.mask[n, row, column] == 1 else INDEX[n]
                    assert labels[n, row, column] == y[owner]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_around_salient_points(seed):
    (x, y), lam = images(seed), unit(seed, N)
    saliency = (unit(seed + 1, N, H, W) * 20).floor()  # with equal values
    method = methods.SaliencyMix()
    batch = method(x, y, index=INDEX, lam=lam, saliency=saliency)
    check(batch, literal.saliencymix(x.numpy(), INDEX.numpy(), lam.double().numpy(), saliency.numpy()))
    own = method(x, y, index=INDEX, lam=lam)
    maps = ops.fine_grained_saliency(x)
    assert torch.equal(own.x, method(x, y, index=INDEX, lam=lam, saliency=maps).x)
    shared = methods.SaliencyMix(mode="batch")(x, y, index=INDEX, lam=0.4)
    assert torch.equal(shared.box, method(x, y, index=INDEX, lam=0.4).box[:1].expand(N, 4))
    normal = methods.SaliencyMix(mean=(0.5,) * 3, std=(0.25,) * 3)((x - 0.5) / 0.25, y, index=INDEX, lam=lam)
    assert torch.equal(normal.box, method((x * 255).round().byte(), y, index=INDEX, lam=lam).box)


@pytest.mark.parametrize("seed", range(6))
def test_regular_holes(seed):
    x, y = images(seed)
    method, lam, numbers = methods.GridMix(holes=(2, 5)), unit(seed, N), unit(seed + 1, N, 5)
    batch = method(x, y, index=INDEX, lam=lam, numbers=numbers)
    ranges = (method.holes, method.area, method.aspect, numbers.double().numpy())
    check(batch, literal.grid_holes(x.numpy(), INDEX.numpy(), lam.double().numpy(), *ranges))


@pytest.mark.parametrize("spectrum", ["paper", "reference"])
@pytest.mark.parametrize("seed", range(3))
def test_low_frequency_masks(spectrum, seed):
    (x, y), lam, coin = images(seed), unit(seed, N), unit(seed + 1, N)
    noise = torch.randn(N, *spectral_mask_noise_shape((H, W), spectrum, None), generator=generator(seed))
    batch = methods.FMix(spectrum=spectrum)(x, y, index=INDEX, lam=lam, coin=coin, noise=noise)
    image = literal.fmix_paper if spectrum == "paper" else literal.fmix_released
    given = (lam.double().numpy(), coin.numpy(), noise.double().numpy(), 3.0)
    check(batch, literal.fmix(x.numpy(), INDEX.numpy(), *given, image))
    counts = batch.mask.sum((1, 2))
    assert ((batch.mask == 0) | (batch.mask == 1)).all() and ((counts - lam * H * W).abs() < 1.001).all()
    shared = methods.FMix(spectrum=spectrum)(x, y, index=INDEX, lam=0.3, coin=0.0, noise=noise[1])
    assert (shared.mask == shared.mask[0]).all() and shared.mask[0].sum() == int(0.3 * H * W)
    soft = methods.FMix(spectrum=spectrum, softness=0.1)(x, y, index=INDEX, lam=lam, coin=coin, noise=noise)
    torch.testing.assert_close(soft.lam, batch.lam)
    assert ((soft.mask > 0) & (soft.mask < 1)).any()


@pytest.mark.parametrize("top_k", [1, 6, 99, None])
def test_attentive_cells(top_k):
    x, y = images(3)
    features, lam = torch.randn(N, 4, 3, 5, generator=generator(1)), unit(5, N)
    features[0, :, 1] = features[0, :, :1, 0]  # equal cells
    method = methods.AttentiveMix(top_k=top_k)
    given = {} if top_k is not None else {"lam": lam}
    batch = method(x, y, index=INDEX, saliency=features, **given)
    count = [min(top_k, 15) if top_k else max(1, int(15 * value)) for value in lam.double().tolist()]
    expected = literal.attentivemix(x.numpy(), INDEX.numpy(), features.numpy(), count)
    check(batch, expected)
    check(method(x, y, index=INDEX, saliency=features.mean(1), **given), expected)
    module = torch.nn.Conv2d(3, 4, 3, stride=4).double()
    own = methods.AttentiveMix(top_k=top_k, features=module)(x, y, index=INDEX, **given)
    with torch.no_grad():
        direct = method(x, y, index=INDEX, saliency=module(x), **given)
    assert torch.equal(own.x, direct.x) and own.x.grad_fn is None


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resized_pastes_are_those_of_interpolate(mode):
    x, y = images(4)
    batch = methods.ResizeMix(mode="sample", resize=mode)(x, y, generator(), index=INDEX)
    for n, (y0, x0, y1, x1) in enumerate(batch.box.tolist()):
        expected, partner = x[n].clone(), x[INDEX[n]][None]
        if y1 > y0 and x1 > x0:
            expected[:, y0:y1, x0:x1] = torch.nn.functional.interpolate(partner, (y1 - y0, x1 - x0), mode=mode)[0]
        torch.testing.assert_close(batch.x[n], expected)
        assert batch.lam[n].item() == pytest.approx(1 - (y1 - y0) * (x1 - x0) / (H * W))


def test_the_beta_law_of_resizemix_stays_in_its_scope():
    x, y = torch.zeros(3000, 1, 50, 50), torch.zeros(3000, dtype=torch.int64)
    method = methods.ResizeMix(alpha=1.0, law="beta", scope=(0.4, 0.6), mode="sample")
    sides = method(x, y, generator(), centre=torch.tensor([0.5, 0.5])).box
    sides = (sides[:, 2:] - sides[:, :2]).float() / 50
    assert sides.min() >= 0.36 and sides.max() <= 0.6 and sides.mean().item() == pytest.approx(0.48, abs=0.01)
