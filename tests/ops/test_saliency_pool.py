from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from puzzle_support import NAMES, Stored
from support import FLOATS, LAYOUTS, backends, images, skip_unsupported

from fastmix import ops, reference
from fastmix.testing import poisoned

BACKENDS = backends("saliency_pool")
# Shape and blocks: square and not, one block, one pixel a block, rows longer than a tile, many channels, no image.
CASES = [
    ((5, 3, 32, 32), 4),
    ((3, 3, 32, 32), 16),
    ((3, 3, 28, 36), (7, 3)),
    ((2, 5, 30, 30), 6),
    ((2, 1, 8, 8), 8),
    ((2, 3, 12, 12), 1),
    ((2, 2, 6, 1100), (3, 2)),
    ((2, 600, 8, 8), 2),
    ((0, 3, 8, 8), 2),
]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "blocks"), CASES)
def test_matches_reference(device, backend, dtype, layout, shape, blocks):
    skip_unsupported(backend, dtype)
    grad = images(shape, dtype, layout, device)
    before = grad.clone()
    with poisoned():
        found = ops.saliency_pool(grad, blocks, backend=backend)
    rows, columns = (blocks, blocks) if isinstance(blocks, int) else blocks
    assert found.dtype is torch.float32 and found.shape == (shape[0], rows, columns)
    torch.testing.assert_close(found, reference.saliency_pool(grad, blocks), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(shape[0], device=device), rtol=1e-6, atol=0)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (3, 3, 56, 56)])
def test_the_cpu_kernel_adds_blocks_up_in_the_order_of_the_published_code(shape):
    grad = images(shape, torch.float32, "contiguous", "cpu")
    saliency = grad.square().mean(1).double().sqrt().float()  # torch's own float32 roots are not rounded to nearest
    pooled = F.avg_pool2d(saliency, shape[2] // 4).double()
    expected = (pooled / pooled.sum((1, 2), keepdim=True)).float()
    assert torch.equal(ops.saliency_pool(grad, 4, backend="cpu"), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 6e-8, 1e-20, 1e-3, 1e4, 1e19, 1e38])
def test_no_scale_over_or_underflows(device, backend, dtype, scale):
    skip_unsupported(backend, dtype)
    grad = (torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5) * scale
    grad = grad.to(device, dtype)
    grad = grad.where(grad.isfinite(), 0)
    found = ops.saliency_pool(grad, 4, backend=backend)
    torch.testing.assert_close(found, reference.saliency_pool(grad.double(), 4), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2, device=device), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, -torch.inf])
def test_a_map_without_use_is_uniform(device, backend, layout, bad):
    grad = images((3, 3, 12, 12), torch.float32, layout, device)
    plain = ops.saliency_pool(grad, 3, backend=backend)
    grad[1, 2, 7, 5] = bad
    if bad == 0:
        grad[1] = 0
    found = ops.saliency_pool(grad, 3, backend=backend)
    assert torch.equal(found[1], torch.full((3, 3), 1 / 9, device=device))
    assert torch.equal(found[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_flat_map_is_uniform_to_the_last_bit(device, backend):
    found = ops.saliency_pool(torch.full((1, 3, 48, 48), 0.1, device=device), 12, backend=backend)
    assert torch.equal(found, torch.full((1, 12, 12), 1 / 144, device=device))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_carries_no_gradient(device, backend):
    grad = images((2, 3, 8, 8), torch.float32, "contiguous", device).requires_grad_()
    assert not ops.saliency_pool(grad, 2, backend=backend).requires_grad


def test_threads_do_not_change_the_result():
    grad, threads, found = images((9, 3, 64, 64), torch.float32, "contiguous", "cpu"), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.saliency_pool(grad, 8))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", NAMES)
def test_released_maps(name):
    stored = Stored(name)
    blocks, expected = stored["block_num"], stored.block_saliency
    found = ops.saliency_pool(stored["saliency"].unsqueeze(1), blocks)
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)
    if "grad" in stored:
        torch.testing.assert_close(ops.saliency_pool(stored["grad"], blocks), expected, rtol=3e-7, atol=0)
    finer = ops.saliency_pool(stored["saliency"].unsqueeze(1), stored["t_block_num"])
    torch.testing.assert_close(finer, stored["s1_t"], rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grad": None}, TypeError, "grad must be a floating tensor"),
        ({"grad": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "grad must be a floating tensor, got uint8"),
        ({"grad": torch.rand(2, 8, 8)}, ValueError, r"grad must have shape \(N, C, H, W\)"),
        ({"grad": torch.rand(2, 0, 8, 8)}, ValueError, r"grad must have shape \(N, C, H, W\) with C, H, W > 0"),
        ({"blocks": 3}, ValueError, "blocks must divide the image of 8 x 8 pixels, got 3 x 3"),
        ({"blocks": (2, 0)}, ValueError, "blocks must divide the image of 8 x 8 pixels, got 2 x 0"),
        ({"blocks": 2.0}, TypeError, r"blocks must be an int or \(rows, columns\), got float 2.0"),
        ({"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"fastmix.saliency_pool: .*{message}"):
        ops.saliency_pool(**({"grad": torch.rand(2, 3, 8, 8), "blocks": 2} | change))
