from __future__ import annotations

import pytest
import torch
from support import BACKENDS, FLOATS, assert_same_bits, images, partners, skip_unsupported

from fastmix import ops
from fastmix.reference.upsample import MODES
from fastmix.testing import assert_matches

# Image (N, C, H, W) and mask (h, w): sizes that divide, that do not, a mask larger than its image, tiny ones, none.
CASES = [
    ((5, 3, 17, 23), (5, 7)),
    ((4, 3, 64, 64), (4, 4)),
    ((3, 5, 33, 14), (40, 3)),
    ((1, 1, 8, 8), (8, 8)),
    ((2, 3, 6, 6), (1, 1)),
    ((0, 3, 8, 8), (2, 2)),
    ((2, 2, 130, 180), (14, 14)),
]


def masks(n: int, size: tuple, device: str, low: float = -0.5, high: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(n, *size, generator=generator) * (high - low) + low).to(device)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "offset"])
@pytest.mark.parametrize("mode", MODES)
def test_matches_reference(device, backend, dtype, layout, mode):
    skip_unsupported(backend, dtype)
    for shape, size in CASES:
        x, index = images(shape, dtype, layout, device).requires_grad_(), partners(shape[0], device)
        mask = masks(shape[0], size, device).requires_grad_()
        for activation, first in (("none", False), ("sigmoid", False), ("sigmoid", True)):
            assert_matches("mask_blend", x, index, mask, mode, activation, first, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_normalise_and_convert_in_one_pass(device, backend, layout, source, dtype):
    x, index = images((5, 3, 17, 23), source, layout, device), partners(5, device)
    options = {"normalize": ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), "dtype": dtype, "backend": backend}
    mask = masks(5, (4, 6), device).requires_grad_()
    assert_matches("mask_blend", x, index, mask, "bilinear", "sigmoid", **options)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_mask(device, backend, dtype):
    x, index = images((3, 3, 12, 12), torch.float32, "contiguous", device), partners(3, device)
    mask = masks(3, (3, 3), device).to(dtype).requires_grad_()
    assert_matches("mask_blend", x, index, mask, "bilinear", "sigmoid", backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("result", [0, 1])
def test_gradient_through_one_result_alone(device, backend, result):
    x, index = images((3, 2, 9, 9), torch.float32, "contiguous", device), partners(3, device)
    found = []
    for chosen in (backend, "reference"):
        mask = masks(3, (4, 4), device).requires_grad_()
        ops.mask_blend(x, index, mask, activation="sigmoid", backend=chosen)[result].square().sum().backward()
        found.append(mask.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_flat_parts_of_a_mask_are_copies(device, backend, mode, layout):
    x, index = images((2, 3, 32, 32), torch.float32, layout, device), torch.tensor([1, 0], device=device)
    x[0, :, :, 20:], x[1, :, :, :8] = torch.nan, torch.inf
    mask = torch.tensor([[[1.0, 1, 0, 0]] * 4, [[0.0, 0, 1, 1]] * 4], device=device)
    mixed, mean = ops.mask_blend(x, index, mask, mode, backend=backend)
    assert_same_bits(mixed[0, :, :, :12], x[0, :, :, :12])
    assert_same_bits(mixed[0, :, :, 20:], x[1, :, :, 20:])
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5], device=device))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_weights_of_exactly_zero_and_one_keep_their_gradient(device, backend, mode):
    x, index = images((3, 2, 12, 12), torch.float32, "contiguous", device), torch.tensor([1, 2, 0], device=device)
    mask = torch.tensor([0.0, 1.0, 0.5], device=device).view(3, 1, 1).repeat(1, 4, 4).requires_grad_()
    assert_matches("mask_blend", x, index, mask, mode, backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_infinite_logits_select(device, backend):
    x, index = images((2, 3, 8, 8), torch.float32, "contiguous", device), torch.tensor([1, 0], device=device)
    logits = torch.tensor([torch.inf, -torch.inf], device=device).view(2, 1, 1)
    mixed, mean = ops.mask_blend(x, index, logits, "nearest", "sigmoid", backend=backend)
    assert torch.equal(mixed, x[[0, 0]]) and mean.tolist() == [1, 0]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_out_is_filled_and_returned(device, backend):
    x, index = images((4, 3, 8, 8), torch.float32, "contiguous", device), partners(4, device)
    out, mask = torch.full_like(x, torch.nan), masks(4, (2, 2), device)
    mixed, mean = ops.mask_blend(x, index, mask, out=out, backend=backend)
    expected, expected_mean = ops.mask_blend(x, index, mask, backend=backend)
    assert mixed is out and torch.equal(out, expected) and torch.equal(mean, expected_mean)


def test_threads_do_not_change_the_result():
    x, index = images((16, 3, 64, 64), torch.float32, "contiguous", "cpu"), partners(16, "cpu")
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            mask = masks(16, (8, 8), "cpu").requires_grad_()
            mixed, mean = ops.mask_blend(x, index, mask, activation="sigmoid")
            found.append((mixed.detach(), mean.detach(), *torch.autograd.grad((mixed, mean), mask, (x, mean.detach()))))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask": torch.rand(3, 2, 2)}, ValueError, r"mask must have shape \(4, any, any\)"),
        ({"mask": torch.zeros(4, 2, 2, dtype=torch.int64)}, TypeError, "mask must be a floating tensor"),
        ({"mask": None}, TypeError, "mask must be a tensor, got NoneType"),
        ({"mask": torch.rand(4, 0, 2)}, ValueError, "mask must not be empty"),
        ({"mode": "linear"}, ValueError, "mode must be one of nearest, bilinear, bicubic, got 'linear'"),
        ({"activation": "tanh"}, ValueError, "activation must be one of none, sigmoid"),
        ({"index": torch.tensor([0, 1, 2, -4])}, ValueError, r"index must lie in \[0, 4\), got -4 at position 3"),
        ({"x": torch.rand(4, 5, 5)}, ValueError, r"x must have shape \(N, C, H, W\)"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"x": torch.rand(4, 3, 5, 5), "index": torch.arange(4), "mask": torch.rand(4, 2, 2)} | change
    with pytest.raises(error, match=f"fastmix.mask_blend: .*{message}"):
        ops.mask_blend(**call)
