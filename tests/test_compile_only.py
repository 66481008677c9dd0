"""Every Triton kernel compiles for GPUs that are not here, and its machine code is what the design promises.

The raw functions are called on meta tensors with launches recorded, so what is compiled is what a GPU would be given.
The core variants are compiled for every architecture, each further one for a single architecture in turn;
FASTMIX_COMPILE_ALL=1 compiles everything for all (several minutes).
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from aot import compile_launch

from fastmix.kernels.blend import triton_kernel as blend_kernel
from fastmix.kernels.box_blend import triton_kernel as box_kernel
from fastmix.kernels.mask_blend import triton_kernel as mask_kernel
from fastmix.kernels.pair_attention import triton_kernel as attention_kernel
from fastmix.kernels.triton_common import record_launches

CAPABILITIES = (80, 90, 100)
SHARED_LIMIT = 99 * 1024  # bytes a program may have on the smallest of the GPUs served
TENSOR_CORE = {80: r"HMMA\S*", 90: r"HGMMA\S*", 100: r"UTC\w*MMA\S*"}
LOCAL_MEMORY = r"(?:LDL|STL)\S*"
N = 32


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def images(dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(N, 3, 224, 224, dtype=dtype, device="meta", memory_format=order)


INDEX = meta(N, dtype=torch.int64)
INVERSE = (INDEX, meta(N + 1, dtype=torch.int64))
LAM, SCALE, BOX = meta(N), meta(3), meta(N, 4, dtype=torch.int32)


def blend(dtype, channels_last=False, scale=None, out=None):
    x = images(dtype, channels_last)
    y = images(out or dtype, channels_last)
    blend_kernel.blend(x, INDEX, LAM, scale, scale, y)


def blend_grad(dtype, channels_last=False, scale=None):
    x = images(dtype, channels_last)
    blend_kernel.blend_grad_x(x, INVERSE, LAM, x)
    blend_kernel.blend_grad_lam(x, x, INDEX, scale, LAM)


def box(dtype, channels_last=False, scale=None, out=None):
    y = images(out or dtype, channels_last)
    box_kernel.box_blend(images(dtype, channels_last), INDEX, BOX, LAM, scale, scale, y)


def box_grad(dtype, channels_last=False):
    x = images(dtype, channels_last)
    box_kernel.box_blend_grad_x(x, INVERSE, BOX, LAM, x)
    box_kernel.box_blend_grad_lam(x, x, INDEX, BOX, None, LAM)


def mask(dtype, mode, sigmoid, first=False, channels_last=False, scale=None, out=None):
    y = images(out or dtype, channels_last)
    cells = meta(N, 14, 14)
    mask_kernel.mask_blend(images(dtype, channels_last), INDEX, cells, mode, sigmoid, first, scale, scale, y, LAM)


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
    blend_kernel.blend_grad_lam(x, x, index, None, lam)
    box_kernel.box_blend(x, index, boxes, lam, None, None, x)
    box_kernel.box_blend_grad_x(x, inverse, boxes, lam, x)
    box_kernel.box_blend_grad_lam(x, x, index, boxes, None, lam)
    mask_kernel.mask_blend(x, index, logits, 1, True, False, None, None, x, lam)
    mask_kernel.mask_blend_grad_x(x, inverse, logits, 1, True, False, x)
    mask_kernel.mask_blend_grad_mask(x, lam, x, index, logits, 1, True, False, None, logits)


BLENDS = {
    "blend-f32": lambda: blend(torch.float32),
    "blend-f16": lambda: blend(torch.float16),
    "blend-u8-normalised-f16": lambda: blend(torch.uint8, scale=SCALE, out=torch.float16),
    "blend-u8-normalised-f16-last": lambda: blend(torch.uint8, True, SCALE, torch.float16),
    "blend_grad-f32": lambda: blend_grad(torch.float32, scale=SCALE),
    "box_blend-f32": lambda: box(torch.float32),
    "box_blend-u8-last": lambda: box(torch.uint8, True),
    "box_blend-u8-normalised-bf16": lambda: box(torch.uint8, scale=SCALE, out=torch.bfloat16),
    "box_blend_grad-f32": lambda: box_grad(torch.float32),
    "box_blend_grad-f16-last": lambda: box_grad(torch.float16, True),
    "mask_blend-nearest-f32": lambda: mask(torch.float32, 0, True),
    "mask_blend-bilinear-f32": lambda: mask(torch.float32, 1, True),
    "mask_blend-bilinear-f16-last": lambda: mask(torch.float16, 1, True, channels_last=True),
    "mask_blend-bicubic-u8-f16": lambda: mask(torch.uint8, 2, True, True, scale=SCALE, out=torch.float16),
    "mask_blend_grad-nearest-f32": lambda: mask_grad(torch.float32, 0, False),
    "mask_blend_grad-bilinear-f32": lambda: mask_grad(torch.float32, 1, True),
    "mask_blend_grad-bicubic-f16-last": lambda: mask_grad(torch.float16, 2, True, True, True),
    "every-one-pixel": lambda: every_blend(1, 1, 1, 1, cells=(1, 1)),
    "every-2.5-gigapixel": lambda: every_blend(2, 1, 50_000, 50_000, cells=(7, 5)),
}


def attention(dtype, depth, r, bias=True, precision="highest"):
    q, row = meta(N, r, depth, dtype=dtype), meta(N, r)
    key_bias = row if bias else None
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        attention_kernel.pair_attention(q, q, row, INDEX, key_bias, 0.1, row, row)
        attention_kernel.pair_attention_cols(q, q, row, INDEX, key_bias, 0.1, row, row)
        attention_kernel.pair_attention_grad(q, q, INVERSE, key_bias, 0.1, row, row, row, row, q, q, row, row)
    finally:
        torch.set_float32_matmul_precision(before)


ATTENTIONS = {
    "f16-d128": lambda: attention(torch.float16, 128, 256),
    "bf16-d512": lambda: attention(torch.bfloat16, 512, 196, bias=False),
    "f16-d32-r1024": lambda: attention(torch.float16, 32, 1024),
    "f16-d75": lambda: attention(torch.float16, 75, 196),
    "bf16-d200": lambda: attention(torch.bfloat16, 200, 196),
    "f16-d64": lambda: attention(torch.float16, 64, 196),
    "f16-d16": lambda: attention(torch.float16, 16, 1024),
    "f16-d96-r1024": lambda: attention(torch.float16, 96, 1024),
    "f32-d512": lambda: attention(torch.float32, 512, 196),
    "f16-r1-d1": lambda: attention(torch.float16, 1, 1),
    "f32-d16": lambda: attention(torch.float32, 16, 196),
    "f32-d512-tf32": lambda: attention(torch.float32, 512, 196, precision="high"),
}


IEEE = {"f32-d16", "f32-d512"}  # exact float32 products run on the ordinary cores
CORE = {
    "blend-f32",
    "box_blend-f32",
    "mask_blend-bilinear-f32",
    "mask_blend_grad-bilinear-f32",
    "f16-d128",
    "bf16-d512",
}


def pairs(variants: dict) -> list:
    """(variant, compute capability) to compile."""
    everything = os.environ.get("FASTMIX_COMPILE_ALL") == "1"
    chosen = []
    for i, name in enumerate(variants):
        one = CAPABILITIES[i % len(CAPABILITIES)]
        chosen += [(name, c) for c in CAPABILITIES if everything or name in CORE or c == one]
    return [pytest.param(name, c, id=f"{name}-sm{c}") for name, c in chosen]


def compiled(call, capability):
    with record_launches() as launches:
        call()
    assert launches
    return [(launch.kernel.__name__, compile_launch(launch, capability)) for launch in launches]


@pytest.mark.parametrize("name, capability", pairs(BLENDS))
def test_blends(name, capability):
    for kernel, binary in compiled(BLENDS[name], capability):
        assert binary.count("EXIT") > 0, kernel
        assert binary.count(LOCAL_MEMORY) == 0, kernel
        assert binary.shared <= SHARED_LIMIT, kernel


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["blend-f32", "box_blend-f32"])
def test_float32_blends_use_no_fused_multiply_add(name, capability):
    for kernel, binary in compiled(BLENDS[name], capability):
        assert binary.count(r"FMUL\S*") > 0, kernel
        assert binary.count(r"FFMA\S*") == 0, kernel


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["blend-f32", "box_blend-f32", "mask_blend-bilinear-f32"])
def test_images_are_accessed_in_128_bits(name, capability):
    kernel, binary = compiled(BLENDS[name], capability)[0]
    assert binary.count(r"LDG\S*\.128\S*") > 0, kernel
    assert binary.count(r"STG\S*\.128\S*") > 0, kernel


@pytest.mark.parametrize("name, capability", pairs(ATTENTIONS))
def test_attention(name, capability):
    for kernel, binary in compiled(ATTENTIONS[name], capability):
        assert binary.count("EXIT") > 0, kernel
        assert binary.count(LOCAL_MEMORY) == 0, kernel
        assert binary.shared <= SHARED_LIMIT, kernel
        if name not in IEEE:
            assert binary.count(TENSOR_CORE[capability]) > 0, kernel
