"""The Triton launches that are compiled ahead of time, by the tests and by static_report.py.

The raw functions are called on meta tensors with launches recorded, so what is compiled is what a GPU would be given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastmix.kernels.blend import triton_kernel as blend_kernel
from fastmix.kernels.box_blend import triton_kernel as box_kernel
from fastmix.kernels.flip_blend import triton_kernel as flip_kernel
from fastmix.kernels.mask_blend import triton_kernel as mask_kernel
from fastmix.kernels.mix_binary_cross_entropy import triton_kernel as binary_kernel
from fastmix.kernels.mix_cross_entropy import triton_kernel as loss_kernel
from fastmix.kernels.pair_attention import triton_kernel as attention_kernel
from fastmix.kernels.soft_cross_entropy import triton_kernel as soft_kernel
from fastmix.kernels.triton_common import Launch, record_launches

U8, F16, BF16, F32 = torch.uint8, torch.float16, torch.bfloat16, torch.float32
N, DRAWS = 32, 2


def meta(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def images(dtype: torch.dtype, channels_last: bool = False, samples: int = N) -> torch.Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(samples, 3, 224, 224, dtype=dtype, device="meta", memory_format=order)


INDEX = meta(N, dtype=torch.int64)
INVERSE = (INDEX, meta(N + 1, dtype=torch.int64))
LAM, SCALE, BOX = meta(N), meta(3), meta(N, 4, dtype=torch.int32)
LAM1 = meta()
M = N * DRAWS  # outputs of a forward call
INDEX_M, LAM_M, BOX_M, CELLS_M = meta(M, dtype=torch.int64), meta(M), meta(M, 4, dtype=torch.int32), meta(M, 14, 14)


def blend(dtype, channels_last=False, scale=None, out=None):
    y = images(out or dtype, channels_last, M)
    blend_kernel.blend(images(dtype, channels_last), INDEX_M, LAM_M, scale, scale, y)


def blend_grad(dtype, channels_last=False, scale=None):
    x = images(dtype, channels_last)
    blend_kernel.blend_grad_x(x, INVERSE, LAM, x)
    blend_kernel.blend_grad_lam(x, x, INDEX, LAM, scale, LAM)


def box(dtype, channels_last=False, scale=None, out=None):
    y = images(out or dtype, channels_last, M)
    box_kernel.box_blend(images(dtype, channels_last), INDEX_M, BOX_M, LAM_M, scale, scale, y)


def box_grad(dtype, channels_last=False):
    x = images(dtype, channels_last)
    box_kernel.box_blend_grad_x(x, INVERSE, BOX, LAM, x)
    box_kernel.box_blend_grad_lam(x, x, INDEX, BOX, LAM, None, LAM)


def flip(dtype, channels_last=False):
    x = images(dtype, channels_last)
    flip_kernel.flip_blend(x, LAM, None, meta(N, 4, dtype=torch.int32), False, x)
    flip_kernel.flip_blend(x, LAM, LAM, None, True, images(dtype, channels_last))


def mask(dtype, mode, sigmoid, first=False, channels_last=False, scale=None, out=None):
    x, y = images(dtype, channels_last), images(out or dtype, channels_last, M)
    mask_kernel.mask_blend(x, INDEX_M, CELLS_M, mode, sigmoid, first, scale, scale, y, LAM_M)


def mask_grad(dtype, mode, sigmoid, first=False, channels_last=False):
    x, cells = images(dtype, channels_last), meta(N, 14, 14)
    mask_kernel.mask_blend_grad_x(x, INVERSE, cells, mode, sigmoid, first, x)
    mask_kernel.mask_blend_grad_mask(x, LAM, x, INDEX, cells, mode, sigmoid, first, None, cells)


def every_blend(*shape: int, cells: tuple[int, int]):
    """All blends of float32 images of a shape, with their gradients."""
    n, x = shape[0], meta(*shape)
    index, lam, logits = meta(n, dtype=torch.int64), meta(n), meta(n, *cells)
    inverse, boxes = (index, meta(n + 1, dtype=torch.int64)), meta(n, 4, dtype=torch.int32)
    blend_kernel.blend(x, index, lam, None, None, x)
    blend_kernel.blend_grad_x(x, inverse, lam, x)
    blend_kernel.blend_grad_lam(x, x, index, lam, None, lam)
    box_kernel.box_blend(x, index, boxes, lam, None, None, x)
    box_kernel.box_blend_grad_x(x, inverse, boxes, lam, x)
    box_kernel.box_blend_grad_lam(x, x, index, boxes, lam, None, lam)
    mask_kernel.mask_blend(x, index, logits, 1, True, False, None, None, x, lam)
    mask_kernel.mask_blend_grad_x(x, inverse, logits, 1, True, False, x)
    mask_kernel.mask_blend_grad_mask(x, lam, x, index, logits, 1, True, False, None, logits)


def attention(dtype, depth, r, bias=True, precision="highest"):
    q, row, rows = meta(N, r, depth, dtype=dtype), meta(N, r), meta(M, r)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        key_bias = rows if bias else None
        attention_kernel.pair_attention(q, q, rows, INDEX_M, key_bias, 0.1, rows, rows)
        attention_kernel.pair_attention_cols(q, q, rows, INDEX_M, key_bias, 0.1, rows, rows)
        key_bias, dbias = (row, row) if bias else (None, None)
        attention_kernel.pair_attention_grad(q, q, INVERSE, key_bias, 0.1, row, row, row, row, q, q, dbias, row)
    finally:
        torch.set_float32_matmul_precision(before)


def mix_cross_entropy(dtype, classes, rows=256, smoothing=0.1, decouple=0.0):
    z, y, lam, one, stats = meta(rows, classes, dtype=dtype), meta(rows, dtype=torch.int64), LAM1, LAM1, meta(4, rows)
    loss_kernel.mix_cross_entropy(z, y, y, lam, None, smoothing, decouple, -100, 1, one, stats, one)
    loss_kernel.mix_cross_entropy_grad(one, z, y, y, lam, None, smoothing, decouple, -100, stats, one, z)


def mix_binary_cross_entropy(dtype, classes, rows=256, dense=False):
    z, one, stats = meta(rows, classes, dtype=dtype), LAM1, meta(2, rows)
    y = meta(rows, classes) if dense else meta(rows, dtype=torch.int64)
    binary_kernel.mix_binary_cross_entropy(z, y, y, one, one, 0.1, 0.2, False, -100, 1, one, stats, one)
    binary_kernel.mix_binary_cross_entropy_grad(one, z, y, y, one, one, 0.1, 0.2, False, -100, one, z)


def soft_cross_entropy(dtype, classes, rows=256, pair=True):
    z, y, one, stats = meta(rows, classes, dtype=dtype), meta(rows, classes), LAM1, meta(5, rows)
    mixed = (y, one) if pair else (None, None)
    soft_kernel.soft_cross_entropy(z, y, *mixed, None, 0.1, 1, one, stats, one)
    soft_kernel.soft_cross_entropy_grad(one, z, y, *mixed, None, 0.1, stats, one, z)


BLENDS: dict[str, Callable[[], None]] = {
    "blend-f32": lambda: blend(F32),
    "blend-f16": lambda: blend(F16),
    "blend-u8-normalised-f16": lambda: blend(U8, scale=SCALE, out=F16),
    "blend-u8-normalised-f16-last": lambda: blend(U8, True, SCALE, F16),
    "blend_grad-f32": lambda: blend_grad(F32, scale=SCALE),
    "box_blend-f32": lambda: box(F32),
    "box_blend-u8-last": lambda: box(U8, True),
    "box_blend-u8-normalised-bf16": lambda: box(U8, scale=SCALE, out=BF16),
    "box_blend_grad-f32": lambda: box_grad(F32),
    "box_blend_grad-f16-last": lambda: box_grad(F16, True),
    "flip_blend-f32": lambda: flip(F32),
    "flip_blend-u8-last": lambda: flip(U8, True),
    "mask_blend-nearest-f32": lambda: mask(F32, 0, True),
    "mask_blend-bilinear-f32": lambda: mask(F32, 1, True),
    "mask_blend-bilinear-f16-last": lambda: mask(F16, 1, True, channels_last=True),
    "mask_blend-bicubic-u8-f16": lambda: mask(U8, 2, True, True, scale=SCALE, out=F16),
    "mask_blend_grad-nearest-f32": lambda: mask_grad(F32, 0, False),
    "mask_blend_grad-bilinear-f32": lambda: mask_grad(F32, 1, True),
    "mask_blend_grad-bicubic-f16-last": lambda: mask_grad(F16, 2, True, True, True),
    "every-one-pixel": lambda: every_blend(1, 1, 1, 1, cells=(1, 1)),
    "every-2.5-gigapixel": lambda: every_blend(2, 1, 50_000, 50_000, cells=(7, 5)),
}

ATTENTIONS: dict[str, Callable[[], None]] = {
    "f16-d32-r4096": lambda: attention(F16, 32, 4096),
    "bf16-d512-r196": lambda: attention(BF16, 512, 196),
    "f16-d128-r64": lambda: attention(F16, 128, 64),
    "bf16-d32-r4096-unbiased": lambda: attention(BF16, 32, 4096, bias=False),
    "f16-d512-r196-unbiased": lambda: attention(F16, 512, 196, bias=False),
    "f16-d16-r196": lambda: attention(F16, 16, 196),
    "bf16-d64-r784": lambda: attention(BF16, 64, 784),
    "f16-d96-r196": lambda: attention(F16, 96, 196),
    "bf16-d128-r256-unbiased": lambda: attention(BF16, 128, 256, bias=False),
    "f16-d128-r3136": lambda: attention(F16, 128, 3136),
    "f16-d256-r784": lambda: attention(F16, 256, 784),
    "bf16-d1024-r49": lambda: attention(BF16, 1024, 49),
    "f16-d75-r196": lambda: attention(F16, 75, 196),
    "bf16-d100-r16384": lambda: attention(BF16, 100, 16384, bias=False),
    "f16-d1-r1": lambda: attention(F16, 1, 1),
    "f32-d16-r196": lambda: attention(F32, 16, 196),
    "f32-d512-r196": lambda: attention(F32, 512, 196),
    "f32-d32-r1024-tf32": lambda: attention(F32, 32, 1024, precision="high"),
    "f32-d512-r196-tf32": lambda: attention(F32, 512, 196, precision="high"),
}

LOSSES: dict[str, Callable[[], None]] = {
    "mix_cross_entropy-f32-k1000": lambda: mix_cross_entropy(F32, 1000),
    "mix_cross_entropy-bf16-k21841": lambda: mix_cross_entropy(BF16, 21841, smoothing=0.0),
    "mix_cross_entropy-f16-k1000-decoupled": lambda: mix_cross_entropy(F16, 1000, decouple=0.1),
    "mix_cross_entropy-f32-8x100000": lambda: mix_cross_entropy(F32, 100_000, 8, decouple=0.1),
    "mix_cross_entropy-f32-1x1": lambda: mix_cross_entropy(F32, 1, 1),
    "mix_binary_cross_entropy-bf16-k1000": lambda: mix_binary_cross_entropy(BF16, 1000),
    "mix_binary_cross_entropy-f32-8x100000-dense": lambda: mix_binary_cross_entropy(F32, 100_000, 8, dense=True),
    "soft_cross_entropy-f32-k1000": lambda: soft_cross_entropy(F32, 1000),
    "soft_cross_entropy-bf16-8x100000": lambda: soft_cross_entropy(BF16, 100_000, 8),
    "soft_cross_entropy-f32-k10-plain": lambda: soft_cross_entropy(F32, 10, pair=False),
}

VARIANTS = BLENDS | ATTENTIONS | LOSSES
IEEE = {"f32-d16-r196", "f32-d512-r196"}  # exact float32 products run on the ordinary cores

# Compiled for every architecture by the tests; each other variant for one of them in turn, without
# FASTMIX_COMPILE_ALL=1.
CORE = {
    "blend-f32",
    "box_blend-f32",
    "mask_blend-bilinear-f32",
    "mask_blend_grad-bilinear-f32",
    "f16-d32-r4096",
    "bf16-d512-r196",
}


def launches(name: str, capability: int) -> list[Launch]:
    """Launches of a variant on a GPU of compute capability `10 * major + minor`."""
    with record_launches(capability) as recorded:
        VARIANTS[name]()
    return recorded
