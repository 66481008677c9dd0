"""Gradients of gradients, of every op that is differentiable: those of the reference, or a clear error."""

from __future__ import annotations

import pytest
import torch
from support import OPS, call, unit

from fastmix import ops

KINDS = {
    **{op: (op, {}) for op in OPS},
    "blend-normalize": ("blend", {"normalize": ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))}),
    "mask_blend-bicubic": ("mask_blend", {"mode": "bicubic", "activation_first": True}),
    "mask_blend-plain": ("mask_blend", {"mode": "nearest", "activation": "none"}),
    "pair_attention-transpose": ("pair_attention", {"transpose": True}),
}
SMALL = {"pair_attention": (3, 5, 2)}


def made(kind: str, draws: int | None, dtype: torch.dtype = torch.float64):
    op, options = KINDS[kind]
    found = call(op, "cpu", dtype, shape=SMALL.get(op, (3, 3, 4, 5)), draws=draws, mask=(2, 3), **options)
    if dtype is torch.float64:  # weights too
        asks = [getattr(a, "requires_grad", False) for a in found.args]
        found.args = tuple(
            a.detach().double().requires_grad_() if ask else a for a, ask in zip(found.args, asks, strict=True)
        )
    return found


@pytest.mark.parametrize("draws", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_those_of_finite_differences(kind, draws):
    found = made(kind, draws)
    assert torch.autograd.gradgradcheck(lambda *leaves: found.results("cpu", *leaves), found.leaves)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty_on_one_argument_reaches_all(kind, position):
    """The gradient of one argument depends on the others through tensors that its own first gradient never needed."""
    found = made(kind, None)
    if position >= len(found.leaves):
        pytest.skip("the op has fewer arguments")

    def penalised(backend):
        results = found.results(backend)
        (gradient,) = torch.autograd.grad(
            sum(r.square().sum() for r in results), found.leaves[position:][:1], create_graph=True
        )
        assert gradient.requires_grad
        return torch.autograd.grad(gradient.square().sum(), found.leaves, allow_unused=True, materialize_grads=True)

    for ours, expected in zip(penalised("cpu"), penalised("reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", ["blend", "box_blend"])
def test_only_the_weight_asks(op):
    """Linear in the weight: the gradient depends on the images alone, which ask for it later."""
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    lam = unit(4).double().requires_grad_()
    box = (torch.tensor([1, 1, 3, 4], dtype=torch.int32),) if op == "box_blend" else ()
    index = torch.tensor([1, 2, 3, 3])
    mixed = getattr(ops, op)(x, index, *box, lam)
    (gradient,) = torch.autograd.grad(mixed.sum(), lam, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), x)
    share = torch.ones(5, 6, dtype=torch.float64)
    if box:
        share[1:3, 1:4] = 0
    # sum over n of x[n] - x[index[n]]: how often each image is an own one less how often it is a partner
    count = 1 - torch.bincount(index, minlength=4).double()
    torch.testing.assert_close(found, (count.view(-1, 1, 1, 1) * share).expand_as(x))


@pytest.mark.parametrize("resize", [("nearest", False), ("bilinear", False), ("bilinear", True)])
def test_a_pasted_source(resize):
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    lam = unit(3).double().requires_grad_()
    box, source = (
        torch.tensor([[1, 1, 4, 5]] * 3, dtype=torch.int32),
        torch.tensor([[0, 2, 6, 7]] * 3, dtype=torch.int32),
    )

    def pasted(x, lam):
        options = {"source": source, "resize": resize[0], "align_corners": resize[1]}
        return ops.box_blend(x, torch.tensor([2, 0, 0]), box, lam, **options)

    assert torch.autograd.gradgradcheck(pasted, (x, lam))


def test_flip_blend():
    x = torch.randn(5, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([1, 0, 3, 2], dtype=torch.int32)
    for options in ({"lam": 0.3}, {"box": box}, {"lam": 0.3, "lam_b": 0.6, "box": box}):
        assert torch.autograd.gradgradcheck(lambda x, options=options: ops.flip_blend(x, **options), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", OPS)
def test_the_recorded_gradient_is_the_kernel_s(kind, dtype):
    found = made(kind, 2, dtype)
    results = [r for r in found.results("cpu") if r.requires_grad]
    cotangents = [torch.randn_like(r) for r in results]
    once = torch.autograd.grad(results, found.leaves, cotangents, retain_graph=True)
    again = torch.autograd.grad(results, found.leaves, cotangents, create_graph=True)
    for a, b in zip(once, again, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(
            a, b, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=2e-2 if dtype.itemsize == 2 else 1e-5
        )
