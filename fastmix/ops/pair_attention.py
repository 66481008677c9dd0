from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select
from . import common

OP = "pair_attention"


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    transpose: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Attention of every sample to its partner with one value a position; the (N, r, r) matrix never exists.

    `P[n, p, s] = softmax_s(scale * q[n, p] . k[index[n], s] + key_bias[n, s])`;
    `out[n, p] = sum_s P[n, p, s] * v[n, s]`, or with `transpose=True` `out[n, s] = sum_p P[n, p, s] * v[n, p]`.
    The cross-attention of AutoMix (Liu et al., 2022, Eq. 5-6): with a linear projection its lambda embedding is a
    `key_bias`, and its value is one number a position.

    Args:
        q, k: (N, r, d) float16, bfloat16, float32 or float64, of one dtype; may be the same tensor.
        v: (N, r) or (D, N, r) floating, not gathered: `v[n]` belongs to pair n.
        index: (N,) int64 in [0, N), the partner of each sample, or (D, N) for D draws in one launch, as in `blend`.
        key_bias: shaped like `v`, floating, added to the scores of the keys of pair n; not gathered.
        scale: factor of the scores, default `1 / sqrt(d)`.
        transpose: sum over queries instead of keys.
        backend: "cpu", "triton" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, r), or a tuple of D such tensors, in the dtype of `v`. Scores, softmax and sums are float32 (float64 for
        float64 q). Differentiable with respect to q, k, v and key_bias, any number of times; memory beyond the
        arguments is O(N r d), forward and backward, but O(N r r) where `create_graph=True` asks for second derivatives.

        Non-finite scores are not looked for: a NaN, or a row without a finite score, makes that row NaN, as
        `torch.softmax` does; a bias of -inf removes its key.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; an index out of range on the CPU
            (on CUDA, where values are not read back, such a row is NaN).

    Example:
        >>> u = projection(features).flatten(2).transpose(1, 2)  # (N, r, d)
        >>> logits = fastmix.ops.pair_attention(u, u, v, index)
    """
    _check_positions(q, k)
    index = _checks.index(OP, index, q)
    lead = index.shape
    pair_shape = (*lead, q.shape[1])
    _checks.floating(OP, "v", v, pair_shape, q)
    if key_bias is not None:
        _checks.floating(OP, "key_bias", key_bias, pair_shape, q)
    scale = float(q.shape[2]) ** -0.5 if scale is None else float(scale)
    chosen = select(OP, q, backend)
    if chosen == "reference":
        _checks.index_values(OP, index)
        return reference.pair_attention(q, k, v, index, key_bias, scale, transpose)
    dtype, acc = v.dtype, common.acc_dtype(q.dtype)
    shared = k is q
    q = q.contiguous()
    k = q if shared else k.contiguous()
    v, index = common.flat(v, lead).to(acc).contiguous(), index.flatten()
    key_bias = None if key_bias is None else common.flat(key_bias, lead).to(acc).contiguous()
    if common.wants_grad(OP, q, k, v, key_bias):
        # Dynamo does not trace a Function that takes one tensor twice.
        out = PairAttention.apply(q, None if shared else k, v, index, key_bias, scale, transpose, chosen, lead)
    else:
        out, lse = _pair_attention(q, k, v, index, key_bias, scale, chosen)
        if transpose:
            out = _pair_attention_cols(q, k, v, index, key_bias, scale, lse, chosen)
        out = common.handed_out(out, lead)
    return out.to(dtype) if len(lead) == 1 else tuple(part.to(dtype) for part in out)


def _check_positions(q: Tensor, k: Tensor) -> None:
    for name, value in (("q", q), ("k", k)):
        if not isinstance(value, Tensor):
            raise TypeError(f"fastmix.{OP}: {name} must be a tensor, got {_checks.describe(value)}")
        _checks.strided(OP, name, value)
    if q.dtype not in _checks.FLOAT_DTYPES or k.dtype is not q.dtype:
        raise TypeError(
            f"fastmix.{OP}: q and k must share a floating dtype, got {_checks.describe(q)}, {_checks.describe(k)}"
        )
    if q.dim() != 3 or k.shape != q.shape or k.device != q.device or q.shape[2] == 0:
        raise ValueError(
            f"fastmix.{OP}: q and k must share a shape (N, r, d), d > 0, and a device, "
            f"got {_checks.describe(q)}, {_checks.describe(k)}"
        )


def _fake(q, k, v, index, key_bias, scale, backend):
    return torch.empty_like(v), torch.empty_like(v)


@raw_op(
    "pair_attention(Tensor q, Tensor k, Tensor v, Tensor index, Tensor? key_bias, float scale, str backend) "
    "-> (Tensor, Tensor)",
    _fake,
)
def _pair_attention(q, k, v, index, key_bias, scale, backend):
    out, lse = torch.empty_like(v), torch.empty_like(v)
    kernels(OP, backend).pair_attention(q, k, v, index, key_bias, scale, out, lse)
    return out, lse


def _fake_cols(q, k, a, index, key_bias, scale, lse, backend):
    return torch.empty_like(a)


@raw_op(
    "pair_attention_cols(Tensor q, Tensor k, Tensor a, Tensor index, Tensor? key_bias, float scale, Tensor lse, "
    "str backend) -> Tensor",
    _fake_cols,
)
def _pair_attention_cols(q, k, a, index, key_bias, scale, lse, backend):
    out = torch.empty_like(a)
    kernels(OP, backend).pair_attention_cols(q, k, a, index, key_bias, scale, lse, out)
    return out


def _fake_grad(q, k, order, start, key_bias, scale, lse, a, b, c, want_cols, dtype, backend):
    # Gradients that are not asked for are empty: an op returns a fixed number of tensors.
    return (
        torch.empty_like(q, dtype=dtype),
        torch.empty_like(k, dtype=dtype),
        a.new_empty(0) if key_bias is None else torch.empty_like(a),
        torch.empty_like(a) if want_cols else a.new_empty(0),
    )


@raw_op(
    "pair_attention_grad(Tensor q, Tensor k, Tensor order, Tensor start, Tensor? key_bias, float scale, Tensor lse, "
    "Tensor a, Tensor b, Tensor c, bool want_cols, ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_grad,
)
def _pair_attention_grad(q, k, order, start, key_bias, scale, lse, a, b, c, want_cols, dtype, backend):
    grads = _fake_grad(q, k, order, start, key_bias, scale, lse, a, b, c, want_cols, dtype, backend)
    dq, dk, dbias, cols = grads
    kernels(OP, backend).pair_attention_grad(
        q, k, (order, start), key_bias, scale, lse, a, b, c,
        dq, dk, None if key_bias is None else dbias, cols if want_cols else None,
    )  # fmt: skip
    return grads


class PairAttention(torch.autograd.Function):
    """`k` is None when it is `q`."""

    @staticmethod
    def forward(ctx, q, k, v, index, key_bias, scale, transpose, backend, lead):
        ctx.set_materialize_grads(False)
        keys = q if k is None else k
        rows, lse = _pair_attention(q, keys, v, index, key_bias, scale, backend)
        out = _pair_attention_cols(q, keys, v, index, key_bias, scale, lse, backend) if transpose else rows
        ctx.save_for_backward(q, k, v, index, key_bias, lse, None if transpose else out)
        ctx.scale, ctx.transpose, ctx.backend, ctx.lead = scale, transpose, backend, lead
        return common.handed_out(out, lead)

    @staticmethod
    def backward(ctx, *grads):
        q, k, v, index, key_bias, lse, out = ctx.saved_tensors
        need_q, need_k, need_v, _, need_bias = ctx.needs_input_grad[:5]
        if common.differentiated_again(*grads):

            def attention(q, k, v, bias):
                v, bias = (None if part is None else part.view(*ctx.lead, -1) for part in (v, bias))
                keys = q if k is None else k
                return reference.pair_attention(q, keys, v, index.view(ctx.lead), bias, ctx.scale, ctx.transpose)

            needs = (need_q, need_k, need_v, need_bias)
            dq, dk, dv, dbias = common.graphed(attention, (q, k, v, key_bias), needs, grads)
            return dq, dk, dv, None, dbias, None, None, None, None

        dtype = common.grad_dtype(q.dtype, grads)

        def of_draw(grad, *parts):
            keys = q if k is None else k
            wanted = (need_q or need_k or need_bias, need_v)
            return _draw_gradients(grad.contiguous(), q, keys, *parts, ctx, dtype, *wanted)

        draws = common.each_draw(of_draw, grads, v, index, key_bias, lse, out)
        dq, dk, dv, dbias = zip(*(draw or (None,) * 4 for draw in draws), strict=True)
        if k is None:
            dq, dk = dq + dk, ()
        dq, dk = common.summed(dq, q.dtype), common.summed(dk, q.dtype)
        dv, dbias = common.joined(dv), common.joined(dbias)
        return (
            dq if need_q else None,
            dk if need_k else None,
            dv if need_v else None,
            None,
            dbias if need_bias else None,
            None,
            None,
            None,
            None,
        )


def _draw_gradients(grad, q, k, v, index, key_bias, lse, out, ctx, dtype, need_scores, need_v):
    """dq, dk, dv, dbias of one draw; None where not computed."""
    scale, backend = ctx.scale, ctx.backend
    # dS = P * a_p * (b_s - c_p), c the row means of b: no pass over P is needed to find them.
    if ctx.transpose:
        row_means, _ = _pair_attention(q, k, grad, index, key_bias, scale, backend)
        a, b, c, dv = v, grad, row_means, row_means
    else:
        a, b, c, dv = grad, v, out, None
    if not need_scores:
        if not ctx.transpose:
            dv = _pair_attention_cols(q, k, grad, index, key_bias, scale, lse, backend)
        return None, None, dv, None
    order, start = common.inverse_index(index)
    want_cols = need_v and not ctx.transpose
    dq, dk, dbias, cols = _pair_attention_grad(
        q, k, order, start, key_bias, scale, lse, a, b, c, want_cols, dtype, backend
    )
    return dq, dk, cols if want_cols else dv, None if key_bias is None else dbias
