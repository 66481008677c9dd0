"""`mask_blend` with `plan=` and `partner_plan=`: blocks of either image are moved in the pass that blends."""

from __future__ import annotations

import pytest
import torch
from support import assert_same_bits, backends, images, partners, skip_unsupported, unit

from fastmix import ops, reference
from fastmix.testing import assert_matches

BACKENDS = [param for param in backends("mask_blend") if param.id != "triton"]
N = 5


def plans(grid: tuple[int, int], seed: int, device: str = "cpu", lead: tuple = (N,)) -> torch.Tensor:
    """Random sources, a third of them left alone, and rows that stay together."""
    generator = torch.Generator().manual_seed(seed)
    blocks = grid[0] * grid[1]
    plan = torch.randint(-blocks // 2, blocks, (*lead, blocks), generator=generator).clamp(min=-1)
    plan[..., 0, :] = torch.arange(blocks)
    plan[..., -1, :] = torch.arange(blocks).roll(1)
    return plan.int().unflatten(-1, grid).to(device)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((16, 16), (4, 4)), ((32, 32), (16, 16)), ((24, 36), (3, 6)), ((7, 5), (1, 5)), ((12, 64), (3, 4))],
)
def test_matches_reference(device, backend, dtype, layout, size, grid):
    skip_unsupported(backend, dtype)
    x, index = images((N, 3, *size), dtype, layout, device), partners(N, device)
    mask = (unit(N, *grid, device=device) * 2).round() / 2
    own, partner = plans(grid, 0, device), plans(grid, 1, device)
    for both in ({"plan": own, "partner_plan": partner}, {"plan": own}, {"partner_plan": partner}):
        assert_matches("mask_blend", x, index, mask, "nearest", backend=backend, **both)
    options = {"normalize": ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), "dtype": torch.float32}
    if dtype is not torch.float64:
        assert_matches("mask_blend", x, index, mask, plan=own, partner_plan=partner, backend=backend, **options)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_draws_have_plans_of_their_own(device, backend):
    x, mask = images((N, 3, 16, 16), torch.float32, "contiguous", device), unit(2, N, 4, 4, device=device)
    index = torch.stack([partners(N, device, seed) for seed in (0, 1)])
    own, partner = (plans((4, 4), seed, device, (2, N)) for seed in (0, 1))
    assert_matches("mask_blend", x, index, mask, plan=own, partner_plan=partner, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_blocks_go_where_the_plan_says(device, backend):
    x, index = torch.arange(2 * 16.0, device=device).view(2, 1, 4, 4), torch.tensor([1, 0], device=device)
    plan = torch.tensor([[3, -1, 0, 3], [0, 1, 2, 3]], dtype=torch.int32, device=device)
    mask = torch.ones(2, 2, 2, device=device)
    mixed, _ = ops.mask_blend(x, index, mask, "nearest", plan=plan, backend=backend)
    assert mixed[0, 0].tolist() == [[10, 11, 2, 3], [14, 15, 6, 7], [0, 1, 10, 11], [4, 5, 14, 15]]
    assert torch.equal(mixed[1], x[1])
    mixed, _ = ops.mask_blend(x, index, 1 - mask, "nearest", partner_plan=plan, backend=backend)
    assert mixed[0, 0].tolist() == [[26, 27, 18, 19], [30, 31, 22, 23], [16, 17, 26, 27], [20, 21, 30, 31]]
    assert torch.equal(mixed[1], x[0])


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_hidden_blocks_do_not_leak(device, backend):
    x, index = images((2, 3, 8, 8), torch.float32, "contiguous", device), torch.tensor([1, 1], device=device)
    x[0, :, :4, :4], x[1, :, 4:] = torch.nan, torch.inf
    mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]], device=device)
    plan = torch.tensor([[-1, 1, 3, 2], [-1, -1, 1, -1]], dtype=torch.int32, device=device)
    mixed, _ = ops.mask_blend(x, index, mask, "nearest", plan=plan, backend=backend)
    expected, _ = reference.mask_blend(x, index, mask, "nearest", plan=plan.view(2, 2, 2))
    assert_same_bits(mixed, expected)
    assert mixed[0].isfinite().all()


def test_threads_do_not_change_the_result():
    x, index = images((16, 3, 64, 64), torch.float32, "contiguous", "cpu"), partners(16, "cpu")
    mask, plan = unit(16, 8, 8), plans((8, 8), 0, lead=(16,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ops.mask_blend(x, index, mask, "nearest", plan=plan, partner_plan=plan)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_recorded_calls_run_the_reference():
    x, index = torch.randn(N, 3, 8, 8), partners(N, "cpu")
    mask, plan = torch.rand(N, 4, 4, requires_grad=True), plans((4, 4), 0)
    mixed, _ = ops.mask_blend(x, index, mask, plan=plan)
    (found,) = torch.autograd.grad(mixed.square().sum(), mask)
    (expected,) = torch.autograd.grad(reference.mask_blend(x, index, mask, plan=plan)[0].square().sum(), mask)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="backend 'cpu' moves no blocks under autograd"):
        ops.mask_blend(x, index, mask, plan=plan, backend="cpu")


def test_compiles():
    torch.compiler.reset()
    x, index, mask, plan = torch.randn(N, 3, 8, 8), partners(N, "cpu"), torch.rand(N, 4, 4), plans((4, 4), 0)

    def step(x, mask, plan):
        return ops.mask_blend(x * 2, index, mask, plan=plan, partner_plan=plan)

    for ours, theirs in zip(
        torch.compile(step, fullgraph=True, backend="aot_eager")(x, mask, plan), step(x, mask, plan), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"plan": torch.zeros(N, 16)}, TypeError, "plan must be an int32 tensor"),
        ({"plan": torch.zeros(N, 15, dtype=torch.int32)}, ValueError, "plan must have shape"),
        ({"plan": torch.zeros(N, 9, dtype=torch.int32)}, ValueError, "dividing the 8 x 8 pixels"),
        ({"plan": torch.zeros(N - 1, 16, dtype=torch.int32)}, ValueError, "plan must have shape"),
        ({"partner_plan": torch.zeros(N, 0, 4, dtype=torch.int32)}, ValueError, "partner_plan must have shape"),
        (
            {"partner_plan": torch.full((N, 4), 4, dtype=torch.int32)},
            ValueError,
            "partner_plan must lie below 4, got 4",
        ),
        (
            {"plan": torch.zeros(N, 4, dtype=torch.int32), "partner_plan": torch.zeros(N, 16, dtype=torch.int32)},
            ValueError,
            "plan and partner_plan must have one shape",
        ),
        ({"plan": torch.zeros(N, 4, dtype=torch.int32), "backend": "triton"}, ValueError, "cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"fastmix.mask_blend: .*{message}"):
        ops.mask_blend(torch.rand(N, 3, 8, 8), torch.arange(N), torch.rand(N, 4, 4), **change)
