from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import LAYOUTS, backends, images
from torch import Tensor

from fastmix import ops, reference

DATA = np.load(Path(__file__).parents[1] / "data" / "fine_grained_saliency.npz")
RECORDED = range(len(DATA.files) // 2)
BACKENDS = backends("fine_grained_saliency")
SHAPES = [(3, 3, 1, 1), (2, 3, 1, 40), (2, 3, 37, 1), (2, 3, 2, 2), (3, 1, 9, 8), (2, 3, 33, 250), (2, 3, 130, 47)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recorded(i: int) -> tuple[Tensor, Tensor]:
    """A batch of one image, and OpenCV's map."""
    image, found = (torch.from_numpy(DATA[f"{name}{i}"]) for name in ("image", "map"))
    return image.permute(2, 0, 1).unsqueeze(0), (found * np.float32(1 / 255)).unsqueeze(0)


def literal(image: np.ndarray) -> np.ndarray:
    """The published algorithm, a pixel at a time: (H, W) grey bytes, blurred already, to 255ths."""
    height, width = image.shape
    sums = np.zeros((2, height, width), int)
    for reach in (12, 24, 48, 28, 56, 112):
        for y in range(height):
            for x in range(width):
                part = image[max(y - reach + 1, 0) : y + reach + 1, max(x - reach + 1, 0) : x + reach + 1]
                if part.size > 1:
                    others = np.float32(int(part.sum()) - int(image[y, x])) / np.float32(part.size - 1)
                    difference = np.float32(image[y, x]) - others
                    sums[int(difference < 0), y, x] += int(abs(difference))
    stretched = [(255 * (part.astype(np.float32) / np.float32(max(part.max(), 1))).astype(float)) for part in sums]
    return (stretched[0].astype(int) + stretched[1].astype(int)) % 256


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("i", RECORDED)
def test_maps_are_those_of_opencv(device, backend, i):
    image, expected = recorded(i)
    assert torch.equal(ops.fine_grained_saliency(image.to(device), backend=backend).cpu(), expected)
    flipped = ops.fine_grained_saliency(image.flip(1).to(device), order="rgb", backend=backend)
    assert torch.equal(flipped.cpu(), expected)
    kept = image.to(device, torch.float32) / 255
    options = {"mean": (0.0,) * len(image[0]), "std": [1.0] * len(image[0])}
    assert torch.equal(ops.fine_grained_saliency(kept, **options, backend=backend).cpu(), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_maps_are_the_published_algorithm(device, backend):
    image = torch.randint(0, 256, (1, 1, 21, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = image[0, 0].numpy().astype(int)
    for _ in range(2):
        grey = np.pad(grey, 1, mode="reflect")
        grey = grey[:-2] + 2 * grey[1:-1] + grey[2:]
        grey = (grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:] + 8) // 16
    found = ops.fine_grained_saliency(image.to(device), backend=backend)[0].cpu()
    assert np.array_equal((found * 255).round().numpy(), literal(grey))


@pytest.mark.parametrize(("device", "backend"), backends("fine_grained_saliency", reference=False))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_backend_is_the_reference(device, backend, shape, dtype, layout):
    x = images(shape, dtype, layout, device, seed=shape[-1])
    expected = reference.fine_grained_saliency(x.cpu())
    assert torch.equal(ops.fine_grained_saliency(x, backend=backend).cpu(), expected)
    if dtype is not torch.uint8 and shape[1] == 3:
        found = [ops.fine_grained_saliency(x, MEAN, STD, order="rgb", backend=b).cpu() for b in (backend, "reference")]
        assert torch.equal(*found)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_normalised_images_have_the_map_of_their_bytes(device, backend):
    bytes_ = images((4, 3, 40, 50), torch.uint8, "contiguous", device)
    mean, std = (torch.tensor(part, device=device).view(3, 1, 1) for part in (MEAN, STD))
    x = (bytes_.float() / 255 - mean) / std
    found = ops.fine_grained_saliency(x, mean.flatten(), std.flatten(), backend=backend)
    assert torch.equal(found, ops.fine_grained_saliency(bytes_, backend=backend))
    assert torch.equal(found, ops.fine_grained_saliency(x, MEAN, STD, backend=backend))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_floating_images_are_stretched_one_by_one(device, backend):
    bytes_ = images((2, 3, 16, 20), torch.uint8, "contiguous", device)
    bytes_[:, 0, 0, 0], bytes_[:, 0, 0, 1] = 0, 255
    x = bytes_.double()
    x[0], x[1] = x[0] * 1e-30 - 4, x[1] * 1e35
    x[0] = bytes_[0] * 2.0 - 7
    found = ops.fine_grained_saliency(x.float(), backend=backend)
    assert torch.equal(found, ops.fine_grained_saliency(bytes_, backend=backend))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("options", [{}, {"mean": MEAN, "std": STD}], ids=["stretched", "mean and std"])
def test_values_that_are_not_finite(device, backend, options):
    x = images((4, 3, 20, 24), torch.float32, "contiguous", device)
    plain = ops.fine_grained_saliency(x, **options, backend=backend)
    x[1, 0, 3, 4], x[1, 1, 5, 5], x[1, 2, 6, 6] = torch.nan, torch.inf, -torch.inf
    x[2] = torch.nan
    x[3, :, ::2], x[3, :, 1::2] = torch.inf, -torch.inf
    found = ops.fine_grained_saliency(x, **options, backend=backend)
    assert torch.equal(found[0], plain[0])
    assert found.isfinite().all() and found.amin() >= 0 and found.amax() <= 1
    assert found[1].amax() > 0.9 and (found[2] == 0).all()
    expected = reference.fine_grained_saliency(
        x.cpu(), *(255 * torch.tensor(options[name]) for name in ("std", "mean") if options)
    )
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_flat_image_has_no_saliency(device, backend, value):
    for dtype in (torch.uint8, torch.float32):
        flat = torch.full((2, 3, 30, 30), value, dtype=dtype, device=device)
        assert (ops.fine_grained_saliency(flat, backend=backend) == 0).all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_spot_stands_out(device, backend):
    x = torch.full((2, 3, 64, 80), 90, dtype=torch.uint8, device=device)
    x[0, :, 40:44, 60:64], x[1, :, 20:24, 8:12] = 200, 0
    found = ops.fine_grained_saliency(x, backend=backend)
    assert found[0, 40:44, 60:64].amin() > 0.5 and found[1, 20:24, 8:12].amin() > 0.5
    assert found[0, 41:43, 61:63].amax() == 1 and found[1, 21:23, 9:11].amax() == 1


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_empty_batches_and_gradients(device, backend):
    assert ops.fine_grained_saliency(torch.rand(0, 3, 8, 9, device=device), backend=backend).shape == (0, 8, 9)
    x = torch.rand(2, 3, 8, 9, device=device, requires_grad=True)
    assert not ops.fine_grained_saliency(x, backend=backend).requires_grad


def test_threads_do_not_change_the_result():
    x, threads, found = images((9, 3, 64, 64), torch.float32, "contiguous", "cpu"), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.fine_grained_saliency(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.int32)}, TypeError, "x must be uint8, float16"),
        ({"x": torch.rand(3, 8, 8)}, ValueError, r"x must have shape \(N, C, H, W\)"),
        ({"x": torch.rand(2, 2, 8, 8)}, ValueError, r"x must have shape \(N, 3 or 1, H, W\)"),
        ({"x": torch.rand(2, 3, 0, 8)}, ValueError, "with H, W > 0"),
        ({"mean": MEAN}, ValueError, "mean and std must be given together"),
        ({"mean": 0.5, "std": STD}, TypeError, "mean must hold one number a channel, got float 0.5"),
        ({"mean": MEAN, "std": (1.0,)}, ValueError, "std must hold 3 numbers"),
        (
            {"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "mean": MEAN, "std": STD},
            ValueError,
            "mean and std must be None for uint8 images",
        ),
        ({"order": "gbr"}, ValueError, "order must be one of bgr, rgb, got 'gbr'"),
        ({"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"fastmix.fine_grained_saliency: .*{message}"):
        ops.fine_grained_saliency(**({"x": torch.rand(2, 3, 8, 8)} | change))
