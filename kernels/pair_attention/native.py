"""Launchers of the compiled kernels of `pair_attention`."""

import torch

from fastmix.kernels.images import address
from fastmix.native import DTYPES, module

_C = module()


def _common(q, k, outputs, key_bias, scale):
    n, r, d = q.shape
    pointers = (q.data_ptr(), k.data_ptr(), address(key_bias))
    return n, r, d, outputs // max(n, 1), torch.get_num_threads(), DTYPES[q.dtype], scale, *pointers


def pair_attention(q, k, v, index, key_bias, scale, out, lse):
    call = _common(q, k, index.shape[0], key_bias, scale)
    _C.pair_attention(*call, index.data_ptr(), v.data_ptr(), out.data_ptr(), lse.data_ptr())


def pair_attention_cols(q, k, a, index, key_bias, scale, lse, out):
    call = _common(q, k, index.shape[0], key_bias, scale)
    _C.pair_attention_cols(*call, index.data_ptr(), a.data_ptr(), lse.data_ptr(), out.data_ptr())


def pair_attention_grad(q, k, inverse, key_bias, scale, lse, a, b, c, dq, dk, dbias, cols):
    order, start = (part.data_ptr() for part in inverse)
    vectors = (lse.data_ptr(), a.data_ptr(), b.data_ptr(), c.data_ptr())
    outputs = (address(dq), address(dk), DTYPES[(q if dq is None else dq).dtype], address(dbias), address(cols))
    _C.pair_attention_grad(*_common(q, k, q.shape[0], key_bias, scale), order, start, *vectors, *outputs)
