from __future__ import annotations

import pytest
import torch
from support import BACKENDS, FLOATS, LAYOUTS, SHAPES, assert_same_bits, images, partners, skip_unsupported, unit

from fastmix import ops
from fastmix.testing import assert_matches

NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device, backend, dtype, layout, shape):
    skip_unsupported(backend, dtype)
    x, index = images(shape, dtype, layout, device), partners(shape[0], device)
    for lam in (unit(shape[0], device=device), torch.tensor(0.3, device=device)):
        assert_matches("blend", x.requires_grad_(), index, lam.requires_grad_(), backend=backend)
    assert_matches("blend", x.detach(), index, 0.7, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("shape", [(6,), (5, 33), (4, 3, 7), (2, 3, 4, 5, 6)])
def test_any_rank(device, backend, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    lam = unit(shape[0], device=device).requires_grad_()
    assert_matches("blend", x, partners(shape[0], device), lam, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("source", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float32, torch.uint8])
def test_normalise_and_convert_in_one_pass(device, backend, layout, source, dtype):
    x, index = images((5, 3, 17, 23), source, layout, device), partners(5, device)
    normalize = None if (dtype or source) is torch.uint8 else NORMALIZE
    assert_matches("blend", x, index, unit(5, device=device), backend=backend, normalize=normalize, dtype=dtype)
    if source.is_floating_point and (dtype is None or dtype.is_floating_point):
        x, lam = x.requires_grad_(), unit(5, device=device).requires_grad_()
        assert_matches("blend", x, index, lam, backend=backend, normalize=normalize, dtype=dtype)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_float32_is_bit_equal_to_the_formula(device, backend):
    x, index = images((6, 3, 61, 67), torch.float32, "contiguous", device), partners(6, device)
    lam = unit(6, device=device).view(-1, 1, 1, 1)
    expected = x * lam + x[index] * (1 - lam)
    assert torch.equal(ops.blend(x, index, lam.flatten(), backend=backend), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_exact_weight_returns_the_image(device, backend, weight, dtype):
    x = images((4, 3, 9, 9), dtype, "contiguous", device)
    if dtype.is_floating_point:
        x[1], x[2, 0, 0], x[3, 0, 0, 0] = torch.nan, torch.inf, -0.0
    index = torch.tensor([1, 2, 3, 0], device=device)
    out, expected = ops.blend(x, index, weight, backend=backend), x if weight else x[index]
    assert_same_bits(out, expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_out_is_filled_and_returned(device, backend):
    x, index = images((4, 3, 8, 8), torch.float32, "channels_last", device), partners(4, device)
    out = torch.full_like(x, torch.nan)
    assert ops.blend(x, index, 0.4, out=out, backend=backend) is out
    assert torch.equal(out, ops.blend(x, index, 0.4, backend=backend))


def test_threads_do_not_change_the_result():
    x, index = images((16, 3, 64, 64), torch.float32, "contiguous", "cpu"), partners(16, "cpu")
    lam, threads = unit(16), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf, weight = x.clone().requires_grad_(), lam.clone().requires_grad_()
            out = ops.blend(leaf, index, weight)
            found.append((out.detach(), *torch.autograd.grad(out, (leaf, weight), x)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_only_where_asked_and_once():
    x, index = torch.randn(3, 4, requires_grad=True), torch.tensor([1, 2, 0])
    lam = torch.tensor(0.5)
    (grad,) = torch.autograd.grad(ops.blend(x, index, lam), x, torch.ones(3, 4), create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiate twice|does not require grad"):
        grad.sum().backward()
    out = ops.blend(x, index, lam)
    first = torch.autograd.grad(out, x, torch.ones(3, 4), retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, x, torch.ones(3, 4))[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1, 2]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.zeros(4, 3, dtype=torch.int32)}, TypeError, "x must be uint8, float16.*got int32"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must have shape \(N, ...\)"),
        ({"index": torch.tensor([0, 1, 2], dtype=torch.int64)}, ValueError, r"index must be int64 of shape \(4,\)"),
        ({"index": torch.zeros(4, dtype=torch.int32)}, TypeError, "index must be int64.*got int32"),
        ({"index": torch.tensor([0, 1, 2, 4])}, ValueError, r"index must lie in \[0, 4\), got 4 at position 3"),
        ({"index": torch.tensor([0, -1, 2, 3])}, ValueError, "got -1 at position 1"),
        ({"lam": torch.rand(3)}, ValueError, r"lam must have shape \(\) or \(4,\)"),
        ({"lam": torch.rand(4).half()}, TypeError, "lam must be float32 or float64"),
        ({"lam": "0.5"}, TypeError, "lam must be a float or a tensor"),
        ({"dtype": torch.int32}, TypeError, "dtype must be"),
        ({"normalize": 3}, TypeError, "normalize must be a pair"),
        ({"normalize": ((0.5,), (0.5,))}, ValueError, "normalize must hold 3 means and 3 stds"),
        ({"backend": "cuda9"}, ValueError, "backend must be one of"),
        ({"backend": "triton"}, ValueError, "'triton' cannot run here"),
        ({"out": torch.zeros(4, 3)}, ValueError, "out must be float32 of shape"),
        ({"out": torch.zeros(4, 3, 5, 5).double()}, ValueError, "out must be float32"),
        ({"out": torch.zeros(4, 5, 5, 3).permute(0, 3, 1, 2)}, ValueError, "out must have the strides"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"x": torch.rand(4, 3, 5, 5), "index": torch.arange(4), "lam": 0.5} | change
    with pytest.raises(error, match=f"fastmix.blend: .*{message}"):
        ops.blend(call.pop("x"), call.pop("index"), call.pop("lam"), **call)


def test_out_must_not_alias_or_record():
    x, index = torch.rand(4, 3, 5, 5), torch.arange(4)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        ops.blend(x, index, 0.5, out=x)
    with pytest.raises(ValueError, match="out= cannot be used when a gradient is asked for"):
        ops.blend(x.requires_grad_(), index, 0.5, out=torch.empty(4, 3, 5, 5))


def test_a_bad_index_leaves_out_untouched():
    out = torch.full((4, 3, 5, 5), 7.0)
    with pytest.raises(ValueError, match="index must lie in"):
        ops.blend(torch.rand(4, 3, 5, 5), torch.tensor([0, 1, 2, 99]), 0.5, out=out)
    assert (out == 7).all()
