"""The raw Triton functions against the float64 reference; run by test_triton_interpret.py under TRITON_INTERPRET=1.

Triton reads that variable when a kernel is decorated, so these cases need a process of their own:
`TRITON_INTERPRET=1 pytest tests/gpu/triton_cases.py`.

The interpreter truncates float32 to bfloat16 where a GPU rounds: bfloat16 results get a tolerance of one unit in the
last place instead of half a unit.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastmix import reference
from fastmix.kernels.blend import triton_kernel as blend_kernel
from fastmix.kernels.box_blend import triton_kernel as box_kernel
from fastmix.kernels.flip_blend import triton_kernel as flip_kernel
from fastmix.kernels.mask_blend import triton_kernel as mask_kernel
from fastmix.kernels.pair_attention import triton_kernel as attention_kernel

pytestmark = pytest.mark.interp
torch.set_num_threads(1)

U8, F16, BF16, F32, F64 = torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64
RELATIVE = {F16: 2**-10.9, BF16: 2**-7, F32: 2e-6}
INDEX = torch.tensor([1, 1, 0, 3])  # two samples share a partner, sample 2 is nobody's, sample 1 and 3 are their own
LAM = torch.tensor([0.3, 1.0, 0.0, 0.85])
DRAWS = [2, 3]
NORMALIZE = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
MODES = ["nearest", "bilinear", "bicubic"]
LAYOUTS = ["nchw", "channels_last"]


def images(dtype: torch.dtype, layout: str = "nchw", shape: tuple = (4, 3, 9, 14), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype is U8:
        x = torch.randint(0, 256, shape, generator=generator, dtype=U8)
    else:
        x = torch.randn(shape, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def rand(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def poisoned(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    dtype = dtype or like.dtype
    return torch.full_like(like, 77 if dtype is U8 else float("nan"), dtype=dtype)


def repeated(x: Tensor, draws: int) -> Tensor:
    """Float64 copies of the batch, one a draw: what output m mixes is then sample m of a larger batch."""
    return x.double().repeat(draws, *[1] * (x.dim() - 1))


def partners(draws: int) -> Tensor:
    """Partners of all outputs of several draws; the first draw's are INDEX."""
    others = torch.randint(0, 4, (4 * (draws - 1),), generator=torch.Generator().manual_seed(draws))
    return torch.cat([INDEX, others])


def inverse(index: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.argsort(index, stable=True)
    return order, torch.searchsorted(index[order], torch.arange(len(index) + 1))


def affine(normalize: tuple | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """The normalisation as the kernels take it: scale and shift a channel."""
    if normalize is None:
        return None, None
    mean, std = (torch.tensor(c, dtype=F64) for c in normalize)
    return (1 / (std * (255 if dtype is U8 else 1))).float(), (-mean / std).float()


def check(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """`actual` is `expected` (float64) rounded once to its dtype, up to `scale` units of float32 arithmetic."""
    actual, dtype = actual.double(), actual.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual - expected).nan_to_num(0.0, 0.0, 0.0).abs()
    if dtype is U8:
        assert error.max() <= 0.5001
        return
    size = expected.nan_to_num(0.0, 0.0, 0.0).abs()
    allowed = RELATIVE[dtype] * (size if dtype is not F32 else size + 1) * scale + 1e-6 * scale
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"{actual.flatten()[worst]} where {expected.flatten()[worst]} was expected"


def exact(x: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """Copies in float64 that record gradients."""
    return [None if t is None else t.detach().double().requires_grad_() for t in (x, *inputs)]


class TestBlend:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [U8, F16, BF16, F32])
    @pytest.mark.parametrize("normalize", [None, NORMALIZE], ids=["plain", "normalised"])
    def test_matches_reference(self, dtype, layout, normalize):
        x = images(dtype, layout)
        out_dtype = F16 if normalize and dtype is U8 else dtype
        out = poisoned(x, out_dtype)
        blend_kernel.blend(x, INDEX, LAM, *affine(normalize, dtype), out)
        raw = x.double() / 255 if normalize and dtype is U8 else x.double()
        check(out, reference.blend(raw, INDEX, LAM.double(), normalize=normalize))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("lam", [None, torch.tensor(0.25)], ids=["each", "shared"])
    @pytest.mark.parametrize("draws", DRAWS)
    def test_draws(self, draws, lam, layout):
        x, index = images(U8, layout, (4, 3, 21, 30)), partners(draws)
        lam = rand(4 * draws) if lam is None else lam
        out = poisoned(images(F16, layout, (4 * draws, 3, 21, 30)))
        blend_kernel.blend(x, index, lam, *affine(NORMALIZE, U8), out)
        check(out, reference.blend(repeated(x, draws) / 255, index, lam.double(), normalize=NORMALIZE))

    @pytest.mark.parametrize("shape", [(4, 5), (4,), (4, 3, 1500), (4, 2, 3, 4, 5)])
    def test_any_rank(self, shape):
        x, out = images(F32, shape=shape), poisoned(images(F32, shape=shape))
        blend_kernel.blend(x, INDEX, LAM, None, None, out)
        check(out, reference.blend(x.double(), INDEX, LAM.double()))

    def test_two_dimensional_normalised(self):
        x = images(F32, shape=(4, 3))
        out = poisoned(x)
        blend_kernel.blend(x, INDEX, LAM, *affine(NORMALIZE, F32), out)
        check(out, reference.blend(x.double(), INDEX, LAM.double(), normalize=NORMALIZE))

    def test_float32_is_multiply_multiply_add(self):
        x, lam = images(F32, shape=(4, 3, 40, 40)), rand(4)
        out = poisoned(x)
        blend_kernel.blend(x, INDEX, lam, None, None, out)
        weight = lam.view(-1, 1, 1, 1)
        assert torch.equal(out, x * weight + x[INDEX] * (1 - weight))

    def test_scalar_lam_and_single_sample(self):
        x = images(F32, shape=(1, 3, 5, 5))
        out = poisoned(x)
        blend_kernel.blend(x, torch.zeros(1, dtype=torch.int64), torch.tensor(0.25), None, None, out)
        check(out, x.double())

    def test_uint8_rounds_half_to_even(self):
        x = torch.arange(256, dtype=U8).repeat(2, 1)
        x[1] = x[0].flip(0) // 2 * 2
        out = poisoned(x)
        blend_kernel.blend(x, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]), None, None, out)
        assert torch.equal(out, (x.float() * 0.5 + x.flip(0).float() * 0.5).round().to(U8))

    def test_weights_zero_and_one_select(self):
        x = images(F32, shape=(2, 3, 4, 5))
        x[1, :, 1], x[1, :, 2], x[0, 0, 0, 0] = float("inf"), float("nan"), -0.0
        index = torch.tensor([1, 0])
        for lam, expected in ((torch.ones(2), x), (torch.zeros(2), x[index])):
            out = poisoned(x)
            blend_kernel.blend(x, index, lam, None, None, out)
            assert torch.equal(out.view(torch.int32), expected.contiguous().view(torch.int32))

    def test_partner_out_of_range_gives_nan(self):
        index = torch.tensor([1, 4, -1, 2**40])
        for dtype, bad in ((F32, float("nan")), (U8, 0)):
            x, out = images(dtype), poisoned(images(dtype))
            blend_kernel.blend(x, index, LAM, None, None, out)
            check(out[0], reference.blend(x.double(), INDEX, LAM.double())[0])
            assert torch.equal(out[1:].float().nan_to_num(-7), torch.full_like(out[1:], bad).float().nan_to_num(-7))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [F16, BF16, F32])
    def test_gradients(self, dtype, layout):
        x, grad, lam = images(dtype, layout), images(dtype, layout, seed=5), rand(4)
        x64, lam64 = exact(x, lam)
        reference.blend(x64, INDEX, lam64, normalize=NORMALIZE).backward(grad.double())
        grad_x, grad_lam = poisoned(x), poisoned(lam)
        scale, _ = affine(NORMALIZE, dtype)
        scaled = (grad.float() * scale.view(1, -1, 1, 1)).contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        blend_kernel.blend_grad_x(scaled, inverse(INDEX), lam, grad_x)
        blend_kernel.blend_grad_lam(grad, x, INDEX, lam, scale, grad_lam)
        check(grad_x, x64.grad)
        check(grad_lam, lam64.grad, scale=50)

    def test_gradient_at_weights_zero_and_one(self):
        x, grad, lam = images(F32), images(F32, seed=5), torch.tensor([0.0, 1.0, 0.0, 1.0])
        grad[1] = float("inf")
        grad_x = poisoned(x)
        blend_kernel.blend_grad_x(grad, inverse(torch.tensor([3, 0, 3, 3])), lam, grad_x)
        # Sample 0 mixes 3 alone, 1 itself, 2 sample 3, 3 itself.
        expected = torch.stack(
            [torch.zeros_like(grad[0]), grad[1], torch.zeros_like(grad[0]), grad[0] + grad[2] + grad[3]]
        )
        torch.testing.assert_close(grad_x, expected)
        grad_lam = poisoned(lam)
        blend_kernel.blend_grad_lam(images(F32, seed=5), x, INDEX, lam, None, grad_lam)
        expected = (images(F32, seed=5).double() * (x - x[INDEX]).double()).sum((1, 2, 3))
        check(grad_lam, expected, scale=50)

    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    def test_what_a_weight_of_0_meets_is_left_out(self, value):
        x, grad, lam = images(F32), images(F32, seed=5), torch.tensor([0.0, 1.0, 0.4, 1.0])
        x[0, 0, 1, 2] = x[2, 1, 0, 0] = value
        index = torch.tensor([3, 2, 3, 0])
        x64, lam64 = exact(x, lam)
        for kernel, function, extra in (
            (blend_kernel.blend_grad_lam, reference.blend, ()),
            (box_kernel.box_blend_grad_lam, reference.box_blend, (BOX,)),
        ):
            lam64.grad, grad_lam = None, poisoned(lam)
            function(x64, index, *extra, lam64).backward(grad.double())
            kernel(grad, x, index, *extra, lam, None, grad_lam)
            assert lam64.grad[[0, 1, 3]].isfinite().all()
            check(grad_lam[[0, 1, 3]], lam64.grad[[0, 1, 3]], scale=50)

    def test_long_rows_and_bad_partners_in_gradients(self):
        x, grad = images(F32, shape=(2, 9001)), images(F32, shape=(2, 9001), seed=5)
        grad_lam = poisoned(x[:, 0].contiguous())
        blend_kernel.blend_grad_lam(grad, x, torch.tensor([1, 2]), torch.tensor(0.3), None, grad_lam)
        assert grad_lam[1].isnan()
        check(grad_lam[:1], (grad[0].double() * (x[0] - x[1]).double()).sum()[None], scale=500)

    def test_empty_batch(self):
        x = torch.empty(0, 3, 4, 4)
        none = torch.empty(0, dtype=torch.int64)
        blend_kernel.blend(x, none, torch.empty(0), None, None, x)
        blend_kernel.blend_grad_x(x, (none, torch.zeros(1, dtype=torch.int64)), torch.empty(0), x)
        blend_kernel.blend_grad_lam(x, x, none, torch.empty(0), None, torch.empty(0))


BOX = torch.tensor([[1, 2, 6, 9], [-3, -3, 50, 50], [5, 5, 2, 2], [4, -1, 9, 20]], dtype=torch.int32)


class TestBoxBlend:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [U8, F16, BF16, F32])
    @pytest.mark.parametrize("lam", [None, LAM, torch.tensor(0.6)], ids=["paste", "lam", "scalar"])
    def test_matches_reference(self, dtype, layout, lam):
        x = images(dtype, layout)
        out = poisoned(x)
        box_kernel.box_blend(x, INDEX, BOX, lam, None, None, out)
        check(out, reference.box_blend(x.double(), INDEX, BOX, None if lam is None else lam.double()))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("lam", [None, rand(12)], ids=["paste", "lam"])
    @pytest.mark.parametrize("draws", DRAWS)
    def test_draws(self, draws, lam, layout):
        x, index = images(F32, layout, (4, 3, 21, 30)), partners(draws)
        lam = None if lam is None else lam[: 4 * draws]
        box = torch.cat([BOX + shift for shift in range(draws)])
        out = poisoned(images(F32, layout, (4 * draws, 3, 21, 30)))
        box_kernel.box_blend(x, index, box, lam, None, None, out)
        check(out, reference.box_blend(repeated(x, draws), index, box, None if lam is None else lam.double()))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_normalised(self, layout):
        x = images(U8, layout)
        out = poisoned(x, BF16)
        box_kernel.box_blend(x, INDEX, BOX, LAM, *affine(NORMALIZE, U8), out)
        check(out, reference.box_blend(x.double() / 255, INDEX, BOX, LAM.double(), normalize=NORMALIZE))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_several_tiles(self, layout):
        x = images(F32, layout, (2, 3, 37, 41))
        box = torch.tensor([[20, 0, 30, 41], [0, 7, 36, 8]], dtype=torch.int32)
        out = poisoned(x)
        box_kernel.box_blend(x, torch.tensor([1, 0]), box, None, None, None, out)
        check(out, reference.box_blend(x.double(), torch.tensor([1, 0]), box))

    def test_pasting_copies_bits(self):
        x = images(F32, shape=(2, 3, 8, 8))
        x[1, :, :, 0], x[1, :, 7], x[0, 0, 0, 0] = float("inf"), float("nan"), -0.0
        box = torch.tensor([[2, 2, 5, 6], [0, 0, 0, 0]], dtype=torch.int32)
        out, expected = poisoned(x), x.clone()
        expected[0, :, 2:5, 2:6] = x[1, :, 2:5, 2:6]
        box_kernel.box_blend(x, torch.tensor([1, 0]), box, None, None, None, out)
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("lam", [None, rand(4)], ids=["paste", "lam"])
    def test_gradients(self, layout, lam):
        x, grad = images(F32, layout), images(F32, layout, seed=5)
        x64, lam64 = exact(x, lam)
        reference.box_blend(x64, INDEX, BOX, lam64).backward(grad.double())
        grad_x = poisoned(x)
        box_kernel.box_blend_grad_x(grad, inverse(INDEX), BOX, lam, grad_x)
        check(grad_x, x64.grad)
        if lam is not None:
            grad_lam = poisoned(lam)
            box_kernel.box_blend_grad_lam(grad, x, INDEX, BOX, lam, None, grad_lam)
            check(grad_lam, lam64.grad, scale=50)

    def test_partner_out_of_range_gives_nan(self):
        x, index = images(F32), torch.tensor([1, 9, -1, 3])
        out = poisoned(x)
        box_kernel.box_blend(x, index, BOX, LAM, None, None, out)
        assert out[1:3].isnan().all() and not out[[0, 3]].isnan().any()
        grad_lam = poisoned(LAM)
        box_kernel.box_blend_grad_lam(x, x, index, BOX, LAM, None, grad_lam)
        assert grad_lam.isnan().tolist() == [False, True, True, False]


SIGMOIDS = [(False, False), (True, False), (True, True)]
SIGMOID_IDS = ["plain", "sigmoid", "sigmoid_first"]


def mask_reference(x, index, mask, mode, sigmoid, first, **options):
    return reference.mask_blend(x, index, mask, mode, "sigmoid" if sigmoid else "none", first, **options)


class TestFlipBlend:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [U8, F16, BF16, F32])
    @pytest.mark.parametrize("box", [None, BOX], ids=["blend", "box"])
    @pytest.mark.parametrize("lam", [None, LAM, torch.tensor(0.6)], ids=["paste", "lam", "scalar"])
    def test_matches_reference(self, lam, box, dtype, layout):
        for n in (3, 4):
            weights, boxes = lam[:n] if lam is not None and lam.dim() else lam, None if box is None else box[:n]
            x = images(dtype, layout, (n, 3, 9, 14))
            expected = reference.flip_blend(x.double(), None if lam is None else weights.double(), boxes, dtype=F64)
            out, inside = poisoned(x), x.clone()
            flip_kernel.flip_blend(x, weights, None, boxes, False, out)
            flip_kernel.flip_blend(inside, weights, None, boxes, False, inside)
            check(out, expected)
            assert torch.equal(inside, out)

    def test_other_weights_and_adjoint(self):
        x, other = images(F32, shape=(4, 3, 37, 41)).requires_grad_(), rand(4, seed=2)
        mixed = reference.flip_blend(x, LAM, BOX, lam_b=other)
        cotangent, out = randn(*x.shape, seed=3), poisoned(x.detach())
        (expected,) = torch.autograd.grad(mixed, x, cotangent)
        flip_kernel.flip_blend(x.detach(), LAM, other, BOX, False, out)
        check(out, mixed.detach().double())
        flip_kernel.flip_blend(cotangent, LAM, other, BOX, True, out)
        check(out, expected.double())


class TestMaskBlend:
    @pytest.mark.parametrize("sigmoid, first", SIGMOIDS, ids=SIGMOID_IDS)
    @pytest.mark.parametrize("mode", range(3), ids=MODES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("cells", [(2, 3), (9, 14), (1, 1), (4, 5)], ids=str)
    def test_matches_reference(self, cells, layout, mode, sigmoid, first):
        x, mask = images(F32, layout), randn(4, *cells) if sigmoid else rand(4, *cells)
        out, mean = poisoned(x), poisoned(LAM)
        mask_kernel.mask_blend(x, INDEX, mask, mode, sigmoid, first, None, None, out, mean)
        mixed64, mean64 = mask_reference(x.double(), INDEX, mask.double(), MODES[mode], sigmoid, first)
        check(out, mixed64)
        check(mean, mean64)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", [U8, F16, BF16])
    def test_dtypes(self, dtype, layout):
        x, mask = images(dtype, layout, (4, 3, 21, 30)), rand(4, 4, 4)
        out, mean = poisoned(x), poisoned(LAM)
        mask_kernel.mask_blend(x, INDEX, mask, 1, False, False, None, None, out, mean)
        mixed64, mean64 = mask_reference(x.double(), INDEX, mask.double(), "bilinear", False, False)
        check(out, mixed64)
        check(mean, mean64)

    @pytest.mark.parametrize("mode", range(3), ids=MODES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("draws", DRAWS)
    def test_draws(self, draws, layout, mode):
        x, index, mask = images(BF16, layout, (4, 3, 21, 30)), partners(draws), randn(4 * draws, 4, 5)
        out, mean = poisoned(images(BF16, layout, (4 * draws, 3, 21, 30))), poisoned(rand(4 * draws))
        mask_kernel.mask_blend(x, index, mask, mode, True, False, None, None, out, mean)
        mixed64, mean64 = mask_reference(repeated(x, draws), index, mask.double(), MODES[mode], True, False)
        check(out, mixed64)
        check(mean, mean64)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_normalised_and_several_tiles(self, layout):
        x, mask = images(U8, layout, (4, 3, 33, 41)), rand(4, 4, 4)
        out, mean = poisoned(x, F32), poisoned(LAM)
        mask_kernel.mask_blend(x, INDEX, mask, 0, False, False, *affine(NORMALIZE, U8), out, mean)
        mixed64, mean64 = mask_reference(
            x.double() / 255, INDEX, mask.double(), "nearest", False, False, normalize=NORMALIZE
        )
        check(out, mixed64, scale=2)
        check(mean, mean64)

    @pytest.mark.parametrize("mode", range(3), ids=MODES)
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_constant_mask_selects_bits(self, mode, value):
        x = images(F32, shape=(2, 3, 7, 11))
        x[1, :, 1], x[1, :, 2] = float("inf"), float("nan")
        out, mean, index = poisoned(x), torch.empty(2), torch.tensor([1, 0])
        mask_kernel.mask_blend(x, index, torch.full((2, 3, 4), value), mode, False, False, None, None, out, mean)
        expected = x if value else x[index]
        assert torch.equal(out.view(torch.int32), expected.contiguous().view(torch.int32))
        assert mean.tolist() == [value, value]

    def test_partner_out_of_range_gives_nan(self):
        x, index, mask = images(F32), torch.tensor([1, 9, -1, 3]), rand(4, 2, 3)
        out, mean, grad_mask = poisoned(x), poisoned(LAM), poisoned(mask)
        mask_kernel.mask_blend(x, index, mask, 1, False, False, None, None, out, mean)
        mask_kernel.mask_blend_grad_mask(x, None, x, index, mask, 1, False, False, None, grad_mask)
        for tensor in (out, mean, grad_mask):
            assert tensor[1:3].isnan().all() and not tensor[[0, 3]].isnan().any()

    @pytest.mark.parametrize("sigmoid, first", SIGMOIDS, ids=SIGMOID_IDS)
    @pytest.mark.parametrize("mode", range(3), ids=MODES)
    @pytest.mark.parametrize("cells", [(2, 3), (9, 14), (1, 1), (4, 5), (12, 20)], ids=str)
    def test_mask_gradient(self, cells, mode, sigmoid, first):
        layout = LAYOUTS[sum(cells) % 2]
        x, grad, mask = images(F32, layout), images(F32, layout, seed=5), 0.05 + 0.9 * rand(4, *cells)
        x64, mask64 = exact(x, mask)
        mixed, mean = mask_reference(x64, INDEX, mask64, MODES[mode], sigmoid, first, normalize=NORMALIZE)
        grad_mean = randn(4)
        torch.autograd.backward([mixed, mean], [grad.double(), grad_mean.double()])
        grad_mask = poisoned(mask)
        scale, _ = affine(NORMALIZE, F32)
        mask_kernel.mask_blend_grad_mask(grad, grad_mean, x, INDEX, mask, mode, sigmoid, first, scale, grad_mask)
        check(grad_mask, mask64.grad, scale=50)

    @pytest.mark.parametrize("sigmoid, first", SIGMOIDS, ids=SIGMOID_IDS)
    def test_mask_gradient_of_the_mean_alone(self, sigmoid, first):
        x, mask, grad_mean = images(F32), rand(4, 4, 5), randn(4)
        _, mask64 = exact(x, mask)
        mask_reference(x.double(), INDEX, mask64, "bilinear", sigmoid, first)[1].backward(grad_mean.double())
        grad_mask = poisoned(mask)
        mask_kernel.mask_blend_grad_mask(None, grad_mean, x, INDEX, mask, 1, sigmoid, first, None, grad_mask)
        check(grad_mask, mask64.grad)

    def test_mask_gradient_of_many_channels(self):
        x, grad = (images(F16, "channels_last", (2, 70, 6, 5), seed) for seed in (0, 5))
        index, mask = torch.tensor([1, 0]), rand(2, 3, 2)
        _, mask64 = exact(x, mask)
        mask_reference(x.double(), index, mask64, "bilinear", False, False)[0].backward(grad.double())
        grad_mask = poisoned(mask)
        mask_kernel.mask_blend_grad_mask(grad, None, x, index, mask, 1, False, False, None, grad_mask)
        check(grad_mask, mask64.grad, scale=100)

    def test_mask_gradient_stays_local(self):
        x, grad, mask = images(F32), images(F32, seed=5), rand(4, 3, 7)
        grad[0, 0, 0, 0] = float("nan")
        grad_mask = poisoned(mask)
        mask_kernel.mask_blend_grad_mask(grad, None, x, INDEX, mask, 1, False, False, None, grad_mask)
        assert grad_mask.isnan().nonzero().tolist() == [[0, 0, 0]]

    @pytest.mark.parametrize("sigmoid, first", SIGMOIDS, ids=SIGMOID_IDS)
    @pytest.mark.parametrize("mode", range(3), ids=MODES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_image_gradient(self, layout, mode, sigmoid, first):
        x, grad, mask = images(F32, layout), images(F32, layout, seed=5), 0.05 + 0.9 * rand(4, 4, 5)
        (x64,) = exact(x)
        mask_reference(x64, INDEX, mask.double(), MODES[mode], sigmoid, first)[0].backward(grad.double())
        grad_x = poisoned(x)
        mask_kernel.mask_blend_grad_x(grad, inverse(INDEX), mask, mode, sigmoid, first, grad_x)
        check(grad_x, x64.grad)


# Depths: one block, a padded one, several blocks with a tail, rows that no vector access fits. Positions: a tail, none.
SIZES = {
    F16: [(5, 16), (70, 24), (64, 32), (67, 75), (66, 136), (1, 3)],
    BF16: [(70, 24), (34, 75)],
    F32: [(5, 16), (70, 24), (35, 70), (1, 3)],
}
HALF = {F16: 4e-3, BF16: 3e-2, F32: 2e-5}


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Largest error below the dtype's share of the largest value."""
    assert not actual.isnan().any()
    error = (actual.double() - expected).abs().max()
    assert error <= HALF[dtype] * expected.abs().max() + 1e-12, f"{error} of {expected.abs().max()}"


@pytest.fixture
def bfloat16_products(monkeypatch):
    """The interpreter keeps bfloat16 as bits and its `dot` would multiply those: hand it float32 instead."""
    plain = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *args):
        return plain(self, widened(a), widened(b), *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("bfloat16_products")
class TestPairAttention:
    @staticmethod
    def inputs(r, depth, dtype, bias=True):
        q, k = randn(4, r, depth, seed=1).to(dtype), randn(4, r, depth, seed=2).to(dtype)
        return q, k, randn(4, r, seed=3), randn(4, r, seed=4) if bias else None

    @pytest.mark.parametrize("dtype, r, depth", [(dtype, *size) for dtype in SIZES for size in SIZES[dtype]])
    @pytest.mark.parametrize("transpose", [False, True], ids=["rows", "cols"])
    def test_matches_reference_with_gradients(self, r, depth, dtype, transpose):
        q, k, v, bias = self.inputs(r, depth, dtype, bias=r != 70)
        scale, grad = depth**-0.5, randn(4, r, seed=6)
        q64, k64, v64, bias64 = exact(q, k, v, bias)
        out64 = reference.pair_attention(q64, k64, v64, INDEX, bias64, scale, transpose)
        out64.backward(grad.double())

        out, lse = poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q, k, v, INDEX, bias, scale, out, lse)
        if transpose:
            attention_kernel.pair_attention_cols(q, k, v, INDEX, bias, scale, lse, out)
        near(out, out64.detach(), dtype)

        a, b, c = (grad, v, out)
        if transpose:
            rows = poisoned(v)
            attention_kernel.pair_attention(q, k, grad, INDEX, bias, scale, rows, poisoned(v))
            a, b, c = v, grad, rows
        dq, dk, dbias, cols = poisoned(q), poisoned(k), poisoned(v), poisoned(v)
        attention_kernel.pair_attention_grad(q, k, inverse(INDEX), bias, scale, lse, a, b, c, dq, dk, dbias, cols)
        near(dq, q64.grad, dtype)
        near(dk, k64.grad, dtype)
        near(c if transpose else cols, v64.grad, dtype)
        if bias is not None:
            near(dbias, bias64.grad, dtype)
        assert not dk[2].any(), "sample 2 is nobody's partner"

    @pytest.mark.parametrize("bias", [False, True], ids=["bare", "biased"])
    @pytest.mark.parametrize("draws", DRAWS)
    def test_draws(self, draws, bias):
        q, k, _, _ = self.inputs(70, 16, F32)
        index, v = partners(draws), randn(4 * draws, 70, seed=3)
        key_bias = randn(4 * draws, 70, seed=4) if bias else None
        out, lse, cols = poisoned(v), poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q, k, v, index, key_bias, 0.3, out, lse)
        attention_kernel.pair_attention_cols(q, k, v, index, key_bias, 0.3, lse, cols)
        bias64 = None if key_bias is None else key_bias.double()
        for actual, transpose in ((out, False), (cols, True)):
            inputs = repeated(q, draws), repeated(k, draws), v.double(), index, bias64, 0.3
            near(actual, reference.pair_attention(*inputs, transpose), F32)

    @pytest.mark.parametrize("capability", [90, 100])
    @pytest.mark.parametrize("dtype, r, depth", [(F16, 64, 16), (BF16, 70, 24), (F16, 67, 75), (F16, 66, 136)])
    def test_tiles_of_every_gpu(self, monkeypatch, capability, dtype, r, depth):
        monkeypatch.setattr(attention_kernel, "capability", lambda device: capability)
        self.test_matches_reference_with_gradients(r, depth, dtype, transpose=False)

    @pytest.mark.parametrize("scale", [0.0, -0.3, 40.0])
    @pytest.mark.parametrize("r", [64, 70])
    def test_any_scale(self, r, scale):
        q, k, v, _ = self.inputs(r, 16, F32)
        out, lse = poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q, k, v, INDEX, None, scale, out, lse)
        near(out, reference.pair_attention(q.double(), k.double(), v.double(), INDEX, None, scale), F32)
        scores = scale * q.double() @ k[INDEX].double().mT
        near(lse, scores.logsumexp(2), F32)

    def test_shared_tensor_and_only_some_outputs(self):
        q, _, v, bias = self.inputs(21, 32, F32)
        out, lse = poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q, q, v, INDEX, bias, 0.3, out, lse)
        near(out, reference.pair_attention(q.double(), q.double(), v.double(), INDEX, bias.double(), 0.3), F32)
        wanted = [poisoned(q), poisoned(q), poisoned(v), poisoned(v)]
        args = (q, q, inverse(INDEX), bias, 0.3, lse, v, v, out)
        attention_kernel.pair_attention_grad(*args, *wanted)
        for i, expected in enumerate(wanted):
            only = [poisoned(t) if j == i else None for j, t in enumerate(wanted)]
            attention_kernel.pair_attention_grad(*args, *only)
            assert torch.equal(only[i], expected)

    @pytest.mark.parametrize("size", [1e-12, 1e-5, 1e6])
    def test_float16_gradients_keep_their_scale(self, size):
        q, k, v, _ = self.inputs(40, 16, F16)
        grad = randn(4, 40, seed=6) * size
        q64, k64 = exact(q, k)
        reference.pair_attention(q64, k64, v.double(), INDEX, None, 0.25).backward(grad.double())
        out, lse, dq, dk = poisoned(v), poisoned(v), poisoned(q, F32), poisoned(k, F32)
        attention_kernel.pair_attention(q, k, v, INDEX, None, 0.25, out, lse)
        attention_kernel.pair_attention_grad(q, k, inverse(INDEX), None, 0.25, lse, grad, v, out, dq, dk, None, None)
        near(dq, q64.grad, F16)
        near(dk, k64.grad, F16)

    def test_masked_keys_and_extreme_logits(self):
        q, k, v, bias = self.inputs(70, 16, F32)
        bias[:, :66] = float("-inf")  # the first block of keys is masked as a whole
        out, lse = poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q * 1e4, k, v, INDEX, bias, 1.0, out, lse)
        near(out, reference.pair_attention(q.double() * 1e4, k.double(), v.double(), INDEX, bias.double(), 1.0), F32)
        assert lse.isfinite().all()

    def test_partner_out_of_range_gives_nan(self):
        q, k, v, _ = self.inputs(20, 16, F32)
        index = torch.tensor([1, 4, -1, 3])
        good, bad = [0, 3], [1, 2]
        out, lse, cols = poisoned(v), poisoned(v), poisoned(v)
        attention_kernel.pair_attention(q, k, v, index, None, 0.2, out, lse)
        attention_kernel.pair_attention_cols(q, k, v, index, None, 0.2, lse, cols)
        dq, dk, dbias, dv = poisoned(q), poisoned(k), v.clone(), v.clone()
        attention_kernel.pair_attention_grad(q, k, inverse(index), None, 0.2, lse, v, v, out, dq, dk, dbias, dv)
        for tensor in (out, lse, cols, dq, dbias, dv):
            assert tensor[bad].isnan().all() and not tensor[good].isnan().any()
        assert not dk.isnan().any()
