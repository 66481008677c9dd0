"""Every kernel once, on a few pixels: what compute-sanitizer looks at. The CPU kernels run the same calls."""

from __future__ import annotations

import pytest
import torch
from support import Call, call, each_op

from fastmix.testing import assert_matches

U8, F16, BF16, F32 = torch.uint8, torch.float16, torch.bfloat16, torch.float32
# Odd tails, whole vectors, one pixel, many channels; (N, r, d) with tails and with whole tiles.
IMAGES = [(3, 3, 5, 7), (2, 3, 16, 32), (2, 1, 1, 1), (2, 9, 6, 10)]
POSITIONS = [(3, 17, 5), (2, 64, 32), (2, 70, 48)]
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
every_backend = pytest.mark.parametrize(("op", "device", "backend"), each_op())


def check(given: Call, backend: str) -> None:
    assert_matches(given.op, *given.args, **given.options, backend=backend)


@every_backend
@pytest.mark.parametrize("dtype", [U8, F16, BF16, F32], ids=str)
def test_every_dtype_and_layout(op, device, backend, dtype):
    if op == "pair_attention":
        if dtype is not U8:
            for shape in POSITIONS:
                check(call(op, device, dtype, shape=shape), backend)
        return
    for layout, shapes in (("contiguous", IMAGES), ("channels_last", IMAGES[:2]), ("offset", IMAGES[:1])):
        for shape in shapes:
            check(call(op, device, dtype, layout, shape), backend)


@every_backend
def test_two_draws(op, device, backend):
    check(call(op, device, draws=2), backend)


@pytest.mark.parametrize(("op", "device", "backend"), [p for p in each_op() if p.values[0] != "pair_attention"])
@pytest.mark.parametrize("dtype", [U8, F32], ids=str)
def test_normalised(op, device, backend, dtype):
    for layout in ("contiguous", "channels_last"):
        given = call(op, device, dtype, layout, IMAGES[0])
        given.options |= {"normalize": NORMALIZE, "dtype": BF16}
        check(given, backend)


@pytest.mark.parametrize(("op", "device", "backend"), [p for p in each_op() if p.values[0] == "mask_blend"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_every_mode(op, device, backend, mode):
    for mask in ((2, 3), (9, 14)):
        for first in (False, True):
            check(call(op, device, mask=mask, mode=mode, activation_first=first), backend)


@pytest.mark.parametrize(("op", "device", "backend"), [p for p in each_op() if p.values[0] == "pair_attention"])
def test_columns(op, device, backend):
    for shape in POSITIONS:
        check(call(op, device, BF16, shape=shape, transpose=True), backend)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "device", "backend"), each_op("cuda"))
def test_a_partner_out_of_range_touches_no_foreign_memory(op, device, backend):
    for bad in (3, -1, 2**40):
        given = call(op, device, shape=(3, 17, 5) if op == "pair_attention" else IMAGES[0])
        index = next(tensor for tensor in given.tensors if tensor.dtype is torch.int64)
        index[1] = bad
        given.run(backend)
    torch.cuda.synchronize()
