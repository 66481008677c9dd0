"""`box_blend` with `source=`: the box is filled by another region of the partner, resized to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import BACKENDS, FLOATS, LAYOUTS, assert_same_bits, images, partners, skip_unsupported, unit

from fastmix import ops
from fastmix.testing import assert_matches

WITH_SOURCE = [pair for pair in BACKENDS if pair.id != "triton"]
each_backend = pytest.mark.parametrize(("device", "backend"), WITH_SOURCE)
RESIZES = [("nearest", False), ("bilinear", False), ("bilinear", True)]
each_resize = pytest.mark.parametrize(("resize", "align_corners"), RESIZES)
SHAPES = [(7, 5, 33, 14), (0, 3, 8, 8), (9, 3, 1, 1), (8, 2, 70, 110), (2, 3, 9, 32)]


def regions(shape: tuple, device: str, seed: int = 0, lead: tuple = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and sources: chosen ones, then random ones that reach across the borders, some of them reversed."""
    n, _, h, w = shape
    box = [[2, 3, 7, 6], [0, 0, h, w], [-4, 1, h + 9, 5], [1, 1, 2, 2], [0, 0, 4, 5], [2, 2, 5, 7], [0, 0, 3, 3]]
    source = [[0, 0, h, w], [1, 1, 2, 2], [3, -2, 6, 9], [0, 0, h, w], [2, 1, 6, 6], [3, 3, 3, 9], [h, w, 9**9, 9**9]]
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(-3, max(h, w) + 4, (2, *lead, n, 4), generator=generator)
    random[..., 2:] += random[..., :2].clamp(min=0) // 2
    for part, known in zip(random, (box, source), strict=True):
        rows = torch.tensor(known[:n]).view(-1, 4)
        part.view(-1, 4)[: len(rows)] = rows if not lead else part.view(-1, 4)[: len(rows)]
    return tuple(part.int().to(device) for part in random)


def literal(x, index, box, source, lam, resize, align_corners) -> torch.Tensor:
    """One sample after the other, in float64, with slices and `F.interpolate`."""
    x, (height, width) = x.double(), x.shape[2:]
    out = torch.empty_like(x)

    def cut(corners: list[int]) -> tuple[int, int, int, int]:
        limits = (height, width, height, width)
        return tuple(min(max(corner, 0), limit) for corner, limit in zip(corners, limits, strict=True))

    for n, partner in enumerate(index.tolist()):
        weight = 1.0 if lam is None else lam.double().expand(len(x))[n]
        out[n] = weight * x[n] + (1 - weight) * x[partner]
        (y0, x0, y1, x1), (v0, u0, v1, u1) = cut(box[n].tolist()), cut(source[n].tolist())
        if y0 < y1 and x0 < x1 and v0 < v1 and u0 < u1:
            crop = x[partner : partner + 1, :, v0:v1, u0:u1]
            options = {"mode": resize} | ({"align_corners": align_corners} if resize == "bilinear" else {})
            out[n, :, y0:y1, x0:x1] = F.interpolate(crop, (y1 - y0, x1 - x0), **options)[0]
    return out


@each_backend
@each_resize
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(device, backend, resize, align_corners, dtype, layout, shape):
    skip_unsupported(backend, dtype)
    x, index = images(shape, dtype, layout, device).requires_grad_(), partners(shape[0], device)
    box, source = regions(shape, device)
    options = {"source": source, "resize": resize, "align_corners": align_corners, "backend": backend}
    lam = torch.tensor(0.3, device=device) if layout == "offset" else unit(shape[0], device=device)
    assert_matches("box_blend", x, index, box, lam.requires_grad_(), **options)
    assert_matches("box_blend", x, index, box, **options)


@each_backend
@each_resize
@pytest.mark.parametrize("seed", range(12))
def test_matches_interpolate_of_the_crop(device, backend, resize, align_corners, seed):
    shape = [(11, 3, 17, 23), (10, 1, 40, 29), (8, 2, 5, 64)][seed % 3]
    dtype = torch.float64 if backend in ("cpu", "reference") else torch.float32
    x, index = images(shape, dtype, LAYOUTS[seed % 4], device, seed).requires_grad_(), partners(shape[0], device, seed)
    box, source = regions(shape, device, seed)
    lam = None if seed % 4 == 0 else unit(shape[0], device=device, seed=seed).to(dtype).requires_grad_()
    found = ops.box_blend(
        x, index, box, lam, source=source, resize=resize, align_corners=align_corners, backend=backend
    )
    expected = literal(x, index, box, source, lam, resize, align_corners)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    leaves, grad = [t for t in (x, lam) if t is not None], torch.randn(shape, device=device, dtype=dtype)
    for a, b in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad.double()), strict=True
    ):
        torch.testing.assert_close(a.double(), b.double(), **{key: 50 * value for key, value in tolerance.items()})


@each_backend
def test_nearest_takes_the_same_pixels_as_interpolate_at_every_size(device, backend):
    width = 96
    x = torch.arange(float(width), device=device).view(1, 1, 1, width).expand(width, 1, 1, width).contiguous()
    index = torch.zeros(width, dtype=torch.int64, device=device)
    for inputs in (*range(1, width, 7), 49, 64, 95, 96):
        box = torch.tensor([[0, 0, 1, size] for size in range(1, width + 1)], dtype=torch.int32, device=device)
        source = torch.tensor([0, 0, 1, inputs], dtype=torch.int32, device=device)
        found = ops.box_blend(x, index, box, source=source, backend=backend)
        for size in range(1, width + 1):
            expected = F.interpolate(x[:1, :, :, :inputs], (1, size))
            assert torch.equal(found[size - 1, 0, 0, :size], expected[0, 0, 0]), (inputs, size)


@each_backend
@each_resize
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("source_dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_normalise_and_convert_in_one_pass(device, backend, resize, align_corners, layout, source_dtype, dtype):
    shape = (6, 3, 17, 23)
    x, index, (box, source) = images(shape, source_dtype, layout, device), partners(6, device), regions(shape, device)
    options = {"source": source, "resize": resize, "align_corners": align_corners, "backend": backend, "dtype": dtype}
    for lam in (None, unit(6, device=device)):
        assert_matches("box_blend", x, index, box, lam, normalize=((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), **options)


@each_backend
@each_resize
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_are_rounded_once(device, backend, resize, align_corners, layout):
    shape = (6, 3, 17, 24)
    x, index, (box, source) = images(shape, torch.uint8, layout, device), partners(6, device), regions(shape, device)
    options = {"source": source, "resize": resize, "align_corners": align_corners, "backend": backend}
    for lam in (None, unit(6, device=device)):
        assert_matches("box_blend", x, index, box, lam, **options)


@each_backend
@each_resize
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_region_of_the_same_size_is_a_copy(device, backend, resize, align_corners, dtype, layout):
    x, index = images((4, 3, 12, 10), dtype, layout, device), torch.tensor([1, 2, 3, 0], device=device)
    if dtype.is_floating_point:
        x[0, 0], x[1, 1, 4, 4], x[2, :, 3] = torch.nan, torch.inf, -0.0
    box = torch.tensor([2, 3, 9, 8], dtype=torch.int32, device=device)
    source = torch.tensor([[0, 0, 7, 5], [5, 5, 12, 10], [2, 3, 9, 8], [1, 4, 8, 9]], dtype=torch.int32, device=device)
    expected = x.clone()
    for n, (v, u, _, _) in enumerate(source.tolist()):
        expected[n, :, 2:9, 3:8] = x[index[n], :, v : v + 7, u : u + 5]
    options = {"resize": resize, "align_corners": align_corners, "backend": backend}
    assert_same_bits(ops.box_blend(x, index, box, source=source, **options), expected)


@each_backend
def test_the_box_itself_as_source_is_the_plain_op(device, backend):
    shape = (6, 3, 17, 23)
    x, index, (box, _) = images(shape, torch.float32, "contiguous", device), partners(6, device), regions(shape, device)
    lam = unit(6, device=device)
    plain = ops.box_blend(x, index, box, lam, backend=backend)
    assert_same_bits(ops.box_blend(x, index, box, lam, source=box, backend=backend), plain)


@each_backend
@each_resize
def test_what_is_not_finite_stays_where_its_weight_is_zero(device, backend, resize, align_corners):
    """Twice as many values a side, corners aligned or not, leave some inputs a weight of 0."""
    x = torch.zeros(2, 1, 8, 8, device=device)
    x[1, 0, :, 4:] = torch.inf
    box = torch.tensor([0, 0, 8, 8], dtype=torch.int32, device=device)
    source = torch.tensor([0, 0, 8, 4], dtype=torch.int32, device=device)
    options = {"source": source, "resize": resize, "align_corners": align_corners, "backend": backend}
    index = torch.tensor([1, 0], device=device)
    assert torch.equal(ops.box_blend(x, index, box, **options)[0], torch.zeros(1, 8, 8, device=device))


@each_backend
@each_resize
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_draws_have_regions_of_their_own(device, backend, resize, align_corners, layout):
    shape = (5, 3, 17, 22)
    x = images(shape, torch.float32, layout, device).requires_grad_()
    index = torch.stack([partners(5, device, seed) for seed in range(3)])
    box, source = regions(shape, device, lead=(3,))
    lam = unit(3, 5, device=device).requires_grad_()
    options = {"source": source, "resize": resize, "align_corners": align_corners}
    assert_matches("box_blend", x, index, box, lam, backend=backend, **options)
    with torch.no_grad():
        together = ops.box_blend(x, index, box, lam, backend=backend, **options)
        for d in range(3):
            alone = {**options, "source": source[d]}
            assert_same_bits(together[d], ops.box_blend(x, index[d], box[d], lam[d], backend=backend, **alone))


@each_backend
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_is_filled_and_one_region_serves_all(device, backend, layout):
    x, index = images((5, 3, 17, 22), torch.float32, layout, device), partners(5, device)
    box = torch.tensor([3, 2, 9, 12], dtype=torch.int32, device=device)
    source = torch.tensor([0, 0, 17, 22], dtype=torch.int32, device=device)
    out = torch.full_like(x, torch.nan)
    assert ops.box_blend(x, index, box, source=source, resize="bilinear", out=out, backend=backend) is out
    each = ops.box_blend(x, index, box.expand(5, 4), source=source.expand(5, 4), resize="bilinear", backend=backend)
    assert_same_bits(out, each)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        ops.box_blend(x, index, box, source=source, out=x, backend=backend)


@pytest.mark.slow
@each_backend
@each_resize
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(device, backend, resize, align_corners, dynamic):
    shape = (5, 3, 17, 22)
    x, index, (box, source) = (
        images(shape, torch.float32, "contiguous", device),
        partners(5, device),
        regions(shape, device),
    )
    lam, found = unit(5, device=device), []

    def mixed(x, lam):
        options = {"source": source, "resize": resize, "align_corners": align_corners, "backend": backend}
        return ops.box_blend(x, index, box, lam, **options) * 2

    torch.compiler.reset()
    for function in (torch.compile(mixed, fullgraph=True, dynamic=dynamic, backend="aot_eager"), mixed):
        leaves = [x.clone().requires_grad_(), lam.clone().requires_grad_()]
        result = function(*leaves)
        found.append([result.detach(), *torch.autograd.grad(result, leaves, result.detach().cos())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("name", ["box_paste", "box_paste_grad_x"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_registered_ops_pass_opcheck(name, n, layout):
    x, index, lam = images((n, 3, 8, 6), torch.float32, layout, "cpu"), torch.arange(n).flip(0), torch.rand(n)
    box, source = regions((n, 3, 8, 6), "cpu")
    maps = (index,) if name == "box_paste" else (index.argsort(), torch.arange(n + 1))
    affine = (None, None) if name == "box_paste" else ()
    call = (x, *maps, box, source, 1, lam, *affine, torch.float32, "cpu")
    torch.library.opcheck(getattr(torch.ops.fastmix, name).default, call, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": torch.zeros(4, 4)}, TypeError, "source must be an int32 tensor, got float32"),
        ({"source": [0, 0, 1, 1]}, TypeError, "source must be an int32 tensor, got list"),
        ({"source": torch.zeros(3, 4, dtype=torch.int32)}, ValueError, r"source must have shape \(4, 4\) or \(4,\)"),
        ({"resize": "bicubic"}, ValueError, "resize must be one of nearest, bilinear, got 'bicubic'"),
        ({"align_corners": True}, ValueError, "align_corners=True must come with resize='bilinear', got 'nearest'"),
        ({"box": torch.zeros(4, 4)}, TypeError, "box must be an int32 tensor, got float32"),
        ({"index": torch.tensor([0, 1, 2, 4])}, ValueError, r"index must lie in \[0, 4\), got 4 at position 3"),
        ({"lam": torch.rand(3)}, ValueError, "lam must have shape"),
        ({"out": torch.zeros(1)}, ValueError, "out must be float32 of shape"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    box = torch.zeros(4, 4, dtype=torch.int32)
    call = {"x": torch.rand(4, 3, 5, 5), "index": torch.arange(4), "box": box, "source": box, **change}
    with pytest.raises(error, match=f"fastmix.box_blend: .*{message}"):
        ops.box_blend(**call)


def test_triton_says_that_it_has_no_kernel(monkeypatch):
    monkeypatch.setattr("fastmix.ops.common.blend_backend", lambda op, x, dtype, backend: "triton")
    x, box = torch.rand(2, 3, 8, 8), torch.tensor([0, 0, 4, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="backend 'triton' has no kernel for source="):
        ops.box_blend(x, torch.tensor([1, 0]), box, source=box, backend="triton")
    plain = ops.box_blend(x, torch.tensor([1, 0]), box, source=box)
    assert torch.equal(plain[0, :, :4, :4], x[1, :, :4, :4])
