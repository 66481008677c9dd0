from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from puzzle_support import NAMES, Stored
from support import backends, samples
from threads_support import run_on_threads
from torch import Tensor

from fastmix import native, ops
from fastmix.reference.transport import _hungarian

HERE = Path(__file__).parent
BACKENDS = backends("transport")
COMPILED = backends("transport", reference=False)
METHODS = ["reference", "exact"]
KINDS = ["flat", "sharp", "few values", "zeros", "large"]
SHAPES = [(1, 1), (1, 2), (2, 2), (5, 1), (3, 3), (4, 4), (2, 7), (7, 5), (8, 8), (16, 16)]
EPS = [0.0, 1e-9, 0.1, 0.8, 1.3, 50.0, 1e30]


def maps(kind: str, n: int, shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """`visible` of all densities, and `saliency`."""
    g = torch.Generator().manual_seed(seed)
    visible = torch.rand(n, *shape, generator=g) < torch.rand(n, 1, 1, generator=g) * 1.2 - 0.1
    spread = {"flat": 0.35, "sharp": 1.5}.get(kind, 1.0)
    saliency = torch.exp(spread * torch.randn(n, *shape, generator=g))
    if kind == "few values":  # that cost as much as moves by a few blocks do at eps = 1
        return visible, torch.randint(0, 6, saliency.shape, generator=g) / max(1, (max(shape) - 1) ** 2)
    if kind == "zeros":
        saliency[torch.rand(saliency.shape, generator=g) < 0.4] = 0
    saliency /= saliency.sum((1, 2), keepdim=True).clamp_min(1e-30)
    return visible, saliency * 10 ** (9 * torch.rand(n, 1, 1, generator=g) - 1) if kind == "large" else saliency


def plans(visible: Tensor, saliency: Tensor, eps: float, method: str, device: str, backend: str) -> Tensor:
    """The plans, on the CPU, after a look at whether they are plans at all."""
    found = ops.transport(visible.to(device), saliency.to(device), eps, method, backend=backend).cpu()
    assert found.dtype is torch.int32 and found.shape == (len(visible), visible[0].numel())
    for shown, plan in zip(visible.flatten(1) != 0, found, strict=True):
        sources = plan[shown].tolist()
        assert (plan[~shown] == -1).all()
        assert len(set(sources)) == len(sources) and all(0 <= k < len(plan) for k in sources)
    return found


def move_costs(shape: tuple[int, int], eps: float) -> np.ndarray:
    y, x = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return eps * squares / max(1, (max(shape) - 1) ** 2)


def assignment_costs(visible: Tensor, saliency: Tensor, eps: float) -> list[np.ndarray]:
    """Of every sample: (visible targets, blocks), float64."""
    moves = move_costs(visible.shape[1:], eps)
    samples = zip(visible.flatten(1).numpy(), saliency.flatten(1).double().numpy(), strict=True)
    return [moves[shown] - s for shown, s in samples]


def totals(visible: Tensor, saliency: Tensor, eps: float, found: Tensor) -> np.ndarray:
    costs = assignment_costs(visible, saliency, eps)
    chosen = [plan[shown].long().numpy() for plan, shown in zip(found, visible.flatten(1), strict=True)]
    return np.array([cost[range(len(cost)), sources].sum() for cost, sources in zip(costs, chosen, strict=True)])


def rounding(saliency: Tensor) -> np.ndarray:
    """What the rounding of the costs may make of a best plan: half a unit for every block and every move of two."""
    return saliency[0].numel() * 2.0**-26 * saliency.flatten(1).amax(1).double().numpy()


def literal_rounds(visible: np.ndarray, saliency: np.ndarray, eps: float) -> list[int]:
    """The released rounds with loops, one number at a time."""
    side, n = max(visible.shape), visible.size
    z, s = visible.ravel(), saliency.ravel()
    distance = (move_costs(visible.shape, 1) * max(1, (side - 1) ** 2)).round().astype(np.float32)
    distance /= np.float32(max(1, (side - 1) ** 2))
    cost = [[np.float32(eps) * distance[i, j] - s[i] * np.float32(z[j]) for j in range(n)] for i in range(n)]
    for _ in range(side):
        wanted = [min(range(n), key=lambda j, row=row: (row[j], j)) for row in cost]
        winner = [min(range(n), key=lambda i, j=j: (cost[i][j] if wanted[i] == j else 0, i)) for j in range(n)]
        for i, j in enumerate(wanted):
            if winner[j] != i:
                cost[i][j] += np.float32(1)
    return [winner[j] if wanted[winner[j]] == j else -1 for j in range(n)]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.8, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_the_released_rounds(device, backend, kind, eps):
    for shape in [(1, 1), (2, 2), (3, 3), (4, 4), (2, 5)]:
        visible, saliency = maps(kind, 12, shape, seed=1)
        found = plans(visible, saliency, eps, "reference", device, backend)
        for shown, s, plan in zip(visible, saliency, found, strict=True):
            literal = torch.tensor(literal_rounds(shown.numpy(), s.numpy(), eps))
            filled = shown.flatten() & (literal >= 0)
            assert torch.equal(plan[filled].long(), literal[filled])
            # Where the released rounds leave a visible target empty its own block stands, if that is free.
            empty = shown.flatten() & (literal < 0)
            free = empty & ~torch.isin(torch.arange(len(plan)), literal[filled])
            assert torch.equal(plan[free].long(), free.nonzero()[:, 0])


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("image", ["1", "2"])
@pytest.mark.parametrize("name", NAMES)
def test_stored_results_of_the_released_code(device, backend, name, image):
    stored = Stored(name)
    mask, saliency, eps = stored["mask_t"], stored[f"s{image}_t"], stored["t_eps"]
    visible = mask > 0 if image == "1" else 1 - mask > 0
    found = plans(visible, saliency, eps, "reference", device, backend)
    shown = visible.flatten(1)
    assert torch.equal(found[shown], stored[f"src{image}"].int()[shown])
    best = totals(visible, saliency, eps, plans(visible, saliency, eps, "exact", device, backend))
    np.testing.assert_allclose(best, stored[f"tcost_opt{image}"].numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("device", "backend"), COMPILED)
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_rounds_are_the_reference(device, backend, shape, eps):
    for kind in KINDS:
        visible, saliency = maps(kind, samples(4 if shape == (16, 16) else 40), shape, seed=2)
        found = plans(visible, saliency, eps, "reference", device, backend)
        assert torch.equal(found, plans(visible, saliency, eps, "reference", "cpu", "reference")), kind


@pytest.mark.parametrize("eps", [0.1, 0.8])
def test_blocks_do_move(eps):
    """Lest the tests above compare plans that leave everything in place."""
    visible, saliency = maps("sharp", 20, (16, 16))
    stays = torch.where(visible.flatten(1), torch.arange(256), -1)
    for method in METHODS:
        moved = (ops.transport(visible, saliency, eps, method) != stays).sum(1).double()
        assert moved.mean() > 5 and moved.max() > 20


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.8, 50.0])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_the_best_of_all_plans(device, backend, kind, eps):
    for shape in [(1, 1), (1, 4), (2, 3), (3, 2)]:
        visible, saliency = maps(kind, 10, shape, seed=3)
        found = totals(visible, saliency, eps, plans(visible, saliency, eps, "exact", device, backend))
        best = [
            min(
                cost[range(len(cost)), list(sources)].sum() for sources in permutations(range(cost.shape[1]), len(cost))
            )
            for cost in assignment_costs(visible, saliency, eps)
        ]
        assert (abs(found - best) <= rounding(saliency) + 1e-12).all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.8, 1.3])
@pytest.mark.parametrize("shape", SHAPES[4:])
def test_exact_costs_what_scipy_finds(device, backend, shape, eps):
    assign = pytest.importorskip("scipy.optimize").linear_sum_assignment
    number = (1 if shape == (16, 16) else 3) if backend == "reference" else 12 if shape == (16, 16) else 40
    for kind in KINDS:
        visible, saliency = maps(kind, samples(number), shape, seed=4)
        found = totals(visible, saliency, eps, plans(visible, saliency, eps, "exact", device, backend))
        best = [cost[assign(cost)].sum() for cost in assignment_costs(visible, saliency, eps)]
        assert (abs(found - best) <= rounding(saliency) + 1e-12).all(), kind


def test_the_reference_assignment_is_the_cheapest():
    random = np.random.default_rng(0)
    for rows, columns in [(0, 3), (1, 1), (2, 4), (4, 4), (4, 6), (5, 5)]:
        for _ in range(20):
            cost = random.integers(-5, 6, (rows, columns)).astype(float)
            found = _hungarian(cost)
            assert len(set(found)) == rows
            best = min(cost[range(rows), list(chosen)].sum() for chosen in permutations(range(columns), rows))
            assert cost[range(rows), found].sum() == best


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("eps", [0.05, 0.8])
def test_exact_is_not_worse_than_the_rounds_nor_than_staying(device, backend, eps):
    for shape in [(6, 6), (3, 11)]:
        visible, saliency = maps("sharp", 8, shape, seed=5)
        stays = torch.where(visible.flatten(1), torch.arange(visible[0].numel()), -1)
        exact = totals(visible, saliency, eps, plans(visible, saliency, eps, "exact", device, backend))
        rounds = totals(visible, saliency, eps, plans(visible, saliency, eps, "reference", device, backend))
        for other in (rounds, totals(visible, saliency, eps, stays)):
            assert (exact <= other + rounding(saliency)).all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_what_has_nothing_to_move_stays(device, backend, method):
    own = torch.arange(20, dtype=torch.int32).expand(3, 20)
    visible, saliency = maps("sharp", 3, (4, 5))
    everything, nothing = torch.ones_like(visible), torch.zeros_like(visible)
    assert torch.equal(plans(everything, saliency, 0.1, method, device, backend), own)
    assert (plans(nothing, saliency, 0.1, method, device, backend) == -1).all()
    stays = torch.where(visible.flatten(1), own, -1)
    assert torch.equal(plans(visible, torch.full_like(saliency, 1 / 20), 0.1, method, device, backend), stays)
    assert torch.equal(plans(visible, torch.zeros_like(saliency), 0.1, method, device, backend), stays)
    assert torch.equal(plans(visible, saliency, 1e30, method, device, backend), stays)
    one = torch.tensor([[[True]], [[False]]])
    assert plans(one, torch.ones(2, 1, 1), 0.8, method, device, backend).tolist() == [[0], [-1]]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_salient_hidden_block_takes_a_place_beside_it(device, backend):
    visible = torch.full((1, 4, 4), 2, dtype=torch.uint8)  # anything but 0 is visible
    visible[0, 1, 1] = 0
    saliency = torch.full((1, 4, 4), 0.02)
    saliency[0, 1, 1], saliency[0, 1, 2] = 0.7, 0.01
    # All four neighbours are as cheap to the block: the rounds take the first, the best plan the one it loses least at.
    for method, target in (("reference", 1), ("exact", 6)):
        expected = torch.arange(16, dtype=torch.int32)
        expected[5], expected[target] = -1, 5
        assert torch.equal(plans(visible, saliency, 0.8, method, device, backend)[0], expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_no_shares_count_as_zero(device, backend, method):
    visible, saliency = maps("sharp", 6, (6, 7))
    bad = torch.rand(saliency.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    bad[5] = True
    expected = plans(visible, saliency.masked_fill(bad, 0), 0.1, method, device, backend)
    for value in (torch.nan, torch.inf, -torch.inf, -1.0, -0.0):
        found = plans(visible, saliency.masked_fill(bad, value), 0.1, method, device, backend)
        assert torch.equal(found, expected), value
    tiny = plans(visible, saliency * 2.0**-120, 0.1 * 2.0**-120, method, device, backend)
    assert torch.equal(tiny, plans(visible, saliency, 0.1, method, device, backend))


def test_samples_do_not_depend_on_each_other_nor_on_threads():
    visible, saliency = maps("sharp", 60, (8, 8), seed=6)
    threads = torch.get_num_threads()
    try:
        for method in METHODS:
            pairs = zip(visible.split(1), saliency.split(1), strict=True)
            alone = torch.cat([ops.transport(*pair, 0.1, method) for pair in pairs])
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                assert torch.equal(ops.transport(visible, saliency, 0.1, method), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_layouts_and_empty_batches(device, backend, method):
    visible, saliency = maps("sharp", 5, (4, 6))
    expected = plans(visible, saliency, 0.1, method, device, backend)
    strided = [t.repeat_interleave(2, 0).mT.contiguous().mT[::2] for t in (visible, saliency)]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(plans(*strided, 0.1, method, device, backend), expected)
    negated = torch._neg_view(-saliency)
    assert torch.equal(plans(visible, negated, 0.1, method, device, backend), expected)
    before = visible.clone(), saliency.clone()
    assert torch.equal(plans(visible, saliency.requires_grad_(), 0.1, method, device, backend), expected)
    assert torch.equal(visible, before[0]) and torch.equal(saliency, before[1])
    empty = ops.transport(visible[:0].to(device), saliency[:0].to(device), 0.1, method, backend=backend)
    assert empty.shape == (0, 24) and empty.dtype is torch.int32


@pytest.mark.parametrize(("device", "backend"), COMPILED)
@pytest.mark.parametrize("shape", [(32, 32), (1, 32), (32, 5), (17, 29)])
def test_large_grids(device, backend, shape):
    visible, saliency = maps("sharp", 2, shape, seed=7)
    rounds = plans(visible, saliency, 0.8, "reference", device, backend)
    assert torch.equal(rounds, plans(visible, saliency, 0.8, "reference", "cpu", "reference"))
    exact = plans(visible, saliency, 0.8, "exact", device, backend)
    if device != "cpu":
        assert torch.equal(exact, plans(visible, saliency, 0.8, "exact", "cpu", "cpu"))
    assert (totals(visible, saliency, 0.8, exact) <= totals(visible, saliency, 0.8, rounds) + rounding(saliency)).all()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set_finds_the_same_plans(isa):
    code = (
        "import torch\n"
        "from fastmix import native, ops\n"
        "g = torch.Generator().manual_seed(0)\n"
        "for shape in ((40, 4, 4), (20, 7, 9), (5, 16, 16)):\n"
        "    visible, s = torch.rand(shape, generator=g) < 0.5, torch.randn(shape, generator=g).exp()\n"
        "    s /= s.sum((1, 2), keepdim=True)\n"
        "    for method in ('reference', 'exact'):\n"
        "        plan = ops.transport(visible, s, 0.1, method).double()\n"
        "        print((plan @ torch.arange(1., plan.shape[1] + 1).double()).tolist())\n"
        "print(native.module().cpu_isa())\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | setting, capture_output=True, text=True, timeout=120
        ).stdout.splitlines()
        for setting in ({}, {"FASTMIX_CPU": isa})
    ]
    assert found[0][:-1] == found[1][:-1] and len(found[0]) == 7
    if native.module().cpu_isa() != "baseline":
        assert found[1][-1] == isa


def test_compiles_without_a_graph_break():
    visible, saliency = maps("sharp", 3, (4, 4))
    for backend in ("cpu", "reference"):
        for method in METHODS:
            torch.compiler.reset()

            def call(visible, saliency, backend=backend, method=method):
                return ops.transport(visible, saliency, 0.1, method, backend=backend) + 1

            compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(visible, saliency), call(visible, saliency))
    arguments = (saliency, visible, 0.1, False, "cpu")
    torch.library.opcheck(torch.ops.fastmix.transport.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_parallel_schedule_finds_the_serial_plans_without_races(tmp_path):
    assert "252 maps" in run_on_threads(HERE / "transport_threads.cpp", tmp_path, "-ffp-contract=off")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"visible": None}, TypeError, "visible must be a bool or uint8 tensor, got NoneType"),
        ({"visible": torch.ones(2, 4, 5)}, TypeError, "visible must be a bool or uint8 tensor, got float32"),
        ({"visible": torch.ones(4, 5, dtype=torch.bool)}, ValueError, r"visible must have shape \(N, Ty, Tx\)"),
        ({"visible": torch.ones(2, 33, 5, dtype=torch.bool)}, ValueError, r"Ty and Tx in 1\.\.32"),
        ({"visible": torch.ones(2, 4, 0, dtype=torch.bool)}, ValueError, r"Ty and Tx in 1\.\.32"),
        ({"saliency": [1.0]}, TypeError, "saliency must be a float32 tensor, got list"),
        ({"saliency": torch.ones(2, 4, 5).double()}, TypeError, "saliency must be a float32 tensor, got float64"),
        ({"saliency": torch.ones(2, 5, 4)}, ValueError, r"saliency must have shape \(2, 4, 5\) on cpu"),
        ({"saliency": torch.ones(2, 4, 5, device="meta")}, ValueError, "saliency must have shape .* on cpu"),
        ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
        ({"eps": True}, TypeError, "eps must be a number, got bool"),
        ({"eps": -0.1}, ValueError, r"eps must be a number in \[0, 1e\+30\], got -0.1"),
        ({"eps": float("nan")}, ValueError, "eps must be a number in .* got nan"),
        ({"eps": 2e30}, ValueError, "eps must be a number in"),
        ({"method": "best"}, ValueError, "method must be one of reference, exact, got 'best'"),
        ({"backend": "triton"}, ValueError, "'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"visible": torch.ones(2, 4, 5, dtype=torch.bool), "saliency": torch.ones(2, 4, 5), "eps": 0.8} | change
    with pytest.raises(error, match=f"fastmix.transport: .*{message}"):
        ops.transport(**call)
