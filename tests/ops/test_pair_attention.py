from __future__ import annotations

import pytest
import torch
from support import FLOATS, backends, partners, skip_unsupported

from fastmix import ops
from fastmix.testing import assert_matches

BACKENDS = backends("pair_attention")
# (N, r, d): odd, round, wide, narrow, one position, none.
SHAPES = [(3, 7, 5), (4, 64, 32), (2, 196, 40), (3, 131, 64), (2, 33, 300), (1, 1, 1), (0, 4, 4)]


def positions(shape: tuple, dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def of_pairs(shape: tuple, dtype: torch.dtype, device: str, seed: int) -> torch.Tensor:
    return positions(shape[:2], torch.float64 if dtype is torch.float64 else torch.float32, device, seed)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device, backend, dtype, transpose, shape):
    skip_unsupported(backend, dtype)
    q, k = (positions(shape, dtype, device, seed).requires_grad_() for seed in (0, 1))
    v, bias = (of_pairs(shape, dtype, device, seed).requires_grad_() for seed in (2, 3))
    index = partners(shape[0], device)
    assert_matches("pair_attention", q, k, v, index, bias, None, transpose, backend=backend)
    assert_matches("pair_attention", q, k, v, index, None, 0.3, transpose, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("asked", ["q", "k", "v", "bias"])
def test_gradients_only_where_asked(device, backend, transpose, asked):
    shape = (3, 20, 8)
    q, k = (positions(shape, torch.float32, device, seed) for seed in (0, 1))
    v, bias = (of_pairs(shape, torch.float32, device, seed) for seed in (2, 3))
    {"q": q, "k": k, "v": v, "bias": bias}[asked].requires_grad_()
    assert_matches("pair_attention", q, k, v, partners(3, device), bias, None, transpose, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("transpose", [False, True])
def test_one_tensor_for_queries_and_keys(device, backend, transpose):
    index, v = partners(4, device), of_pairs((4, 30, 6), torch.float32, device, 1)
    cotangent, found = of_pairs((4, 30, 6), torch.float32, device, 2), []
    for shared in (True, False):
        u = positions((4, 30, 6), torch.float32, device).requires_grad_()
        out = ops.pair_attention(u, u if shared else u.clone(), v, index, transpose=transpose, backend=backend)
        found.append(torch.autograd.grad(out, u, cotangent)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_rows_sum_to_one_and_shifts_cancel(device, backend):
    q, k = (positions((3, 50, 16), torch.float32, device, seed) for seed in (0, 1))
    index, bias = partners(3, device), of_pairs((3, 50), torch.float32, device, 2)
    ones = torch.ones(3, 50, device=device)
    torch.testing.assert_close(ops.pair_attention(q, k, ones, index, bias, backend=backend), ones)
    columns = ops.pair_attention(q, k, ones, index, bias, transpose=True, backend=backend)
    torch.testing.assert_close(columns.sum(1), ones.sum(1))
    v = of_pairs((3, 50), torch.float32, device, 4)
    shifted = ops.pair_attention(q, k, v, index, bias + 3, backend=backend)
    torch.testing.assert_close(ops.pair_attention(q, k, v, index, bias, backend=backend), shifted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_large_scores_do_not_overflow(device, backend):
    q = positions((2, 24, 8), torch.float32, device).mul(300).requires_grad_()
    v = of_pairs((2, 24), torch.float32, device, 1)
    out = ops.pair_attention(q, q, v, torch.tensor([1, 0], device=device), scale=1.0, backend=backend)
    out.sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_non_finite_scores_stay_in_their_row(device, backend):
    q, k = (positions((2, 20, 8), torch.float32, device, seed) for seed in (0, 1))
    q[0, 3, 2] = torch.nan
    bias = torch.zeros(2, 20, device=device)
    bias[1, 4] = -torch.inf
    v = of_pairs((2, 20), torch.float32, device, 2)
    v_without = v.clone()
    v_without[1, 4] = 1e6
    index = torch.tensor([0, 1], device=device)
    out = ops.pair_attention(q, k, v, index, bias, backend=backend)
    assert out.isnan().nonzero().tolist() == [[0, 3]]
    assert torch.equal(out[1], ops.pair_attention(q, k, v_without, index, bias, backend=backend)[1])


def test_threads_do_not_change_the_result():
    index, threads, found = partners(3, "cpu"), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = [positions((3, 150, 24), torch.float32, "cpu", seed).requires_grad_() for seed in (0, 1)]
            v = of_pairs((3, 150), torch.float32, "cpu", 2).requires_grad_()
            outs = [ops.pair_attention(*leaves, v, index, transpose=t) for t in (False, True)]
            found.append(
                [o.detach() for o in outs]
                + list(torch.autograd.grad(sum(o.square().sum() for o in outs), [*leaves, v]))
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": None}, TypeError, "q must be a tensor"),
        ({"k": torch.rand(4, 9, 5).half()}, TypeError, "q and k must share a floating dtype"),
        ({"k": torch.rand(4, 8, 5)}, ValueError, r"q and k must share a shape \(N, r, d\)"),
        ({"v": torch.rand(4, 8)}, ValueError, r"v must have shape \(4, 9\)"),
        ({"key_bias": torch.zeros(4, 9, dtype=torch.int32)}, TypeError, "key_bias must be a floating tensor"),
        ({"key_bias": torch.rand(9)}, ValueError, r"key_bias must have shape \(4, 9\)"),
        ({"index": torch.tensor([0, 1, 2, 4])}, ValueError, r"index must lie in \[0, 4\), got 4 at position 3"),
        ({"backend": "cuda"}, ValueError, "'cuda' cannot run here: this op has no CUDA C"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {
        "q": torch.rand(4, 9, 5),
        "k": torch.rand(4, 9, 5),
        "v": torch.rand(4, 9),
        "index": torch.arange(4),
    } | change
    with pytest.raises(error, match=f"fastmix.pair_attention: .*{message}"):
        ops.pair_attention(**call)
