from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import backends
from threads_support import run_on_threads
from torch import Tensor

from fastmix import ops

HERE = Path(__file__).parent
BACKENDS = backends("saliency_box")
SHAPES = [(1, 1), (1, 7), (9, 1), (4, 4), (14, 14), (33, 21)]


def maps(n: int, shape: tuple[int, int], kind: str = "normal", seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n, *shape, generator=g)
    return (values * 1.5).round() if kind == "few values" else values


def literal_peak_box(saliency: np.ndarray, lam: float, size: tuple[int, int]) -> list[int]:
    """SaliencyMix's box, as its code makes it of numpy arrays."""
    ratio = np.sqrt(1.0 - lam)
    cut = [int(side * ratio) for side in size]
    centre = np.unravel_index(np.argmax(saliency), saliency.shape)
    begin = [int(np.clip(c - k // 2, 0, side)) for c, k, side in zip(centre, cut, size, strict=True)]
    end = [int(np.clip(c + k // 2, 0, side)) for c, k, side in zip(centre, cut, size, strict=True)]
    return begin + end


def literal_window(saliency: np.ndarray, height: int, width: int, smallest: bool) -> list[int]:
    rows, columns = saliency.shape[0] - height + 1, saliency.shape[1] - width + 1
    sums = [
        math.fsum(saliency[y : y + height, x : x + width].ravel().tolist()) * (-1 if smallest else 1)
        for y in range(rows)
        for x in range(columns)
    ]
    y, x = divmod(sums.index(max(sums)), columns)
    return [y, x, y + height, x + width]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("kind", ["normal", "few values"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_around_the_peak(device, backend, kind, shape):
    saliency = maps(12, shape, kind)
    lams = torch.linspace(0, 1, 12, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        lam = lams.to(dtype)
        found = ops.saliency_box(saliency.to(device), lam.to(device), backend=backend)
        assert found.dtype is torch.int32 and found.device.type == device
        expected = [literal_peak_box(s.numpy(), w, shape) for s, w in zip(saliency, lam.tolist(), strict=True)]
        assert found.tolist() == expected
    least = ops.saliency_box(saliency.to(device), 0.3, smallest=True, backend=backend)
    assert least.tolist() == [literal_peak_box(-s.numpy(), 0.3, shape) for s in saliency]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("kind", ["normal", "few values"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smallest", [False, True])
def test_windows(device, backend, kind, shape, smallest):
    saliency = maps(6, shape, kind, seed=1)
    for height, width in {(1, 1), shape, ((shape[0] + 1) // 2, (shape[1] + 2) // 3)}:
        found = ops.saliency_box(saliency.to(device), window=(height, width), smallest=smallest, backend=backend)
        assert found.tolist() == [literal_window(s.numpy(), height, width, smallest) for s in saliency]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_a_window_a_sample(device, backend, kind):
    saliency = maps(5, (6, 8), seed=2)
    windows = torch.tensor([[1, 2], [6, 8], [3, 3], [0, 4], [7, 100]], dtype=kind)
    found = ops.saliency_box(saliency.to(device), window=windows.to(device), backend=backend).cpu()
    limited = torch.minimum(windows, torch.tensor([6, 8], dtype=kind))
    for n in (0, 1, 2, 4):
        assert found[n].tolist() == literal_window(saliency[n].numpy(), *limited[n].tolist(), False)
    assert found[3].tolist() == [0, 0, 0, 4]  # nothing is in it
    sides = torch.tensor([1, 2, 3, 4, 5], dtype=kind, device=device)
    found = ops.saliency_box(saliency.to(device), window=sides, backend=backend)
    pairs = ops.saliency_box(saliency.to(device), window=sides.view(5, 1).expand(5, 2), backend=backend)
    assert torch.equal(found, pairs)
    one = ops.saliency_box(saliency.to(device), window=sides[2], backend=backend)
    assert torch.equal(one, ops.saliency_box(saliency.to(device), window=3, backend=backend))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_a_coarse_map_gives_boxes_in_pixels(device, backend):
    saliency = maps(6, (7, 5), seed=3).to(device)
    cells = ops.saliency_box(saliency, window=(3, 2), backend=backend)
    pixels = ops.saliency_box(saliency, window=(3, 2), size=(7 * 16, 5 * 16), backend=backend)
    assert torch.equal(pixels, cells * 16)
    odd = ops.saliency_box(saliency, window=(3, 2), size=(23, 11), backend=backend).cpu()
    assert torch.equal(odd, cells.cpu() * torch.tensor([23, 11, 23, 11]) // torch.tensor([7, 5, 7, 5]))
    peak = saliency.cpu().flatten(1).argmax(1)
    centre = torch.stack([(peak // 5) * 16 + 8, (peak % 5) * 16 + 8], 1)
    small = ops.saliency_box(saliency, 0.99, size=(7 * 16, 5 * 16), backend=backend).cpu()
    # 11 and 8 pixels: 5 and 4 on each side
    assert torch.equal(small, torch.cat([centre - torch.tensor([5, 4]), centre + torch.tensor([5, 4])], 1).int())


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_the_first_of_equal_places(device, backend):
    flat = torch.full((2, 9, 9), 0.1, device=device)
    assert ops.saliency_box(flat, window=4, backend=backend).tolist() == [[0, 0, 4, 4]] * 2
    assert ops.saliency_box(flat, window=4, smallest=True, backend=backend).tolist() == [[0, 0, 4, 4]] * 2
    assert ops.saliency_box(flat, 0.5, backend=backend).tolist() == [[0, 0, 3, 3]] * 2
    zeros = torch.zeros(1, 3, 3, device=device)
    zeros[0, 0, 0] = -0.0  # equal to 0
    assert ops.saliency_box(zeros, 0.5, backend=backend).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_count_as_nothing(device, backend, bad):
    saliency = maps(4, (6, 6), seed=4)
    zeroed = saliency.clone()
    zeroed[1, 2, 3], zeroed[2] = 0, 0
    saliency[1, 2, 3], saliency[2] = bad, bad
    for options in ({"lam": 0.4}, {"window": 3}, {"window": 2, "smallest": True}):
        found = ops.saliency_box(saliency.to(device), **options, backend=backend)
        assert torch.equal(found, ops.saliency_box(zeroed.to(device), **options, backend=backend))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_weights_without_a_box(device, backend):
    saliency = maps(4, (8, 8)).to(device)
    lam = torch.tensor([1.5, torch.nan, 1.0, -2.0], device=device)
    box = ops.saliency_box(saliency, lam, backend=backend)
    sides = (box[:, 2:] - box[:, :2]).tolist()
    assert sides[:3] == [[0, 0]] * 3 and min(sides[3]) >= 4  # all of the image, clipped


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_layouts_and_empty_batches(device, backend, dtype):
    saliency = maps(4, (6, 8)).to(device, dtype).requires_grad_()
    found = ops.saliency_box(saliency.transpose(1, 2), window=2, backend=backend)
    assert torch.equal(found, ops.saliency_box(saliency.transpose(1, 2).contiguous().float(), window=2))
    for options in ({"lam": 0.4}, {"lam": torch.ones(0, device=device)}, {"window": 3}):
        assert ops.saliency_box(saliency[:0], **options, backend=backend).shape == (0, 4)


def test_compiles_without_a_graph_break():
    torch.compiler.reset()
    saliency, lam = maps(4, (6, 8)), torch.rand(4)

    def boxes(saliency: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        return ops.saliency_box(saliency * 2, lam), ops.saliency_box(saliency, window=2)

    compiled = torch.compile(boxes, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(saliency, lam), boxes(saliency, lam), strict=True):
        assert torch.equal(found, expected)


def test_threads_that_share_a_map(tmp_path):
    """The parallel schedules of `saliency_box` and `spectral_mask` on threads, under ThreadSanitizer where it runs."""
    assert "maps" in run_on_threads(HERE / "maps_threads.cpp", tmp_path, "-DFASTMIX_ISA=baseline")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"saliency": None}, TypeError, "saliency must be a floating tensor, got NoneType"),
        ({"saliency": torch.ones(2, 4, 4).int()}, TypeError, "saliency must be a floating tensor, got int32"),
        ({"saliency": torch.rand(2, 1, 4, 4)}, ValueError, r"saliency must have shape \(N, h, w\)"),
        ({"saliency": torch.rand(2, 0, 4)}, ValueError, "with h, w > 0"),
        ({"lam": None}, ValueError, "exactly one of lam and window must be given"),
        ({"window": 2}, ValueError, "exactly one of lam and window must be given"),
        ({"lam": "0.5"}, TypeError, "lam must be a float or a floating tensor, got str"),
        ({"lam": torch.ones(3)}, ValueError, r"lam must have shape \(\) or \(2,\) on cpu"),
        ({"lam": None, "window": 5}, ValueError, r"window must fit in the map of 4 x 4 cells, got \(5, 5\)"),
        ({"lam": None, "window": (0, 2)}, ValueError, "window must fit in the map"),
        ({"lam": None, "window": 2.0}, TypeError, r"window must be an int, \(height, width\) or a tensor"),
        ({"lam": None, "window": torch.ones(2)}, TypeError, "window must be int32 or int64, got float32"),
        ({"lam": None, "window": torch.ones(3).int()}, ValueError, r"window must have shape \(\), \(2,\) or \(2, 2\)"),
        ({"size": 8}, TypeError, r"size must be \(H, W\), got int 8"),
        ({"size": (8, 0)}, ValueError, r"size must be positive, got \(8, 0\)"),
        ({"backend": "triton"}, ValueError, "backend 'triton' cannot run here"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=f"fastmix.saliency_box: .*{message}"):
        ops.saliency_box(**({"saliency": torch.rand(2, 4, 4), "lam": 0.5} | change))
