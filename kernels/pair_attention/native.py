"""Launchers of the compiled kernels of `pair_attention`."""

import torch

from fastmix.kernels.images import address
from fastmix.native import DTYPES, module

_C = module()


def _common(q, k, key_bias, scale):
    return *q.shape, torch.get_num_threads(), DTYPES[q.dtype], scale, q.data_ptr(), k.data_ptr(), address(key_bias)


def pair_attention(q, k, v, index, key_bias, scale, out, lse):
    _C.pair_attention(*_common(q, k, key_bias, scale), index.data_ptr(), v.data_ptr(), out.data_ptr(), lse.data_ptr())


def pair_attention_cols(q, k, a, index, key_bias, scale, lse, out):
    _C.pair_attention_cols(
        *_common(q, k, key_bias, scale), index.data_ptr(), a.data_ptr(), lse.data_ptr(), out.data_ptr()
    )


def pair_attention_grad(q, k, inverse, key_bias, scale, lse, a, b, c, dq, dk, dbias, cols):
    order, start = (part.data_ptr() for part in inverse)
    vectors = (lse.data_ptr(), a.data_ptr(), b.data_ptr(), c.data_ptr())
    outputs = (address(dq), address(dk), address(dbias), address(cols))
    _C.pair_attention_grad(*_common(q, k, key_bias, scale), order, start, *vectors, *outputs)
