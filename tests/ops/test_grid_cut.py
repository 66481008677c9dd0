from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grid_support import (
    KINDS,
    Grids,
    energy_of,
    every_labelling,
    gco_swap,
    gco_terms,
    least_energy,
    random_grids,
)
from puzzle_support import NAMES, Stored
from support import backends, samples
from threads_support import run_on_threads

from fastmix import ops
from fastmix.reference.grid_cut import cheapest_set

HERE = Path(__file__).parent
RECORDED = HERE.parent / "data" / "grid_cut_swap.npz"
BACKENDS = backends("grid_cut")
COMPILED = backends("grid_cut", reference=False)
TINY = [(shape, n) for shape in [(1, 1), (1, 2), (3, 1), (2, 2), (2, 3), (3, 3)] for n in (2, 3, 4)]
TINY.remove(((3, 3), 4))  # 262144 labellings
SHAPES = [(1, 9), (7, 1), (2, 2), (4, 4), (3, 7), (8, 8), (5, 32)]
LABELS = [2, 3, 4]


def cut(grids: Grids, solver: str, device: str, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and energy, on the CPU; the energy is checked."""
    labels, energy = ops.grid_cut(*(part.to(device) for part in grids), solver, backend=backend)
    labels, energy = labels.cpu(), energy.cpu()
    assert labels.dtype is torch.int32 and energy.dtype is torch.int64
    assert torch.equal(energy, energy_of(labels, *grids))
    return labels, energy


def all_energies(grids: Grids, n: int, labellings: torch.Tensor) -> torch.Tensor:
    """Of every labelling of grid n."""
    return energy_of(labellings, *(part[n : n + 1].expand(len(labellings), *part.shape[1:]) for part in grids))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize(("shape", "labels"), TINY)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_the_smallest_of_all_best_labellings(device, backend, kind, shape, labels):
    grids = random_grids(kind, 25, *shape, labels, seed=labels)
    found, energy = cut(grids, "exact", device, backend)
    labellings = every_labelling(*shape, labels)
    for n in range(25):
        energies = all_energies(grids, n, labellings)
        assert energy[n] == energies.min()
        assert torch.equal(found[n].long(), labellings[energies == energies.min()].amin(0))


def smallest_best_swap(labels: torch.Tensor, low: int, high: int, grids: Grids, n: int) -> torch.Tensor:
    """By trying every division of the sites labelled `low` or `high` between the two."""
    free = (labels == low) | (labels == high)
    choices = labels.expand(2 ** int(free.sum()), *labels.shape).clone()
    if free.any():
        choices[:, free] = torch.cartesian_prod(*[torch.tensor([low, high])] * int(free.sum())).view(len(choices), -1)
    energies = gco_energy(choices, grids, n)
    return choices[energies == energies.min()].amin(0)


def gco_energy(labellings: torch.Tensor, grids: Grids, n: int) -> torch.Tensor:
    unary, weight_y, weight_x = (part[n].long() for part in grids)
    factor, distance = gco_terms(unary)
    distance = torch.tensor(distance)
    own = unary.expand(len(labellings), *unary.shape).gather(3, labellings.unsqueeze(3)).sum((1, 2, 3))
    down, right = (distance[labellings.diff(dim=dim).abs()] for dim in (1, 2))
    return factor * own + (weight_y * down).sum((1, 2)) + (weight_x * right).sum((1, 2))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize(("shape", "labels"), TINY)
@pytest.mark.parametrize("kind", ["ties", "rough ties", "puzzle"])
def test_swap_is_the_published_schedule_of_best_swaps(device, backend, kind, shape, labels):
    grids = random_grids(kind, 10, *shape, labels, seed=labels)
    found, _ = cut(grids, "swap", device, backend)
    for n in range(10):
        expected, before, now = torch.zeros(shape, dtype=torch.long), None, None
        while before is None or now < before:
            before = gco_energy(expected[None], grids, n)
            for low in range(labels):
                for high in range(labels - 1, low, -1):
                    expected = smallest_best_swap(expected, low, high, grids, n)
            now = gco_energy(expected[None], grids, n)
        assert torch.equal(found[n].long(), expected)


def test_the_reference_cut_is_the_smallest_cheapest_set():
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        costs = torch.randint(-4, 5, (7,), generator=g)
        there, back = torch.randint(-6, 5, (2, 7, 7), generator=g).clamp(0).triu(1)
        arcs = [(u, v, int(there[u, v]), int(back[u, v])) for u in range(7) for v in range(u + 1, 7)]
        sets = every_labelling(1, 7, 2)[:, 0]
        inside, outside = sets.unsqueeze(1), 1 - sets.unsqueeze(2)  # of v, of u
        prices = (sets * costs).sum(1) + (there * outside * inside).sum((1, 2))
        prices += (back * (1 - outside) * (1 - inside)).sum((1, 2))
        best = sets[prices == prices.min()].amin(0)
        assert cheapest_set(costs.tolist(), arcs) == best.bool().tolist()


@pytest.mark.parametrize(("device", "backend"), COMPILED)
@pytest.mark.parametrize("solver", ["exact", "swap"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_kernels_are_the_reference(device, backend, shape, labels, solver):
    for kind in KINDS:
        grids = random_grids(kind, samples(7), *shape, labels, seed=1)
        expected = cut(grids, solver, "cpu", "reference")
        assert all(map(torch.equal, cut(grids, solver, device, backend), expected)), kind


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("side", "n"), [(2, 20), (4, 20), (8, 20), (16, 6)])
def test_the_energy_is_that_of_an_independent_maximum_flow(side, n, labels):
    pytest.importorskip("scipy")
    for kind in KINDS:
        grids = random_grids(kind, n, side, side, labels, seed=2)
        assert cut(grids, "exact", "cpu", "cpu")[1].tolist() == least_energy(*grids)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (8, 8), (16, 16), (3, 11)])
def test_swap_is_gco_and_exact_is_not_worse(shape, labels):
    pytest.importorskip("gco")
    for kind in KINDS:
        grids = random_grids(kind, 25, *shape, labels, seed=3)
        found, energy = cut(grids, "swap", "cpu", "cpu")
        assert torch.equal(found, gco_swap(*grids))
        assert (cut(grids, "exact", "cpu", "cpu")[1] <= energy).all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_swap_is_what_gco_was_recorded_to_find(device, backend):
    recorded = np.load(RECORDED)
    groups = {name.split("/")[0] for name in recorded.files}
    assert sum(len(recorded[f"{group}/labels"]) for group in groups) > 300
    for group in groups:
        *grids, expected = (
            torch.from_numpy(recorded[f"{group}/{name}"]).int() for name in ("unary", "weight_y", "weight_x", "labels")
        )
        found, energy = cut(tuple(grids), "swap", device, backend)
        assert torch.equal(found, expected), group
        assert (cut(tuple(grids), "exact", device, backend)[1] <= energy).all(), group


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_stored_results_of_the_released_code(device, backend, name):
    stored = Stored(name)
    grids = tuple(stored[part] for part in ("U_int", "Wv_int", "Wh_int"))
    unit = 100_000 // (grids[0].shape[3] - 1) ** 2
    labels, energy = cut(grids, "exact", device, backend)
    assert torch.equal(labels, stored["labels_exact_nowrap"].int())
    assert torch.equal(unit * energy, stored["energy_exact_nowrap"])
    labels, energy = cut(grids, "swap", device, backend)
    right = ~stored["wrapped"]  # where the released code's integers overflowed, its labels are no swap's
    assert torch.equal(labels[right], stored["labels_gco"].int()[right])
    assert torch.equal(unit * energy[right], stored["energy_gco"][right])


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("solver", ["exact", "swap"])
@pytest.mark.parametrize("labels", LABELS)
def test_nothing_overflows(device, backend, labels, solver):
    g = torch.Generator().manual_seed(labels)
    low, high = -(2**31), 2**31 - 1

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=g).int()

    extremes = torch.tensor([low, high, 0, 1], dtype=torch.int32)
    unary = integers(8, 4, 5, labels)
    unary[2:4] = extremes[torch.randint(0, 4, unary[2:4].shape, generator=g)]
    unary[4:] //= 1 << 8
    weights = [integers(8, 3, 5), integers(8, 4, 4)]
    for w in weights:
        w[5], w[6], w[7] = high, 1 << 20, torch.randint(0, 1 << 21, w[7].shape, generator=g)
    limited = (unary, *(w.clamp(0, 1 << 20) for w in weights))
    found = ops.grid_cut(*(t.to(device) for t in (unary, *weights)), solver, backend=backend)
    expected = cut(limited, solver, "cpu", "reference")
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(("device", "backend"), COMPILED)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("shape", [(16, 16), (32, 3), (1, 32), (17, 29), (32, 32)])
def test_large_grids(device, backend, shape, labels):
    for kind in ("puzzle", "rough"):
        grids = random_grids(kind, samples(2), *shape, labels, seed=4)
        for solver in ("exact", "swap"):
            assert all(map(torch.equal, cut(grids, solver, device, backend), cut(grids, solver, "cpu", "reference")))


def snake(side: int) -> Grids:
    """Two sites that want different labels, and one way between them through all others."""
    unary = torch.zeros(1, side, side, 3, dtype=torch.int32)
    weight_y, weight_x = torch.zeros(1, side - 1, side).int(), torch.full((1, side, side - 1), 99, dtype=torch.int32)
    weight_y[0, ::2, -1] = weight_y[0, 1::2, 0] = 99  # rows are joined at alternating ends
    unary[0, 0, 0] = torch.tensor([0, -10, -20])
    unary[0, -1, 0 if side % 2 == 0 else -1] = torch.tensor([0, 5, 9])
    return unary, weight_y, weight_x


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_flow_finds_the_longest_way(device, backend):
    for side in (4, 7):
        labels, energy = cut(snake(side), "exact", device, backend)
        assert labels.unique().tolist() == [2] and energy.item() == 4 * (9 - 20)


def test_flow_finds_the_longest_way_there_is():
    labels, energy = cut(snake(32), "exact", "cpu", "cpu")
    assert labels.unique().tolist() == [2] and energy.item() == 4 * (9 - 20)


def test_samples_do_not_depend_on_each_other_nor_on_threads():
    smooth, rough = (random_grids(kind, 20, 6, 5, 3, seed=5) for kind in ("puzzle", "rough"))
    grids = tuple(torch.cat(parts) for parts in zip(smooth, rough, strict=True))
    threads = torch.get_num_threads()
    try:
        for solver in ("exact", "swap"):
            alone = [ops.grid_cut(*(part[n : n + 1] for part in grids), solver) for n in range(40)]
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                labels, energy = ops.grid_cut(*grids, solver)
                assert torch.equal(labels, torch.cat([one[0] for one in alone]))
                assert torch.equal(energy, torch.cat([one[1] for one in alone]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_labels(isa):
    code = (
        "import torch\n"
        "from fastmix import ops\n"
        "from grid_support import random_grids\n"
        "for kind in ('puzzle', 'rough'):\n"
        "    for solver in ('exact', 'swap'):\n"
        "        labels, energy = ops.grid_cut(*random_grids(kind, 9, 7, 6, 3), solver)\n"
        "        print(labels.flatten().tolist(), energy.tolist())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE.parent,
        env=os.environ | {"FASTMIX_CPU": isa},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    expected = ""
    for kind in ("puzzle", "rough"):
        for solver in ("exact", "swap"):
            labels, energy = ops.grid_cut(*random_grids(kind, 9, 7, 6, 3), solver)
            expected += f"{labels.flatten().tolist()} {energy.tolist()}\n"
    assert found.stdout == expected


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_layouts_and_empty_batches(device, backend):
    grids = random_grids("puzzle", 6, 4, 5, 3)
    expected = cut(grids, "exact", device, backend)
    strided = tuple(part.repeat_interleave(2, 0).transpose(1, 2).contiguous().transpose(1, 2)[::2] for part in grids)
    assert not any(part.is_contiguous() for part in strided)
    assert all(map(torch.equal, cut(strided, "exact", device, backend), expected))
    labels, energy = cut(tuple(part[:0] for part in grids), "swap", device, backend)
    assert labels.shape == (0, 4, 5) and energy.shape == (0,)


def test_compiles_without_a_graph_break():
    grids = random_grids("puzzle", 3, 4, 4, 3)
    for backend in ("cpu", "reference"):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda *grids, backend=backend: ops.grid_cut(*grids, backend=backend), fullgraph=True, backend="aot_eager"
        )
        assert all(map(torch.equal, compiled(*grids), ops.grid_cut(*grids)))
    arguments = (*grids, False, "cpu")
    torch.library.opcheck(torch.ops.fastmix.grid_cut.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_parallel_schedule_finds_the_serial_result_without_races(tmp_path):
    assert "168 grids" in run_on_threads(HERE / "grid_cut_threads.cpp", tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"unary": None}, TypeError, "unary must be an int32 tensor, got NoneType"),
        ({"unary": torch.zeros(2, 4, 5, 3)}, TypeError, "unary must be an int32 tensor, got float32"),
        ({"weight_y": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "weight_y must be an int32 tensor"),
        ({"unary": torch.zeros(2, 4, 5, dtype=torch.int32)}, ValueError, r"unary must have shape \(N, H, W, L\)"),
        ({"unary": torch.zeros(2, 4, 5, 5, dtype=torch.int32)}, ValueError, "L in 2..4"),
        ({"unary": torch.zeros(2, 33, 5, 3, dtype=torch.int32)}, ValueError, r"H and W in 1\.\.32"),
        ({"unary": torch.zeros(2, 4, 0, 3, dtype=torch.int32)}, ValueError, r"H and W in 1\.\.32"),
        ({"weight_y": torch.zeros(2, 4, 5, dtype=torch.int32)}, ValueError, r"weight_y must have shape \(2, 3, 5\)"),
        ({"weight_x": torch.zeros(1, 4, 4, dtype=torch.int32)}, ValueError, r"weight_x must have shape \(2, 4, 4\)"),
        ({"solver": "best"}, ValueError, "solver must be one of exact, swap, got 'best'"),
        ({"backend": "triton"}, ValueError, "'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    grids = random_grids("puzzle", 2, 4, 5, 3)
    call = dict(zip(("unary", "weight_y", "weight_x"), grids, strict=True)) | change
    with pytest.raises(error, match=f"fastmix.grid_cut: .*{message}"):
        ops.grid_cut(**call)
