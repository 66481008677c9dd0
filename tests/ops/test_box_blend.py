from __future__ import annotations

import pytest
import torch
from support import BACKENDS, FLOATS, LAYOUTS, assert_same_bits, images, partners, skip_unsupported, unit

from fastmix import ops
from fastmix.testing import assert_matches

SHAPES = [(5, 3, 17, 23), (1, 1, 8, 8), (3, 5, 33, 14), (0, 3, 8, 8), (2, 2, 150, 200)]


def boxes(shape: tuple, device: str) -> torch.Tensor:
    """Inside, across the border, reversed, empty and covering all."""
    n, _, h, w = shape
    given = [[2, 3, 7, 6], [-4, 1, h + 9, 5], [6, 6, 2, 2], [3, 3, 3, 3], [0, 0, h, w]]
    return torch.tensor((given * n)[:n], dtype=torch.int32, device=device).view(n, 4)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device, backend, dtype, layout, shape):
    skip_unsupported(backend, dtype)
    x, index = images(shape, dtype, layout, device).requires_grad_(), partners(shape[0], device)
    for lam in (unit(shape[0], device=device).requires_grad_(), torch.tensor(0.3, device=device, requires_grad=True)):
        assert_matches("box_blend", x, index, boxes(shape, device), lam, backend=backend)
    assert_matches("box_blend", x, index, boxes(shape, device), backend=backend)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_normalise_and_convert_in_one_pass(device, backend, layout, source, dtype):
    shape = (5, 3, 17, 23)
    x, index = images(shape, source, layout, device), partners(5, device)
    normalize = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    for lam in (None, unit(5, device=device)):
        options = {"normalize": normalize, "dtype": dtype, "backend": backend}
        assert_matches("box_blend", x, index, boxes(shape, device), lam, **options)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_box_is_a_copy(device, backend, dtype):
    x, index = images((4, 3, 12, 10), dtype, "contiguous", device), torch.tensor([1, 2, 3, 0], device=device)
    if dtype.is_floating_point:
        x[0, 0], x[1, 1, 4, 4] = torch.nan, torch.inf
    box = torch.tensor([2, 3, 9, 8], dtype=torch.int32, device=device)
    expected = x.clone()
    expected[:, :, 2:9, 3:8] = x[index][:, :, 2:9, 3:8]
    assert_same_bits(ops.box_blend(x, index, box, backend=backend), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_choice_between_mixup_and_cutmix_is_one_call(device, backend):
    x, index = images((4, 3, 16, 16), torch.float32, "contiguous", device), torch.tensor([1, 2, 3, 0], device=device)
    lam = torch.tensor([0.3, 1.0, 0.6, 1.0], device=device)
    box = torch.tensor([[0, 0, 0, 0], [2, 2, 9, 9]] * 2, dtype=torch.int32, device=device)
    out = ops.box_blend(x, index, box, lam, backend=backend)
    mixup, cutmix = ops.blend(x, index, lam, backend=backend), ops.box_blend(x, index, box, backend=backend)
    assert torch.equal(out[::2], mixup[::2]) and torch.equal(out[1::2], cutmix[1::2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(4, 3)}, ValueError, r"x must have shape \(N, C, H, W\)"),
        ({"box": torch.zeros(4, 4)}, TypeError, "box must be an int32 tensor, got float32"),
        ({"box": [0, 0, 1, 1]}, TypeError, "box must be an int32 tensor, got list"),
        ({"box": torch.zeros(3, 4, dtype=torch.int32)}, ValueError, r"box must have shape \(4, 4\) or \(4,\)"),
        ({"index": torch.tensor([0, 1, 2, 4])}, ValueError, r"index must lie in \[0, 4\), got 4 at position 3"),
        ({"lam": torch.rand(3)}, ValueError, "lam must have shape"),
        ({"dtype": "half"}, TypeError, "dtype must be"),
        ({"out": torch.zeros(1)}, ValueError, "out must be float32 of shape"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"x": torch.rand(4, 3, 5, 5), "index": torch.arange(4), "box": torch.zeros(4, 4, dtype=torch.int32)}
    call |= change
    with pytest.raises(error, match=f"fastmix.box_blend: .*{message}"):
        ops.box_blend(**call)
