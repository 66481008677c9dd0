"""What the tests of the ops leave to the CUDA kernels alone; run by test_cuda_emulated.py on emulated ones."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_emulator.plugin import OPS, STREAM, controls
from grid_support import random_grids
from support import OPS as BATCH_OPS
from support import assert_same_bits, call, images, unit

from fastmix import ops
from fastmix.testing import assert_matches

U8, F16, BF16, F32 = torch.uint8, torch.float16, torch.bfloat16, torch.float32
NORMALIZE = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)

each_op = pytest.mark.parametrize("op", [op for op in OPS if op in BATCH_OPS])  # the blends
each_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])


def launches() -> tuple[int, int, int]:
    """How many there were, and the device and stream of the last one."""
    device, stream = ctypes.c_int(), ctypes.c_size_t()
    return controls.cuda_emulator_launches(ctypes.byref(device), ctypes.byref(stream)), device.value, stream.value


SHAPES = [
    (3, 70, 6, 5),  # many channels
    (2, 4, 3, 1100),  # rows longer than a block
    (2, 1, 2100, 1),  # a value a row
    (40, 1, 3, 2),  # small images
    (2, 2, 1, 16),  # packets of 16 bytes fit: one, a few, several warps of them
    (2, 4, 8, 8),
    (2, 2, 40, 64),
]


@each_op
@each_layout
@pytest.mark.parametrize("dtype", [U8, F16, F32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(op, layout, dtype, shape):
    for draws in (None, 2):
        given = call(op, "cpu", dtype, layout, shape, draws, grad=draws is None)
        assert_matches(op, *given.args, backend="cuda", **given.options)


@each_op
@each_layout
@pytest.mark.parametrize("source", [U8, F16, BF16, F32])
@pytest.mark.parametrize("target", [U8, F16, BF16, F32])
def test_every_conversion(op, layout, source, target):
    given = call(op, "cpu", source, layout, (4, 3, 7, 13), grad=target is not U8)
    normalize = None if target is U8 else NORMALIZE
    assert_matches(op, *given.args, backend="cuda", normalize=normalize, dtype=target, **given.options)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_every_half_precision_number(dtype):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1)
    own = torch.tensor([0])
    assert_same_bits(ops.blend(x, own, 1.0, dtype=F32, backend="cuda"), x.float())
    # Each number again, and what lies on, right below and right above the middle to the next.
    middle = x.float().view(torch.int32) + (1 << 12 if dtype is F16 else 1 << 15)
    wide = torch.cat([x.float(), *((middle + step).view(F32) for step in (-1, 0, 1))], 1)
    assert_same_bits(ops.blend(wide, own, 1.0, dtype=dtype, backend="cuda"), wide.to(dtype))


@each_op
@each_layout
@pytest.mark.parametrize("dtype", [U8, F16, BF16, F32])
@pytest.mark.parametrize("draws", [None, 2])
def test_rows_without_a_partner_are_nan(op, layout, dtype, draws):
    """On a GPU nobody looks for an index out of range before the launch: the row shows it, no other memory is read."""
    given = call(op, "cpu", dtype, layout, (6, 3, 7, 13), draws, grad=False)
    broken, bad = without_partners(given.args[1])
    found = results(op, (given.args[0], broken, *given.args[2:]), "cuda", given.options)
    expected = results(op, given.args, "reference", given.options)
    for ours, theirs in zip(found, expected, strict=True):
        wrong = ours[bad] == 0 if ours.dtype is U8 else ours[bad].isnan()
        assert wrong.all()
        torch.testing.assert_close(ours[~bad], theirs[~bad], rtol=1e-2, atol=1 if dtype is U8 else 1e-2)


@each_op
@each_layout
def test_gradients_of_rows_without_a_partner(op, layout):
    given = call(op, "cpu", F32, layout, (6, 3, 7, 13))
    index, bad = without_partners(given.args[1])
    given.args = (given.args[0], index, *given.args[2:])
    cotangents = [torch.randn(6, 3, 7, 13, generator=torch.Generator().manual_seed(1)), torch.zeros(6)]
    given_results = given.results("cuda")
    for_images, for_weights = torch.autograd.grad(given_results, given.leaves, cotangents[: len(given_results)])
    assert for_weights[bad].isnan().all() and not for_weights[~bad].isnan().any()
    # The images get what a partner of zeros, a sample more, would have left them.
    more = [torch.cat([a, torch.zeros_like(a[:1])]) if isinstance(a, torch.Tensor) else a for a in given.args]
    more[0], more[1] = more[0].detach().requires_grad_(), torch.cat([index.masked_fill(bad, 6), torch.tensor([6])])
    mixed = results(op, tuple(more), "reference", given.options)[0]
    (expected,) = torch.autograd.grad(mixed[:6], more[0], cotangents[0])
    torch.testing.assert_close(for_images, expected[:6])


@each_layout
@pytest.mark.parametrize("dtype", [U8, F16, F32])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((3, 4, 6, 1104), (2, 23)),  # packets in rows longer than a block
        ((3, 2, 2048, 6), (1024, 2)),  # a value at a time, many rows
        ((20, 1, 4, 4), (2, 1)),
        ((2, 70, 2, 32), (2, 2)),
        ((3, 3, 33, 64), (11, 4)),
        ((2, 3, 1, 1), (1, 1)),
        ((2, 3, 8, 0), (2, 2)),
    ],
    ids=str,
)
def test_sizes_of_moved_blocks(layout, dtype, shape, grid):
    given = call("mask_blend", "cpu", dtype, layout, shape, 2, grad=False, mode="nearest")
    sources = torch.randint(-3, grid[0] * grid[1], (2, 2, shape[0], *grid), dtype=torch.int32)
    for plan, partner_plan in (sources, (sources[0], None), (None, sources[1])):
        plans = {"plan": plan, "partner_plan": partner_plan}
        assert_matches("mask_blend", *given.args, backend="cuda", **plans, **given.options)


@each_layout
@pytest.mark.parametrize("size", [(6, 10), (6, 32)])
def test_blocks_without_a_source_stay_and_rows_without_a_partner_are_nan(layout, size):
    """On a GPU nobody looks for a source out of range before the launch."""
    given = call("mask_blend", "cpu", F32, layout, (6, 3, *size), grad=False)
    plan = torch.randint(0, 4, (6, 2, 2), dtype=torch.int32)
    broken = plan.clone()
    plan[:, 0, 1], broken[:, 0, 1] = -1, torch.tensor([4, 5, 1 << 20, 2**31 - 1, -2, -(2**31)])
    found, expected = (
        results("mask_blend", given.args, backend, {**given.options, "plan": sources, "partner_plan": sources})[0]
        for backend, sources in (("cuda", broken), ("reference", plan))
    )
    torch.testing.assert_close(found, expected)
    index, bad = without_partners(given.args[1])
    args, options = (given.args[0], index, *given.args[2:]), {**given.options, "plan": plan, "partner_plan": plan}
    found = results("mask_blend", args, "cuda", options)[0]
    assert found[bad].isnan().all()
    torch.testing.assert_close(found[~bad], expected[~bad])


def without_partners(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The map with some indices out of range, and where they are."""
    bad = torch.zeros_like(index, dtype=torch.bool)
    bad.view(-1)[1:5] = True
    return index.masked_scatter(bad, torch.tensor([index.shape[-1], -1, 2**40, -(2**62)])), bad


def results(op: str, args: tuple, backend: str, options: dict) -> list[torch.Tensor]:
    """The results, those of several draws stacked."""
    found = getattr(ops, op)(*args, backend=backend, **options)
    parts = found if op == "mask_blend" else (found,)
    return [torch.stack(part) if isinstance(part, tuple) else part for part in parts]


@pytest.mark.parametrize("op", ["blend", "box_blend"])
@each_layout
def test_a_weight_of_zero_takes_nothing_of_a_gradient(op, layout):
    given = call(op, "cpu", F32, layout, (4, 3, 5, 6))
    x, lam = given.args[0], torch.tensor([0.0, 1.0, 0.0, 1.0])
    grad = images((4, 3, 5, 6), F32, layout, "cpu", seed=5)
    grad[1] = torch.inf
    box = [torch.zeros(4, 4, dtype=torch.int32)] if op == "box_blend" else []
    mixed = getattr(ops, op)(x, torch.tensor([3, 0, 3, 3]), *box, lam, backend="cuda")
    # Sample 0 mixes 3 alone, 1 itself, 2 sample 3, 3 itself.
    none = torch.zeros_like(grad[0])
    expected = torch.stack([none, grad[1], none, grad[0] + grad[2] + grad[3]])
    torch.testing.assert_close(torch.autograd.grad(mixed, x, grad)[0], expected)


@pytest.mark.parametrize("op", ["box_blend", "mask_blend"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_weights_of_zero_and_one_in_a_packet(op, layout):
    x = images((2, 3, 4, 24), F32, layout, "cpu").requires_grad_()
    grad = images((2, 3, 4, 24), F32, layout, "cpu", seed=5)
    grad[0, :, :, 3:9] = torch.inf
    index, partners_part = torch.tensor([1, 0]), torch.arange(24) < 6
    if op == "box_blend":
        mixed = ops.box_blend(x, index, torch.tensor([0, 0, 4, 6], dtype=torch.int32), backend="cuda")
    else:
        mask = torch.tensor([0.0, 1, 1, 1]).expand(2, 1, 4)
        mixed, _ = ops.mask_blend(x, index, mask, "nearest", backend="cuda")
    expected = torch.where(partners_part, grad[index], grad)
    torch.testing.assert_close(torch.autograd.grad(mixed, x, grad)[0], expected)


@each_op
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 4), (2, 3, 4, 0), (2, 0, 4, 4)], ids=str)
def test_empty_images(op, shape):
    for draws in (None, 2):
        given = call(op, "cpu", shape=shape, draws=draws)
        assert_matches(op, *given.args, backend="cuda", **given.options)


@each_op
def test_all_draws_are_one_launch(op):
    counts = []
    for draws in (None, 1, 3):
        given, before = call(op, "cpu", F16, draws=draws, grad=False), launches()[0]
        given.results("cuda")
        counts.append(launches()[0] - before)
    assert counts[0] == counts[1] == counts[2] > 0


@each_op
def test_launches_go_to_the_stream_and_leave_the_device_as_it_was(op):
    controls.cuda_emulator_set_device(1)
    try:
        given = call(op, "cpu")
        for result in given.results("cuda"):
            result.sum().backward(retain_graph=True)
            assert launches()[1:] == (0, STREAM)
            assert controls.cuda_emulator_get_device() == 1
    finally:
        controls.cuda_emulator_set_device(0)


@pytest.mark.parametrize(
    "run",
    [
        lambda x, maps, grids: ops.saliency_pool(x, 4, backend="cuda"),
        lambda x, maps, grids: ops.puzzle_energy(x, maps, torch.tensor([1, 0]), 0.3, 3, backend="cuda"),
        lambda x, maps, grids: ops.grid_cut(*grids, "exact", backend="cuda"),
        lambda x, maps, grids: ops.grid_cut(*grids, "swap", backend="cuda"),
        lambda x, maps, grids: ops.transport(maps > 0.5, maps, 0.8, "reference", backend="cuda"),
        lambda x, maps, grids: ops.transport(maps > 0.5, maps, 0.8, "exact", backend="cuda"),
    ],
    ids=["saliency_pool", "puzzle_energy", "exact cut", "swap", "rounds", "exact plan"],
)
def test_launches_of_puzzle_ops_go_there_too(run):
    x, maps, grids = images((2, 3, 16, 16), F32, "contiguous", "cpu"), unit(2, 4, 4), random_grids("puzzle", 2, 4, 4, 3)
    controls.cuda_emulator_set_device(1)
    try:
        before = launches()[0]
        run(x, maps, grids)
        assert launches()[0] > before and launches()[1:] == (0, STREAM)
        assert controls.cuda_emulator_get_device() == 1
    finally:
        controls.cuda_emulator_set_device(0)
