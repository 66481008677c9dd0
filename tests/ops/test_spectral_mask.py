from __future__ import annotations

import numpy as np
import pytest
import torch
from support import backends
from torch import Tensor

from fastmix import ops, reference
from fastmix.ops import spectral_mask_noise_shape
from fastmix.reference.spectral_mask import spectral_field

BACKENDS = backends("spectral_mask")
SPECTRA = ["paper", "reference"]
SIZES = [(2, 1), (2, 2), (3, 3), (8, 8), (7, 9), (9, 6), (4, 40), (32, 32), (33, 64), (70, 50)]


def drawn(n: int, size: tuple[int, int], spectrum: str, seed: int = 0, cycles: int | None = 32, dtype=torch.float64):
    shape = spectral_mask_noise_shape(size, spectrum, cycles)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def frequencies(height: int, width: int) -> np.ndarray:
    """As the released code has them: a column more than there are where the width is odd."""
    across = np.fft.fftfreq(width)[: width // 2 + (2 if width % 2 else 1)]
    return np.hypot(np.fft.fftfreq(height)[:, None], across[None])


def released_image(noise: np.ndarray, size: tuple[int, int], decay: float) -> np.ndarray:
    """What the released sampler thresholds, of noise (height, columns, 2) as numpy.random.randn gives it there."""
    scale = 1 / np.maximum(frequencies(*size), 1 / max(size)) ** decay
    spectrum = (scale[:, :, None] * noise)[None]
    swapped = spectrum[:, 0] + 1j * spectrum[:, 1]  # (1, columns, 2)
    return np.fft.irfftn(swapped, size, axes=(1, 2))[0, : size[0], : size[1]]


def paper_image(noise: np.ndarray, size: tuple[int, int], decay: float) -> np.ndarray:
    """The transform of all frequencies, of noise (height, width // 2 + 1, 2)."""
    scale = 1 / np.maximum(frequencies(*size)[:, : size[1] // 2 + 1], 1 / max(size)) ** decay
    return np.fft.irfft2(scale * (noise[..., 0] + 1j * noise[..., 1]), size)


def largest(image: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(image.size, np.float32)
    mask[np.argsort(-image.ravel(), kind="stable")[:count]] = 1
    return mask.reshape(image.shape)


def softened(image: np.ndarray, count: int, softness: float) -> np.ndarray:
    """The soft masks of the released code, from the number of pixels instead of the weight."""
    order = np.argsort(-image.ravel(), kind="stable")
    soft = min(int(image.size * softness), count, image.size - count)
    mask = np.zeros(image.size)
    mask[order[: count + soft]] = 1
    mask[order[count - soft :]] = 0
    mask[order[count - soft : count + soft]] = np.linspace(1, 0, 2 * soft)
    return mask.reshape(image.shape)


def agrees(mask: Tensor, expected: np.ndarray, image: np.ndarray, tolerance: float) -> bool:
    """Equal but for pixels that are as large as those at the edge."""
    differ = mask.cpu().numpy() != expected
    if not differ.any():
        return True
    near = image[differ]
    return np.ptp(near) <= tolerance * np.ptp(image)


def counts(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    found = torch.randint(0, size[0] * size[1] + 1, (n,), generator=torch.Generator().manual_seed(seed))
    found[:2] = torch.tensor([0, size[0] * size[1]])
    return found


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reference_spectrum_is_the_released_sampler(device, backend, size, decay):
    random, count = np.random.default_rng(0), counts(8, size)
    noise = random.standard_normal((8, *frequencies(*size).shape, 2))
    shape = spectral_mask_noise_shape(size, "reference")
    given = torch.from_numpy(noise[:, :2, : shape[1]].copy())
    assert given.shape[1:] == shape
    found = ops.spectral_mask(given.to(device), count.to(device), size, decay, "reference", backend=backend)
    assert found.dtype is torch.float32 and found.device.type == device
    assert torch.equal(found.sum((1, 2)).long().cpu(), count) and ((found == 0) | (found == 1)).all()
    for mask, part, k in zip(found, noise, count.tolist(), strict=True):
        image = released_image(part, size, decay)
        assert agrees(mask, largest(image, k), image, 1e-6)


@pytest.mark.parametrize("size", [(32, 32), (224, 224)], ids=str)
def test_hardly_a_pixel_differs_from_the_released_sampler(size):
    """Lest the test above takes much for ties."""
    noise = np.random.default_rng(1).standard_normal((20, *frequencies(*size).shape, 2))
    count = counts(20, size)
    given = torch.from_numpy(noise[:, :2, : spectral_mask_noise_shape(size, "reference")[1]].copy())
    found = ops.spectral_mask(given, count, size, spectrum="reference")
    images = [released_image(part, size, 3.0) for part in noise]
    expected = np.stack([largest(image, k) for image, k in zip(images, count.tolist(), strict=True)])
    assert (found.numpy() != expected).sum() <= 4


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), *SIZES], ids=str)
@pytest.mark.parametrize("cycles", [None, 1, 3, 32])
def test_paper_spectrum(device, backend, size, cycles):
    count = counts(6, size)
    noise = drawn(6, size, "paper", cycles=cycles)
    found = ops.spectral_mask(noise.to(device, torch.float32), count.to(device), size, backend=backend)
    assert torch.equal(found.sum((1, 2)).long().cpu(), count)
    rows, columns, _ = noise.shape[1:]
    for mask, part, k in zip(found, noise.float().double(), count.tolist(), strict=True):
        whole = np.zeros((size[0], size[1] // 2 + 1, 2))
        row = np.fft.fftfreq(rows, 1 / rows).round().astype(int)
        whole[row, :columns] = part.numpy()
        image = paper_image(whole, size, 3.0)
        assert agrees(mask, largest(image, k), image, 1e-5)


@pytest.mark.parametrize("size", [(224, 224), (100, 150)], ids=str)
def test_high_frequencies_hardly_matter(size):
    whole = drawn(6, size, "paper", cycles=None, dtype=torch.float32)
    rows, columns, _ = spectral_mask_noise_shape(size)
    few = torch.cat([whole[:, : rows // 2 + 1], whole[:, -(rows // 2) :]], 1)[:, :, :columns]
    count = counts(6, size)
    differ = (ops.spectral_mask(whole, count, size) != ops.spectral_mask(few, count, size)).float().mean()
    assert differ < 2e-3


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_what_the_two_spectra_look_like(spectrum):
    """The released image has no detail along the width; that of the paper as much as along the height."""
    field = spectral_field(drawn(64, (64, 64), spectrum), (64, 64), 3.0, spectrum).double()
    power = torch.fft.rfft2(field - field.mean((1, 2), keepdim=True)).abs().square().mean(0)
    across, down = power[:, 2:].sum(), power[2:-1].sum()
    if spectrum == "reference":
        assert across < 1e-8 * power.sum() and down > 1e-4 * power.sum()
    else:
        # Of the frequencies along the height alone a real image shows the real part.
        assert 1 < power[0, 2] / power[2, 0] < 4


@pytest.mark.parametrize(("device", "backend"), backends("spectral_mask", reference=False))
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_backend_is_the_reference(device, backend, size, dtype, spectrum):
    noise, count = drawn(7, size, spectrum, 3, dtype=dtype), counts(7, size, 4)
    found = ops.spectral_mask(noise.to(device), count.to(device), size, 2.5, spectrum, backend=backend).cpu()
    expected = reference.spectral_mask(noise, count, size, 2.5, spectrum)
    field = spectral_field(noise, size, 2.5, spectrum).double().numpy()
    for mask, other, image in zip(found, expected, field, strict=True):
        assert agrees(mask, other.numpy(), image, 1e-5)


@pytest.mark.parametrize(("device", "backend"), [b for b in BACKENDS if b.values[1] != "cuda"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("softness", [0.01, 0.1, 0.5])
def test_soft_edges(device, backend, spectrum, softness):
    size = (24, 31)
    noise, count = drawn(9, size, spectrum, 5), counts(9, size, 6)
    count[2], count[3] = 3, 24 * 31 - 2
    found = ops.spectral_mask(noise.to(device), count.to(device), size, 3.0, spectrum, softness, backend=backend).cpu()
    field = spectral_field(noise, size, 3.0, spectrum).numpy()
    for mask, image, k in zip(found, field, count.tolist(), strict=True):
        expected = softened(image, k, softness)
        assert abs(mask.sum().item() - k) < 1e-3
        assert (np.sort(mask.numpy(), None) == np.sort(expected.astype(np.float32), None)).mean() > 0.99
        assert np.abs(mask.numpy() - expected).max() < 0.02 + 1 / max(2 * int(24 * 31 * softness) - 1, 1)
        assert np.abs(mask.numpy() - expected).mean() < 1e-3


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("size", [(2, 10), (5, 31), (31, 5), (100, 3), (16, 100), (24, 31), (64, 64)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("decay", [0.5, 3.0, 10.0, 60.0, 300.0])
def test_every_backend_ranks_the_pixels_alike(device, backend, size, spectrum, decay):
    """Where most of the image is as good as flat, rounding would decide which pixels are the largest."""
    noise, pixels = drawn(6, size, spectrum, dtype=torch.float32), size[0] * size[1]
    count = torch.tensor([pixels // 2, pixels // 3, 1, pixels - 1, pixels - 3, pixels // 7])
    for softness in (0.0,) if backend == "cuda" else (0.0, 0.02, 0.5):
        expected = reference.spectral_mask(noise.double(), count, size, decay, spectrum, int(pixels * softness))
        given = noise.to(device), count.to(device), size, decay, spectrum, softness
        if device == "cuda":  # whose transform rounds in its own way
            torch.testing.assert_close(ops.spectral_mask(*given, backend=backend).cpu(), expected, atol=1e-3, rtol=0)
        else:
            assert torch.equal(ops.spectral_mask(*given, backend=backend), expected)


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_first_of_equal_pixels(device, backend, spectrum):
    noise = torch.zeros_like(drawn(5, (6, 7), spectrum)).float().to(device)
    count = torch.tensor([0, 1, 20, 41, 42], device=device)
    found = ops.spectral_mask(noise, count, (6, 7), spectrum=spectrum, backend=backend).flatten(1)
    assert torch.equal(found, (torch.arange(42, device=device) < count.view(-1, 1)).float())


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_ties_across_an_image(device, backend):
    """A wave across the width alone: each column has one value, and two columns share it."""
    noise = torch.zeros(1, 1, 2, 2, device=device)
    noise[0, 0, 1, 0] = 1
    found = ops.spectral_mask(
        noise.expand(3, 1, 2, 2), torch.tensor([3, 5, 11], device=device), (4, 4), backend=backend
    )
    columns = torch.tensor([1.0, 0, -1, 0])
    for mask, count in zip(found.cpu(), (3, 5, 11), strict=True):
        image = columns.expand(4, 4).numpy()
        assert torch.equal(mask, torch.from_numpy(largest(image, count))) or count > 4  # cos(pi / 2) is not quite 0
        assert mask.sum() == count


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
def test_noise_that_is_not_finite(device, backend, spectrum, bad):
    noise = drawn(4, (12, 12), spectrum).float()
    count = torch.tensor([70, 70, 70, 70], device=device)
    plain = ops.spectral_mask(noise.to(device), count, (12, 12), spectrum=spectrum, backend=backend)
    noise[1, 0, 1, 0], noise[2] = bad, bad
    found = ops.spectral_mask(noise.to(device), count, (12, 12), spectrum=spectrum, backend=backend)
    assert torch.equal(found[[0, 3]], plain[[0, 3]])
    assert ((found == 0) | (found == 1)).all() and (found.sum((1, 2)) == 70).all()


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_counts(device, backend, kind):
    noise = drawn(5, (8, 9), "paper").float().to(device)
    count = torch.tensor([-3, 0, 30, 72, 1000], dtype=kind, device=device)
    found = ops.spectral_mask(noise, count, (8, 9), backend=backend)
    assert found.sum((1, 2)).tolist() == [0, 0, 30, 72, 72]
    assert torch.equal(ops.spectral_mask(noise, 30, (8, 9), backend=backend)[2], found[2])
    assert ops.spectral_mask(noise[:0], count[:0], (8, 9), backend=backend).shape == (0, 8, 9)


def test_threads_do_not_change_the_result():
    threads, noise, found = torch.get_num_threads(), drawn(9, (64, 64), "paper").float(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.spectral_mask(noise, counts(9, (64, 64)), (64, 64)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_compiles_without_a_graph_break():
    torch.compiler.reset()
    noise, count = drawn(4, (8, 9), "paper").float(), counts(4, (8, 9))
    compiled = torch.compile(lambda z, k: ops.spectral_mask(z * 2, k, (8, 9)) * 3, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(noise, count), ops.spectral_mask(noise * 2, count, (8, 9)) * 3)


def test_shapes_of_the_noise():
    assert spectral_mask_noise_shape((224, 224)) == (65, 33, 2)
    assert spectral_mask_noise_shape((224, 224), cycles=None) == (224, 113, 2)
    assert spectral_mask_noise_shape((32, 32)) == (32, 17, 2)
    assert spectral_mask_noise_shape((100, 300)) == (23, 33, 2)
    assert spectral_mask_noise_shape((32, 32), "reference") == (2, 17, 2)
    assert spectral_mask_noise_shape((31, 31), "reference") == (2, 17, 2)
    assert spectral_mask_noise_shape((10, 64), "reference") == (2, 10, 2)
    for bad in ({"size": (8,)}, {"size": 8}):
        with pytest.raises(TypeError, match=r"size must be \(H, W\)"):
            spectral_mask_noise_shape(**bad)
    for bad, message in (
        ({"size": (8, 0)}, "size must lie in"),
        ({"size": (1, 8), "spectrum": "reference"}, "size must have two rows"),
        ({"size": (8, 8), "spectrum": "other"}, "spectrum must be one of paper, reference"),
        ({"size": (8, 8), "cycles": 0}, "cycles must be a positive int or None"),
    ):
        with pytest.raises(ValueError, match=message):
            spectral_mask_noise_shape(**bad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noise": None}, TypeError, "noise must be float32 or float64, got NoneType"),
        ({"noise": torch.randn(2, 8, 5, 2).half()}, TypeError, "noise must be float32 or float64, got float16"),
        ({"noise": torch.randn(2, 9, 5, 2)}, ValueError, r"noise must have shape \(N, 1..8, 1..5, 2\)"),
        ({"noise": torch.randn(2, 8, 5)}, ValueError, "noise must have shape"),
        ({"spectrum": "reference"}, ValueError, r"noise must have shape \(N, 2, 5, 2\)"),
        ({"spectrum": "other"}, ValueError, "spectrum must be one of paper, reference, got 'other'"),
        ({"count": 1.0}, TypeError, "count must be an int or int32 or int64, got float 1.0"),
        ({"count": torch.ones(2)}, TypeError, "count must be an int or int32 or int64, got float32"),
        ({"count": torch.ones(3).int()}, ValueError, r"count must have shape \(2,\) on cpu"),
        ({"size": 8}, TypeError, r"size must be \(H, W\), got int 8"),
        ({"size": (8, 1 << 15)}, ValueError, "size must lie in 1..16384"),
        ({"decay": "3"}, TypeError, "decay must be a number, got str"),
        ({"decay": -1.0}, ValueError, r"decay must be a number in \[0, inf\], got -1.0"),
        ({"softness": 0.6}, ValueError, r"softness must be a number in \[0, 0.5\], got 0.6"),
        ({"softness": float("nan")}, ValueError, "softness must be a number in"),
        ({"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"fastmix.spectral_mask: .*{message}"):
        ops.spectral_mask(**({"noise": torch.randn(2, 8, 5, 2), "count": 3, "size": (8, 8)} | change))
