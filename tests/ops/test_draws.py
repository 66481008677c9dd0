"""Several draws of one batch in one launch, `index` (D, N): the same as one call a draw, forward and backward."""

from __future__ import annotations

import pytest
import torch
from support import BACKENDS, each_op, images, skip_unsupported, unit

from fastmix import dispatch, ops
from fastmix.testing import assert_matches

N, R, DEPTH = 5, 21, 12
SHAPE = (N, 3, 17, 23)
BOX = torch.tensor([[2, 3, 9, 20], [0, 0, 17, 23], [5, 5, 2, 2], [-4, -4, 3, 3], [16, 22, 40, 40]], dtype=torch.int32)


def indices(draws: int, device: str) -> torch.Tensor:
    """Many-to-one maps with fixed points, a different one each draw."""
    generator = torch.Generator().manual_seed(draws)
    return torch.randint(0, N, (draws, N), generator=generator).to(device)


def arguments(op: str, draws: int, dtype: torch.dtype, layout: str, device: str) -> tuple:
    if op == "pair_attention":
        q, k = (images((1, N, R, DEPTH), dtype, "contiguous", device, seed)[0] for seed in (0, 1))
        v, bias = (unit(draws, N, R, device=device, seed=seed) for seed in (2, 3))
        return q, k, v, indices(draws, device), bias
    x, index = images(SHAPE, dtype, layout, device), indices(draws, device)
    if op == "blend":
        return x, index, unit(draws, N, device=device)
    if op == "box_blend":
        box = torch.stack([BOX.roll(draw, 0) for draw in range(draws)]).to(device)
        return x, index, box, unit(draws, N, device=device)
    return x, index, 0.05 + 0.9 * unit(draws, N, 4, 6, device=device)


def leaves(arguments: tuple) -> tuple:
    return tuple(a.detach().requires_grad_(a.is_floating_point()) for a in arguments)


@pytest.mark.parametrize(("op", "device", "backend"), each_op(reference=True))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_match_the_reference(op, draws, dtype, layout, device, backend):
    skip_unsupported(backend, dtype)
    assert_matches(op, *leaves(arguments(op, draws, dtype, layout, device)), backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("options", [{"mode": "bicubic", "activation": "sigmoid"}, {"activation_first": True}])
def test_masks_of_every_kind(options, device, backend):
    x, index, mask = arguments("mask_blend", 2, torch.float32, "contiguous", device)
    options = {"activation": "sigmoid", **options}
    assert_matches("mask_blend", *leaves((x, index, mask)), backend=backend, **options)
    normalize = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    raw = images(SHAPE, torch.uint8, "channels_last", device)
    assert_matches("mask_blend", raw, index, mask, backend=backend, normalize=normalize, dtype=torch.float16, **options)


@pytest.mark.parametrize(("op", "device", "backend"), each_op(reference=True))
def test_each_draw_is_the_single_call(op, device, backend):
    given = arguments(op, 2, torch.float32, "channels_last", device)
    shared = 2 if op == "pair_attention" else 1
    together = getattr(ops, op)(*given, backend=backend)
    for draw in range(2):
        alone = getattr(ops, op)(*given[:shared], *(a[draw] for a in given[shared:]), backend=backend)
        for ours, theirs in zip(
            [part[draw] for part in together] if op == "mask_blend" else [together[draw]],
            alone if op == "mask_blend" else [alone],
            strict=True,
        ):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()


@pytest.mark.parametrize(("op", "device", "backend"), each_op(reference=True))
def test_a_draw_that_nobody_differentiates_gets_zeros(op, device, backend):
    given = leaves(arguments(op, 2, torch.float32, "contiguous", device))
    wanted = _floats(given)
    found = torch.autograd.grad(_second(getattr(ops, op)(*given, backend=backend), op), wanted)
    per_draw = [g for g, a in zip(found, wanted, strict=True) if a.shape[0] == 2]
    assert per_draw and all(not g[0].any() and g[1].any() for g in per_draw)
    again = leaves(given)
    expected = torch.autograd.grad(_second(getattr(ops, op)(*again, backend="reference"), op), _floats(again))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _second(result, op):
    return (result[0][1] if op == "mask_blend" else result[1]).square().sum()


def _floats(arguments):
    return [a for a in arguments if a.requires_grad]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_skipped_draw_runs_no_backward_kernel(device, backend, monkeypatch):
    if backend == "reference":
        pytest.skip("plain autograd")
    kernels = dispatch.kernels("mask_blend", backend)
    calls = []
    plain = kernels.mask_blend_grad_mask
    monkeypatch.setattr(kernels, "mask_blend_grad_mask", lambda *args: (calls.append(1), plain(*args)))
    x, index, mask = leaves(arguments("mask_blend", 3, torch.float32, "contiguous", device))
    mixed, mean = ops.mask_blend(x.detach(), index, mask, backend=backend)
    (mixed[2].sum() + mean[2].sum()).backward()
    assert len(calls) == 1


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("op", ["blend", "box_blend", "mask_blend"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_takes_all_draws(op, layout, device, backend):
    given = arguments(op, 2, torch.float32, layout, device)
    x = given[0]
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    flat = torch.full((2 * N, *SHAPE[1:]), torch.nan, device=device).contiguous(memory_format=form)
    out = flat.unflatten(0, (2, N))
    found = getattr(ops, op)(*given, out=out, backend=backend)
    expected = getattr(ops, op)(*given, backend=backend)
    found, expected = (r[0] if op == "mask_blend" else r for r in (found, expected))
    for draw in range(2):
        assert torch.equal(out[draw], expected[draw]) and torch.equal(found[draw], expected[draw])
        assert found[draw].data_ptr() == out[draw].data_ptr()
    with pytest.raises(ValueError, match="out must be float32 of shape"):
        getattr(ops, op)(*given, out=torch.empty_like(x), backend=backend)
    apart = torch.empty(2, 2 * N, *SHAPE[1:], device=device)[:, :N]
    with pytest.raises(ValueError, match="out must have the strides"):
        getattr(ops, op)(*given, out=apart, backend=backend)


@pytest.mark.parametrize("op", ["blend", "box_blend", "mask_blend", "pair_attention"])
def test_an_empty_batch(op):
    given = arguments(op, 2, torch.float32, "contiguous", "cpu")
    shared = 2 if op == "pair_attention" else 1
    empty = [a[:0] if i < shared else a[:, :0] for i, a in enumerate(given)]
    result = getattr(ops, op)(*leaves(tuple(empty)))
    first = result[0][0] if op == "mask_blend" else result[0]
    assert first.shape[0] == 0
    first.sum().backward()


@pytest.mark.parametrize("op", ["blend", "box_blend", "mask_blend", "pair_attention"])
def test_compiles(op):
    torch.compiler.reset()
    given = arguments(op, 2, torch.float32, "contiguous", "cpu")

    def step(*args):
        result = getattr(ops, op)(*args)
        first, second = result[0] if op == "mask_blend" else result
        return first.detach() + second * 2

    found = []
    for call in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        args = leaves(given)
        out = call(*args)
        found.append([out, *torch.autograd.grad(out.square().sum(), _floats(args))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.zeros(0, N, dtype=torch.int64)}, r"index must be int64 of shape \(5,\) or \(D, 5\)"),
        ({"index": torch.zeros(2, 4, dtype=torch.int64)}, "index must be int64"),
        ({"index": torch.full((2, N), 5)}, r"index must lie in \[0, 5\), got 5 at position 0"),
        ({"lam": torch.rand(N)}, r"lam must have shape \(\) or \(2, 5\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    call = {"index": indices(2, "cpu"), "lam": torch.rand(2, N)} | change
    with pytest.raises(ValueError, match=message):
        ops.blend(torch.rand(SHAPE), call["index"], call["lam"])
    if "index" in change:
        with pytest.raises(ValueError, match=message):
            ops.blend(torch.rand(SHAPE), call["index"], 0.5, backend="reference")
