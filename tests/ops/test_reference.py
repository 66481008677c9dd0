"""The reference against literal loops, `F.interpolate` and finite differences: it is the oracle of everything else."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastmix import reference
from fastmix.reference.upsample import MODES, upsample


def test_blend_is_the_loop():
    x, index = torch.randn(3, 2, 2, 3, dtype=torch.float64), torch.tensor([2, 0, 0])
    lam = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    out = reference.blend(x, index, lam)
    for n in range(3):
        for c in range(2):
            for i in range(2):
                for j in range(3):
                    w = lam[n].item()
                    assert out[n, c, i, j] == w * x[n, c, i, j] + (1 - w) * x[index[n], c, i, j]


def test_box_blend_is_the_loop():
    x, index = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.tensor([1, 2, 0])
    box = torch.tensor([[1, 1, 3, 4], [-2, 2, 9, 3], [3, 3, 1, 1]], dtype=torch.int32)
    out = reference.box_blend(x, index, box, torch.tensor(0.3, dtype=torch.float64))
    for n in range(3):
        y0, x0, y1, x1 = box[n].tolist()
        for i in range(4):
            for j in range(5):
                w = 0.0 if y0 <= i < y1 and x0 <= j < x1 else 0.3
                expected = w * x[n, :, i, j] + (1 - w) * x[index[n], :, i, j]
                torch.testing.assert_close(out[n, :, i, j], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "size", [((3, 4), (12, 16)), ((5, 7), (17, 23)), ((8, 8), (8, 8)), ((9, 6), (4, 5)), ((1, 1), (6, 3))]
)
def test_upsample_is_interpolate(mode, size):
    (h, w), (height, width) = size
    mask = torch.randn(2, h, w, dtype=torch.float64)
    options = {} if mode == "nearest" else {"align_corners": False}
    expected = F.interpolate(mask[:, None], size=(height, width), mode=mode, **options)[:, 0]
    torch.testing.assert_close(upsample(mask, height, width, mode), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
def test_mask_blend_is_the_formula(first):
    x, index = torch.rand(3, 2, 6, 8, dtype=torch.float64), torch.tensor([1, 2, 0])
    logits = torch.randn(3, 2, 3, dtype=torch.float64)

    def up(m):
        return F.interpolate(m[:, None], size=(6, 8), mode="bilinear", align_corners=False)

    mask = up(logits.sigmoid()) if first else up(logits).sigmoid()
    mixed, mean = reference.mask_blend(x, index, logits, "bilinear", "sigmoid", first)
    torch.testing.assert_close(mixed, mask * x + (1 - mask) * x[index])
    torch.testing.assert_close(mean, mask.mean((1, 2, 3)))


@pytest.mark.parametrize("transpose", [False, True])
def test_pair_attention_is_the_loop(transpose):
    q, k = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    v, bias = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    index, scale = torch.tensor([1, 1]), 0.7
    out = reference.pair_attention(q, k, v, index, bias, scale, transpose)
    for n in range(2):
        p = torch.zeros(4, 4, dtype=torch.float64)
        for i in range(4):
            scores = [
                scale * sum((q[n, i, c] * k[index[n], s, c]).item() for c in range(3)) + bias[n, s].item()
                for s in range(4)
            ]
            total = sum(math.exp(s) for s in scores)
            for s in range(4):
                p[i, s] = math.exp(scores[s]) / total
        expected = p.T @ v[n] if transpose else p @ v[n]
        torch.testing.assert_close(out[n], expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_right_by_finite_differences():
    index = torch.tensor([1, 1, 0])
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    lam = torch.rand(3, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[0, 1, 2, 3], [1, 1, 4, 4], [0, 0, 0, 0]], dtype=torch.int32)
    norm = ((0.1, 0.2), (0.5, 2.0))
    assert torch.autograd.gradcheck(lambda x, lam: reference.blend(x, index, lam, normalize=norm), (x, lam))
    assert torch.autograd.gradcheck(lambda x, lam: reference.box_blend(x, index, box, lam), (x, lam))
    for mode in MODES:
        assert torch.autograd.gradcheck(
            lambda x, m, mode=mode: reference.mask_blend(x, index, m, mode, "sigmoid"), (x, mask)
        )
    q, k = (torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v, bias = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for transpose in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, k, v, b, t=transpose: reference.pair_attention(q, k, v, index, b, None, t), (q, k, v, bias)
        )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_exact_weights_select_and_keep_their_gradient(weight):
    x = torch.tensor([[1.0, -2.0], [torch.inf, torch.nan]], dtype=torch.float64)
    index = torch.tensor([1, 0])
    lam = torch.full((2,), weight, dtype=torch.float64)
    assert torch.equal(reference.blend(x, index, lam).nan_to_num(7), (x if weight else x[index]).nan_to_num(7))
    finite = torch.randn(2, 5, dtype=torch.float64)
    lam.requires_grad_()
    reference.blend(finite, index, lam).sum().backward()
    torch.testing.assert_close(lam.grad, (finite - finite[index]).sum(1))


def test_uint8_is_rounded_half_to_even_and_normalised_from_bytes():
    x, index = torch.tensor([[1, 2, 250], [2, 5, 255]], dtype=torch.uint8), torch.tensor([1, 0])
    assert reference.blend(x, index, 0.5).tolist() == [[2, 4, 252], [2, 4, 252]]
    images = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)
    out = reference.blend(images, torch.tensor([0]), 1.0, normalize=((0.2, 0.1, 0.0), (1, 2, 0.5)), dtype=torch.float64)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.05, 0.4], dtype=torch.float64), rtol=0, atol=1e-7)
