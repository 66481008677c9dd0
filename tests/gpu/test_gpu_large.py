"""Tensors of more than 2^31 elements, and the memory that pair attention takes beside its arguments."""

from __future__ import annotations

import gc

import pytest
import torch
from support import Call, each_op, flat
from torch import Tensor

from fastmix import ops

pytestmark = pytest.mark.gpu
BLENDS = [p for p in each_op("cuda") if p.values[0] != "pair_attention"]
ATTENTION = [p for p in each_op("cuda") if p.values[0] == "pair_attention"]
BATCH = (720, 3, 1000, 1000)  # 2.16e9 elements
IMAGE = (2**15, 2**16 + 24)  # 2.15e9 pixels
POSITIONS = (132, 16384, 1024)  # 2.2e9 elements


@pytest.fixture(autouse=True)
def _give_memory_back():
    yield
    gc.collect()
    torch.cuda.empty_cache()


def need(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free memory, there are {free:.1f}")


def filled(shape: tuple, dtype: torch.dtype) -> Tensor:
    """Random values, sample by sample, so that no temporary is as large as the whole."""
    x = torch.empty(shape, dtype=dtype, device="cuda")
    for sample in x:
        if dtype is torch.uint8:
            sample.random_(0, 256)
        else:
            sample.normal_()
    return x


def swaps(n: int) -> Tensor:
    """Sample n is the partner of its partner, which lies half the batch away."""
    return torch.arange(n, device="cuda").roll(n // 2)


def blend_call(op: str, x: Tensor, grad: bool) -> Call:
    n, _, h, w = x.shape
    index, lam = swaps(n), torch.rand(n, device="cuda").requires_grad_(grad)
    if op == "mask_blend":
        mask = torch.randn(n, 7, 7, device="cuda").requires_grad_(grad)
        return Call(op, (x, index, mask), {"activation": "sigmoid"})
    if op == "box_blend":
        box = torch.tensor([h // 3, w // 4, h, w - 5], dtype=torch.int32, device="cuda").repeat(n, 1)
        return Call(op, (x, index, box, lam))
    return Call(op, (x, index, lam))


def of_pair(given: Call, n: int) -> Call:
    """The same call on sample n and its partner alone."""
    index = next(a for a in given.tensors if a.dtype is torch.int64)
    rows = [n, index[n].item()]
    one_another = torch.tensor([1, 0], device="cuda")
    args = [one_another if a is index else a.detach()[rows].requires_grad_(a.requires_grad) for a in given.args]
    return Call(given.op, tuple(args), given.options)


@pytest.mark.parametrize(("op", "device", "backend"), BLENDS)
def test_a_batch_of_bytes(op, device, backend):
    need(6)
    given = blend_call(op, filled(BATCH, torch.uint8), grad=False)
    found = given.results(backend)
    for n in (0, 1, BATCH[0] // 2, BATCH[0] - 2, BATCH[0] - 1):
        for large, small in zip(found, of_pair(given, n).results(backend), strict=True):
            assert torch.equal(large[n], small[0])


@pytest.mark.parametrize(("op", "device", "backend"), BLENDS)
def test_gradients_of_a_batch(op, device, backend):
    need(24)
    given = blend_call(op, filled(BATCH, torch.float16).requires_grad_(), grad=True)
    mixed = given.results(backend)[0]
    found = torch.autograd.grad(mixed, given.leaves, mixed.detach())
    for n in (0, BATCH[0] - 1):
        small = of_pair(given, n)
        results = small.results(backend)[0]
        for large, expected in zip(found, torch.autograd.grad(results, small.leaves, results.detach()), strict=True):
            torch.testing.assert_close(large[n], expected[0], rtol=1e-3, atol=1e-3 * expected[0].abs().max().item())


@pytest.mark.parametrize(("op", "device", "backend"), BLENDS)
def test_one_image_of_more_pixels_than_an_int32_counts(op, device, backend):
    need(12)
    h, w = IMAGE
    x, index = filled((2, 1, h, w), torch.uint8), torch.tensor([1, 0], device="cuda")
    corners = torch.tensor([[h - 90, 10, h - 3, w - 10]] * 2, dtype=torch.int32, device="cuda")
    last = x[:, :, -100:]
    if op == "mask_blend":
        lam = torch.tensor([0.3, 0.8], device="cuda")
        found = ops.mask_blend(x, index, lam.view(2, 1, 1), "nearest", backend=backend)[0]
        expected = ops.blend(last, index, lam, backend=backend)
    elif op == "box_blend":
        found = ops.box_blend(x, index, corners, backend=backend)
        shift = torch.tensor([h - 100, 0, h - 100, 0], dtype=torch.int32, device="cuda")
        expected = ops.box_blend(last, index, corners - shift, backend=backend)
    else:
        found, expected = ops.blend(x, index, 0.3, backend=backend), ops.blend(last, index, 0.3, backend=backend)
    assert (found[:, :, -100:].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("op", "device", "backend"), ATTENTION)
def test_positions_of_a_batch(op, device, backend):
    need(16)
    n, r, _ = POSITIONS
    q, v = filled(POSITIONS, torch.float16), torch.randn(n, r, device="cuda")
    given = Call(op, (q, q, v, swaps(n)))
    (found,) = given.results(backend)
    for sample in (0, n - 1):
        torch.testing.assert_close(found[sample], of_pair(given, sample).results(backend)[0][0])


@pytest.mark.parametrize(("op", "device", "backend"), ATTENTION)
def test_takes_a_hundredth_of_the_matrix_it_never_stores(op, device, backend):
    n, r, d = 100, 4096, 32
    matrix = 4 * n * r * r
    q = torch.randn(n, r, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    v, bias = (torch.randn(n, r, device="cuda", requires_grad=True) for _ in range(2))
    given = Call(op, (q, q, v, swaps(n), bias))

    def run() -> int:
        """Bytes at the peak beyond the arguments and the results."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = flat(tuple(given.results(backend)))
        gradients = torch.autograd.grad(kept, (q, v, bias), [torch.ones_like(v)])
        results = sum(t.numel() * t.element_size() for t in (*kept, *gradients))
        return torch.cuda.max_memory_allocated() - before - results

    run()
    assert run() <= matrix / 100
