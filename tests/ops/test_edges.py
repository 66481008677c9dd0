"""Corners that cost a wrong result or a crash once."""

from __future__ import annotations

import pytest
import torch
from support import backends

from fastmix import ops
from fastmix.nn import MixBlock
from fastmix.testing import assert_matches

INDEX = torch.tensor([1, 0])
NORMALIZE = ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 3, 0, 4, 4), (2, 0), (0, 3, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_empty_samples(shape):
    assert ops.blend(torch.empty(shape), torch.arange(shape[0]), 0.5).shape == shape


def test_constants_of_normalize_outlive_inference_mode_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.inference_mode():
        ops.blend(torch.rand(2, 3, 4, 4), INDEX, 0.5, normalize=NORMALIZE)
    with FakeTensorMode():
        ops.blend(torch.rand(2, 3, 4, 4), torch.tensor([1, 0]), 0.5, normalize=((0.3,) * 3, (2.0,) * 3))
    for normalize in (NORMALIZE, ((0.3,) * 3, (2.0,) * 3)):
        x = torch.rand(2, 3, 4, 4, requires_grad=True)
        assert_matches("blend", x, INDEX, torch.tensor(0.5), normalize=normalize)


def test_autograd_notices_that_out_was_written():
    w, buffer = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    y = (w * buffer).sum()
    ops.blend(torch.full((2, 3), 5.0), INDEX, 0.5, out=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    for out in (torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True) * 2):
        with pytest.raises(ValueError, match="out= cannot be used when a gradient is asked for"):
            ops.blend(torch.rand(2, 3), INDEX, 0.5, out=out)


def test_out_in_the_memory_of_any_input_is_refused():
    base = torch.rand(2, 1, 64, 64)
    box = torch.tensor([1, 1, 9, 30], dtype=torch.int32)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        ops.box_blend(base.transpose(2, 3), INDEX, box, out=base)
    out = torch.zeros(2, 3, 64, 64)
    mask = out.view(-1)[:50].view(2, 5, 5)
    with pytest.raises(ValueError, match="out must not share memory with mask"):
        ops.mask_blend(torch.rand(2, 3, 64, 64), INDEX, mask, out=out)
    lam = torch.rand(2)
    with pytest.raises(ValueError, match="out must not share memory with lam"):
        ops.blend(torch.rand(2), INDEX, lam, out=lam)
    halves = torch.rand(4, 3)
    assert ops.blend(halves[:2], INDEX, 0.5, out=halves[2:]).shape == (2, 3)


def test_out_may_differ_in_strides_that_do_not_matter():
    one_channel = torch.rand(2, 1, 8, 8).to(memory_format=torch.channels_last)
    ops.blend(one_channel, INDEX, 0.5, out=torch.empty(2, 1, 8, 8))
    single = torch.rand(4, 3, 8, 8)[::2][:1]
    ops.blend(single, torch.arange(1), 0.5, out=torch.empty(1, 3, 8, 8))


def test_compiled_calls_check_out_too():
    torch.compiler.reset()
    call = torch.compile(lambda x, out: ops.blend(x, INDEX, 0.3, out=out), backend="eager")
    with pytest.raises(Exception, match="out must be float32"):
        call(torch.rand(2, 3, 1, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("value", [-1, 2])
def test_the_reference_refuses_a_bad_index_too(value):
    index, x = torch.tensor([value, 0]), torch.rand(2, 4)
    with pytest.raises(ValueError, match=rf"index must lie in \[0, 2\), got {value} at position 0"):
        ops.blend(x, index, 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"index must lie in \[0, 2\), got {value} at position 0"):
        ops.pair_attention(x.view(2, 2, 2), x.view(2, 2, 2), x[:, :2], index, backend="reference")


def test_mask_blend_records_only_what_is_asked_for():
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    images = x * 1
    mixed, mean = ops.mask_blend(images, INDEX, torch.rand(2, 2, 2))
    assert mixed.requires_grad and not mean.requires_grad
    images.mul_(2)  # the gradient of the images does not need them
    mixed.sum().backward()


def test_a_mix_block_takes_an_empty_batch():
    for convention in ("released", "transposed", "paper"):
        block = MixBlock(8, convention=convention)
        assert block(torch.rand(0, 8, 4, 4), torch.zeros(0, dtype=torch.long), 0.5).shape == (0, 4, 4)


def test_bad_normalize_names_the_op():
    x = torch.rand(2, 3, 4, 4)
    for normalize in ((torch.zeros(2), torch.ones(3)), ((0.1, 0.2, 0.3), (1.0,))):
        with pytest.raises(ValueError, match=r"fastmix\.blend: normalize must hold 3 means and 3 stds"):
            ops.blend(x, INDEX, 0.5, normalize=normalize)
    with pytest.raises(ValueError, match="normalize must not require a gradient"):
        ops.blend(x, INDEX, 0.5, normalize=(torch.zeros(3, requires_grad=True), torch.ones(3)))


def test_lazily_negated_tensors():
    x, lam = torch.rand(2, 3), torch.tensor(0.3 + 0.2j).conj().imag  # -0.2, not yet computed
    torch.testing.assert_close(ops.blend(x, INDEX, lam), ops.blend(x, INDEX, -0.2))
    image = torch.view_as_complex(torch.rand(1, 1, 2, 2, 2)).conj().imag
    assert torch.equal(ops.blend(image, torch.tensor([0]), 1.0), image.clone())


MASK = torch.tensor([[[0.0, 1.0], [0.3, 0.5]], [[1.0, 0.0], [0.0, 0.2]]])
BOXES = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]], dtype=torch.int32)
REGIONS = torch.tensor([[0, 0, 3, 3], [1, 1, 4, 4]], dtype=torch.int32)
# Weights as they are given, and what the op is told besides. Bicubic weights are 0 or 1 but for rounding.
MIXED = {
    "blend": (ops.blend, lambda lam: (lam,), {}),
    "box_blend": (ops.box_blend, lambda lam: (BOXES, lam), {}),
    "pasted": (ops.box_blend, lambda lam: (BOXES, lam), {"source": REGIONS, "resize": "bilinear"}),
    "nearest": (ops.mask_blend, lambda lam: (MASK * lam.view(2, 1, 1),), {"mode": "nearest"}),
    "bilinear": (ops.mask_blend, lambda lam: (MASK * lam.view(2, 1, 1),), {"mode": "bilinear"}),
    "sigmoid": (
        ops.mask_blend,
        lambda lam: ((MASK * lam.view(2, 1, 1) - 0.5) * 400,),
        {"mode": "nearest", "activation": "sigmoid"},
    ),
}


@pytest.mark.parametrize(("device", "backend"), backends("blend", reference=False))
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("lam", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.0), (1.0, 0.3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MIXED)
def test_a_weight_of_0_keeps_what_is_not_finite_out_of_every_gradient(name, layout, lam, value, device, backend):
    function, arguments, options = MIXED[name]
    x = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4) / 7
    x[0, 0, 1, 1], x[1, 2, 2, 2] = value, value
    weights = torch.tensor(lam)
    found = []
    for chosen in (backend, "reference"):
        images = x.clone(memory_format=layout).to(device).requires_grad_()
        given = [a.to(device).requires_grad_(a.is_floating_point()) for a in arguments(weights)]
        extra = {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in options.items()}
        mixed = function(images, INDEX.to(device), *given, backend=chosen, **extra)
        mixed = mixed[0] if isinstance(mixed, tuple) else mixed
        leaves = [images, *(a for a in given if a.requires_grad)]
        found.append([mixed.detach(), *torch.autograd.grad(mixed.sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_gradient_of_a_weight_beside_infinities(backend):
    x, lam = torch.tensor([[-torch.inf], [-1.0]]), torch.tensor([0.0, 1.0], requires_grad=True)
    (found,) = torch.autograd.grad(ops.blend(x, INDEX, lam, backend=backend).sum(), lam)
    assert found.tolist() == [1.0, -1.0]
    nowhere = torch.zeros(2, 4, dtype=torch.int32)
    (found,) = torch.autograd.grad(ops.box_blend(x.view(2, 1, 1, 1), INDEX, nowhere, lam, backend=backend).sum(), lam)
    assert found.tolist() == [1.0, -1.0]
