from __future__ import annotations

import pytest
import torch
from support import FLOATS, LAYOUTS, assert_same_bits, backends, images, skip_unsupported, unit

from fastmix import ops, reference
from fastmix.testing import assert_matches

BACKENDS = backends("flip_blend")
SHAPES = [(5, 3, 17, 23), (1, 1, 8, 8), (4, 5, 33, 14), (0, 3, 8, 8), (2, 2, 150, 200)]


def boxes(n: int, height: int, width: int, device: str) -> torch.Tensor:
    """Inside, overlapping that of the partner, across the border, reversed, empty and covering all."""
    given = [[2, 3, 7, 6], [0, 0, height, width], [-4, 1, height + 9, 5], [6, 6, 2, 2], [4, 4, 9, 8]]
    return torch.tensor((given * n)[:n], dtype=torch.int32, device=device).view(n, 4)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(device, backend, dtype, layout, shape):
    skip_unsupported(backend, dtype)
    x, box = images(shape, dtype, layout, device).requires_grad_(), boxes(shape[0], *shape[2:], device)
    lam, other = unit(shape[0], device=device), unit(shape[0], device=device, seed=4)
    for args, options in (
        ((x, lam, box), {}),
        ((x, lam), {}),
        ((x, None, box), {}),
        ((x, torch.tensor(0.3, device=device), box[0] if len(box) else None), {"lam_b": 0.9}),
        ((x, lam, box), {"lam_b": other}),
    ):
        assert_matches("flip_blend", *args, backend=backend, **options)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [4, 7])
def test_in_place_is_the_same(device, backend, dtype, layout, n):
    skip_unsupported(backend, dtype)
    x = images((n, 3, 17, 23), dtype, layout, device)
    lam, box = unit(n, device=device), boxes(n, 17, 23, device)
    lam[0] = 1
    for args in ((lam,), (lam, box), (None, box), (0.3, box[0]), (None, None), (1.0,), (0.0,)):
        wanted = ops.flip_blend(x, *args, backend=backend)
        torch.testing.assert_close(
            wanted, reference.flip_blend(x, *args), atol=1 if dtype is torch.uint8 else 1e-6, rtol=1e-2
        )
        given = images((n, 3, 17, 23), dtype, layout, device)
        version = given._version
        assert ops.flip_blend(given, *args, out=given, backend=backend) is given and given._version > version
        assert_same_bits(given, wanted)
        apart = torch.empty_like(wanted)
        ops.flip_blend(x, *args, out=apart, backend=backend)
        assert_same_bits(apart, wanted)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_float32_is_bit_equal_to_two_products_and_a_sum(device, backend):
    x = images((6, 3, 17, 23), torch.float32, "contiguous", device)
    for lam in (0.3, 0.712345678, 1e-9):
        # Both weights rounded apart, as by `x.mul_(lam).add_(x.flip(0).mul_(1 - lam))`.
        assert torch.equal(ops.flip_blend(x, lam, lam_b=1 - lam, backend=backend), x * lam + x.flip(0) * (1 - lam))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_it_is_box_blend_with_the_batch_turned_round(device, backend):
    x, box = images((6, 3, 17, 23), torch.float32, "contiguous", device), boxes(6, 17, 23, device)
    lam, index = unit(6, device=device), torch.arange(6, device=device).flip(0)
    wanted = ops.box_blend(x, index, box, lam, backend=backend)
    assert torch.equal(ops.flip_blend(x, lam, box, backend=backend), wanted)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_copies_are_bit_for_bit(device, backend, dtype):
    x = images((5, 3, 12, 10), dtype, "contiguous", device)
    if dtype.is_floating_point:
        x[0, 0], x[1, 1, 4, 4], x[2] = torch.nan, torch.inf, -0.0
    box = torch.tensor([2, 3, 9, 8], dtype=torch.int32, device=device)
    expected = x.clone()
    expected[:, :, 2:9, 3:8] = x.flip(0)[:, :, 2:9, 3:8]
    assert_same_bits(ops.flip_blend(x, None, box, backend=backend), expected)
    assert_same_bits(ops.flip_blend(x, box=box, out=x, backend=backend), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("shape", [(4,), (5, 9), (4, 6, 9), (4, 2, 3, 4, 5), (3, 2, 1, 1)])
def test_any_rank(device, backend, shape):
    x, lam = torch.rand(shape, device=device), unit(shape[0], device=device)
    torch.testing.assert_close(ops.flip_blend(x, lam, backend=backend), reference.flip_blend(x, lam))
    if x.dim() > 2:
        box = torch.tensor([0, 1, 3, 3], dtype=torch.int32, device=device)
        assert torch.equal(ops.flip_blend(x, None, box, backend=backend), reference.flip_blend(x, None, box))
    if x.dim() == 5:
        last = x.contiguous(memory_format=torch.channels_last_3d)
        found = ops.flip_blend(last, lam, box, backend=backend)
        torch.testing.assert_close(found, reference.flip_blend(x, lam, box))
        assert found.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_gradient_without_weight_does_not_leak(device, backend):
    x = torch.rand(4, 1, 6, 6, device=device, requires_grad=True)
    box = torch.tensor([[1, 1, 4, 4]] + [[0, 0, 0, 0]] * 3, dtype=torch.int32, device=device)
    grad = torch.ones_like(x)
    grad[0, 0, 2, 2] = torch.inf
    (found,) = torch.autograd.grad(ops.flip_blend(x, None, box, backend=backend), x, grad)
    assert found[0, 0, 1, 1] == 0 and found[3, 0, 1, 1] == 2 and found[0, 0, 2, 2] == 0 and found[3, 0, 2, 2].isinf()


BOX = torch.zeros(4, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.rand(4, 3)}, ValueError, r"x must have shape \(N, ..., H, W\) with a box"),
        ({"box": BOX.float()}, TypeError, "box must be an int32 tensor, got float32"),
        ({"box": BOX[:3]}, ValueError, r"box must have shape \(4, 4\) or \(4,\)"),
        ({"lam": torch.rand(3)}, ValueError, "lam must have shape"),
        ({"lam": None, "lam_b": 0.5}, ValueError, "lam_b must come with lam"),
        ({"lam": torch.rand(4, requires_grad=True)}, ValueError, "lam must not require a gradient"),
        ({"out": torch.zeros(1)}, ValueError, "out must be float32 of shape"),
        ({"backend": "cuda"}, ValueError, "this op has no CUDA C\\+\\+ kernel"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"x": torch.rand(4, 3, 8, 8), "lam": 0.5, "box": BOX} | change
    with pytest.raises(error, match=message):
        ops.flip_blend(**arguments)


def test_out_may_be_the_images_but_not_overlap_them():
    x = torch.rand(5, 3, 8, 8)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        ops.flip_blend(x[:4], 0.5, out=x[1:])
    with pytest.raises(ValueError, match="out= cannot be used when a gradient is asked for"):
        x.requires_grad_()
        ops.flip_blend(x, 0.5, out=x)
    with torch.no_grad():
        ops.flip_blend(x, 0.5, out=x)
