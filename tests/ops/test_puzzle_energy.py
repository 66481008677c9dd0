from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from puzzle_support import NAMES, Stored
from support import LAYOUTS, backends, images, partners, skip_unsupported, unit

from fastmix import ops, reference
from fastmix.testing import poisoned

BACKENDS = backends("puzzle_energy")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
# Shape, blocks and neighborhood: cells of 1, 2, 3, 4 and 5 pixels, one and many a block; one block; a row of blocks.
CASES = [
    ((5, 3, 32, 32), (4, 4), 4),
    ((4, 3, 32, 32), (16, 16), 4),
    ((3, 3, 28, 36), (7, 3), 2),
    ((2, 2, 18, 24), (3, 2), 3),
    ((2, 1, 40, 100), (4, 2), 5),
    ((2, 5, 9, 10), (3, 2), 1),
    ((2, 3, 12, 12), (1, 1), 4),
    ((3, 3, 8, 24), (1, 6), 4),
    ((3, 3, 24, 8), (6, 1), 4),
    ((2, 3, 64, 64), (2, 2), 1),
    ((0, 3, 8, 8), (2, 2), 4),
]


def maps(n: int, blocks: tuple[int, int], device: str, seed: int = 0) -> torch.Tensor:
    saliency = unit(n, *blocks, device=device, seed=seed)
    return saliency / saliency.sum((1, 2), keepdim=True)


def normalization(x: torch.Tensor) -> dict:
    if x.dtype is torch.uint8:
        return {}
    channels = x.shape[1]
    return {"mean": [0.5, 0.4, 0.45, 0.3, 0.6][:channels], "std": [0.2, 0.25, 0.22, 0.3, 0.1][:channels]}


def same(found: Sequence, expected: Sequence) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "blocks", "neighborhood"), CASES)
def test_matches_reference(device, backend, dtype, layout, shape, blocks, neighborhood):
    skip_unsupported(backend, dtype)
    x, n = images(shape, dtype, layout, device), shape[0]
    saliency, index, lam = maps(n, blocks, device), partners(n, device), unit(n, device=device)
    before = x.clone(), saliency.clone()
    for n_labels, weight in ((2, lam), (3, lam.double()), (4, 0.3)):
        options = {"neighborhood": neighborhood, **normalization(x)}
        with poisoned():
            found = ops.puzzle_energy(x, saliency, index, weight, n_labels, backend=backend, **options)
        rows, columns = blocks
        shapes = (n, rows, columns, n_labels), (n, rows - 1, columns), (n, rows, columns - 1)
        assert tuple(part.shape for part in found) == shapes
        assert all(part.dtype is torch.int32 for part in found)
        assert same(found, reference.puzzle_energy(x, saliency, index, weight, n_labels, **options))
    assert torch.equal(x, before[0]) and torch.equal(saliency, before[1])


@pytest.mark.parametrize(("shape", "blocks", "neighborhood"), CASES)
def test_differs_from_float64_by_no_more_than_one(shape, blocks, neighborhood):
    x, n = images(shape, torch.float32, "contiguous", "cpu"), shape[0]
    args = partners(n, "cpu"), unit(n), 3
    options = {"neighborhood": neighborhood, **normalization(x)}
    saliency = maps(n, blocks, "cpu")
    exact = reference.puzzle_energy(x.double(), saliency, *args, **options)
    for a, b in zip(ops.puzzle_energy(x, saliency, *args, **options), exact, strict=True):
        off = (a - b).abs()
        assert (off <= 1).all() and off.sum() <= 0.02 * off.numel() + 1


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_stored_integers_of_the_released_code(device, backend, name):
    stored = Stored(name)
    x, saliency, index = (part.to(device) for part in (stored.images, stored.block_saliency, stored["index"]))
    found = ops.puzzle_energy(x, saliency, index, stored["lam"], **stored.settings, backend=backend)
    assert same([part.cpu() for part in found], [stored[key] for key in ("U_int", "Wv_int", "Wh_int")])


@pytest.mark.parametrize("name", NAMES)
def test_released_integers_from_our_own_maps(name):
    stored = Stored(name)
    saliency = ops.saliency_pool(stored["saliency"].unsqueeze(1), stored["block_num"])
    found = ops.puzzle_energy(stored.images, saliency, stored["index"], stored["lam"], **stored.settings)
    assert same(found, [stored[key] for key in ("U_int", "Wv_int", "Wh_int")])


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_by_hand(device, backend):
    """Two blocks side by side in black and white images: every difference is 0 or 1."""
    x = torch.zeros(2, 1, 2, 4, device=device)
    x[0, ..., 2:] = 1  # black | white; its partner is black
    saliency = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]], device=device)
    index, lam = torch.tensor([1, 0], device=device), 0.25
    beta, gamma, eta = 1.6, 0.5, 0.2
    unary, weight_y, weight_x = ops.puzzle_energy(x, saliency, index, lam, 2, beta, gamma, eta, 2, backend=backend)
    smooth = beta / 16 / math.sqrt(2)
    # Own image on the left and right: 1; own left, partner right: 0; partner left, own right: 1; partner both: 0.
    p = {(1, 1): smooth * gamma, (1, 0): 0.0, (0, 1): smooth * gamma, (0, 0): 0.0}
    own = [0.5 + (p[1, 0] + p[1, 1]) / 2, 0.5 + (p[0, 1] + p[1, 1]) / 2]
    partner = [0.25 + (p[0, 1] + p[0, 0]) / 2, 0.75 + (p[1, 0] + p[0, 0]) / 2]
    prior = [-eta / 2 * math.log(share + 1e-8) for share in (lam, 1 - lam)]
    expected = [[int(2000 * (own[j] + prior[0])), int(2000 * (partner[j] + prior[1]))] for j in (0, 1)]
    assert (unary[0, 0].cpu() - torch.tensor(expected)).abs().max() <= 1
    w = int(2000 * ((p[1, 0] + p[0, 1] - p[1, 1] - p[0, 0]) / 2 + smooth))
    assert weight_y.shape == (2, 0, 2) and abs(weight_x[0, 0, 0].item() - w) <= 1


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("n_labels", [2, 3, 4])
def test_swapping_the_images_mirrors_the_labels(device, backend, n_labels):
    x = images((2, 3, 16, 16), torch.float32, "contiguous", device).sigmoid()
    saliency, index = maps(2, (4, 4), device), torch.tensor([1, 0], device=device)
    lam = torch.tensor([0.3, 0.7], device=device)
    unary, weight_y, weight_x = ops.puzzle_energy(x, saliency, index, lam, n_labels, backend=backend)
    assert (unary[0].flip(-1) - unary[1]).abs().max() <= 1
    assert (weight_y[0] - weight_y[1]).abs().max() <= 1 and (weight_x[0] - weight_x[1]).abs().max() <= 1


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_stays_below_the_stated_bound(device, backend):
    """All saliency in one block, the largest differences, the rarest lam."""
    for blocks in (2, 8, 32):
        x = torch.zeros(2, 3, 64, 64, device=device)
        x[0] = 1
        saliency = torch.zeros(2, blocks, blocks, device=device)
        saliency[:, 0, 0] = 1
        index = torch.tensor([1, 0], device=device)
        for lam in (0.0, 1.0):
            for part in ops.puzzle_energy(x, saliency, index, lam, 4, backend=backend):
                assert part.min() >= 0 and part.max() <= 1100 * blocks**2 + 4000


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_nothing_overflows(device, backend, bad):
    x, index = images((3, 3, 16, 16), torch.float32, "contiguous", device), torch.tensor([1, 0, 2], device=device)
    saliency = maps(3, (4, 4), device)
    plain = ops.puzzle_energy(x, saliency, index, 0.4, 3, backend=backend)
    x[0, 1, 3, 3], saliency[1, 0, 2] = bad, bad
    found = ops.puzzle_energy(x, saliency, index, torch.tensor([0.4, bad, 0.4], device=device), 3, backend=backend)
    assert all(part.abs().max() <= 1 << 24 for part in found)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(found, plain, strict=True))
    if not math.isfinite(bad):  # a difference that is not finite is none
        assert found[1][0].min() > 0


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_lam_one_number_or_one_a_sample(device, backend):
    x, saliency = images((3, 3, 16, 16), torch.float32, "contiguous", device), maps(3, (4, 4), device)
    index = partners(3, device)
    calls = [0.3, torch.tensor(0.3, device=device), torch.full((3,), 0.3, device=device)]
    found = [ops.puzzle_energy(x, saliency, index, lam, 3, backend=backend) for lam in calls]
    assert same(found[0], found[1]) and same(found[0], found[2])
    outside = ops.puzzle_energy(x, saliency, index, torch.tensor([-1.0, 2.0, 1.0], device=device), 3, backend=backend)
    inside = ops.puzzle_energy(x, saliency, index, torch.tensor([0.0, 1.0, 1.0], device=device), 3, backend=backend)
    assert same(outside, inside)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_constants_as_tensors_or_sequences(device, backend):
    x, saliency = images((3, 3, 16, 16), torch.float32, "contiguous", device), maps(3, (4, 4), device)
    index, found = partners(3, device), []
    for kind in (tuple, torch.tensor, lambda v: torch.tensor(v, device=device).double()):
        mean, std = kind((0.5, 0.4, 0.3)), kind((0.2, 0.3, 0.25))
        found.append(ops.puzzle_energy(x, saliency, index, 0.3, 3, mean=mean, std=std, backend=backend))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_bytes_are_images_in_the_unit_range():
    x, index = images((4, 3, 32, 32), torch.uint8, "contiguous", "cpu"), partners(4, "cpu")
    saliency = maps(4, (4, 4), "cpu")
    found = ops.puzzle_energy(x, saliency, index, 0.3, 3)
    floats = ops.puzzle_energy(x.float() / 255, saliency, index, 0.3, 3)
    assert all((a - b).abs().max() <= 1 for a, b in zip(found, floats, strict=True))


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    index = partners(4, "cpu")

    def step(grad, x):
        saliency = ops.saliency_pool(grad * 2, 4)
        return saliency, *ops.puzzle_energy(x + 1, saliency, index, 0.3, 3, mean=(0.5,) * 3, std=(0.2,) * 3)

    inputs = [torch.randn(4, 3, 16, 16, requires_grad=True) for _ in range(2)]
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        assert same(compiled(*inputs), step(*inputs))


def test_threads_do_not_change_the_result():
    x, index = images((9, 3, 64, 64), torch.float32, "contiguous", "cpu"), partners(9, "cpu")
    saliency, threads, found = maps(9, (8, 8), "cpu"), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.puzzle_energy(x, saliency, index, 0.4, 3))
    finally:
        torch.set_num_threads(threads)
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, "x must be a tensor"),
        ({"x": torch.rand(4, 16, 16)}, ValueError, r"x must have shape \(N, C, H, W\)"),
        ({"saliency": torch.zeros(4, 2, 2, dtype=torch.int32)}, TypeError, "saliency must be a floating tensor"),
        ({"saliency": torch.rand(3, 2, 2)}, ValueError, r"saliency must have shape \(4, any, any\)"),
        ({"saliency": torch.rand(4, 3, 2)}, ValueError, r"divides the image of 16 x 16 pixels .* got 3 x 2 blocks"),
        ({"saliency": torch.rand(4, 0, 2)}, ValueError, "that divides the image"),
        ({"saliency": torch.rand(4, 33, 2)}, ValueError, "at most 32 blocks a side, got 33 x 2"),
        ({"index": torch.tensor([0, 1, 2, 4])}, ValueError, r"index must lie in \[0, 4\), got 4 at position 3"),
        ({"index": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, r"index must have shape \(4,\), got int64"),
        ({"lam": torch.rand(3)}, ValueError, r"lam must have shape \(\) or \(4,\)"),
        ({"n_labels": 5}, ValueError, r"n_labels must be an int in \[2, 4\], got 5"),
        ({"gamma": -0.5}, ValueError, "gamma must be a finite number >= 0, got -0.5"),
        ({"eta": math.nan}, ValueError, "eta must be a finite number >= 0, got nan"),
        ({"neighborhood": 0}, ValueError, "neighborhood must be an int > 0, got int 0"),
        ({"neighborhood": 3}, ValueError, "neighborhood must divide the blocks of 8 x 8 pixels, got 3; use 2"),
        ({"mean": (0.5, 0.5, 0.5)}, ValueError, "mean and std must be given together"),
        ({"mean": (0.5,), "std": (0.5,)}, ValueError, r"mean must hold 3 values, one a channel, got \(1,\)"),
        ({"x": torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "mean": (0,) * 3, "std": (1,) * 3}, ValueError, "uint8"),
        ({"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {
        "x": torch.rand(4, 3, 16, 16),
        "saliency": torch.rand(4, 2, 2),
        "index": torch.arange(4),
        "lam": 0.5,
        "n_labels": 3,
    } | change
    with pytest.raises(error, match=f"fastmix.puzzle_energy: .*{message}"):
        ops.puzzle_energy(**call)
