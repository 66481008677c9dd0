from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op
from . import common

OP = "blend"


def blend(
    x: Tensor,
    index: Tensor,
    lam: Tensor | float,
    *,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Mix every sample with its partner by one weight: `out[n] = lam[n] * x[n] + (1 - lam[n]) * x[index[n]]`.

    The blend of MixUp (Zhang et al., 2018, Eq. 1) and, on hidden features, of Manifold Mixup.

    Args:
        x: (N, ...) uint8, float16, bfloat16, float32 or float64. Contiguous and channels_last layouts are kept;
            others are copied once. Never written to.
        index: (N,) int64 in [0, N), the partner of each sample; any map, not only a permutation. Or (D, N): D draws
            of the same batch in one launch.
        lam: weight of the own image, a float or a float32 tensor, () or shaped like `index` (float64 is used in
            double precision when `x` is float64). Not limited to [0, 1]. Exactly 1 (0) returns the own (partner's)
            image bit for bit, whatever the other holds.
        normalize: `(mean, std)`, C values each: the mixed value v becomes `(v - mean) / std` per channel (dimension
            1); a uint8 image is first divided by 255, as torchvision's ToTensor and Normalize do.
        dtype: dtype of the result, default that of `x`. uint8 results are rounded half to even and clamped.
        out: tensor laid out like `x` to write the result to, (D, N, ...) for D draws; not under autograd.
        backend: "cpu", "triton", "cuda" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, ...) mixed images, or a tuple of D such tensors, each of which can be differentiated by itself. Arithmetic
        is float32 (float64 for float64) with one rounding; for float32 the result is bit-equal to
        `x * lam + x[index] * (1 - lam)`. Differentiable with respect to `x` and `lam`, any number of times; the first
        gradient of `x` is the same gather along the inverse map, without atomics.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; an index out of range on the CPU
            (on CUDA, where values are not read back, such a row is NaN).

    Example:
        >>> index = torch.randperm(len(x))
        >>> mixed = fastmix.ops.blend(x, index, lam=0.3)
    """
    _checks.images(OP, x)
    if normalize is not None and x.dim() < 2:
        raise ValueError(f"fastmix.{OP}: normalize needs x of shape (N, C, ...), got {_checks.describe(x)}")
    call = common.begin(OP, x, index, normalize, dtype, out, backend, lam=lam)
    lam = _checks.lam(OP, lam, call.lead, x, call.acc)
    record = common.records(OP, out, x, lam)
    if call.backend == "reference":
        weight = lam.view(call.lead) if lam.dim() else lam
        mixed = reference.blend(call.x, index, weight, normalize=normalize, dtype=call.dtype)
        return common.into(mixed, call.lead, out)
    inputs = (call.x, call.index, lam, call.scale, call.shift)
    if record:
        return Blend.apply(*inputs, call.dtype, call.backend, call.lead)
    if common.writes_directly(out, *inputs):
        kernels(OP, call.backend).blend(*inputs, common.flat(out, call.lead))
        return common.written(out, call.lead)
    mixed = _blend(*inputs, call.dtype, call.backend)
    return common.into(common.handed_out(mixed, call.lead), call.lead, out)


def _fake(x, index, lam, scale, shift, dtype, backend):
    return common.outputs_like(x, index, dtype)


@raw_op(
    "blend(Tensor x, Tensor index, Tensor lam, Tensor? scale, Tensor? shift, ScalarType dtype, str backend) -> Tensor",
    _fake,
)
def _blend(x, index, lam, scale, shift, dtype, backend):
    out = common.outputs_like(x, index, dtype)
    kernels(OP, backend).blend(x, index, lam, scale, shift, out)
    return out


def _fake_grad_x(grad, order, start, lam, dtype, backend):
    return torch.empty_like(grad, dtype=dtype)


@raw_op(
    "blend_grad_x(Tensor grad, Tensor order, Tensor start, Tensor lam, ScalarType dtype, str backend) -> Tensor",
    _fake_grad_x,
)
def _blend_grad_x(grad, order, start, lam, dtype, backend):
    out = torch.empty_like(grad, dtype=dtype)
    kernels(OP, backend).blend_grad_x(grad, (order, start), lam, out)
    return out


def _fake_grad_lam(grad, x, index, lam, scale, dtype, backend):
    return grad.new_empty(grad.shape[0], dtype=dtype)


@raw_op(
    "blend_grad_lam(Tensor grad, Tensor x, Tensor index, Tensor lam, Tensor? scale, ScalarType dtype, str backend) "
    "-> Tensor",
    _fake_grad_lam,
)
def _blend_grad_lam(grad, x, index, lam, scale, dtype, backend):
    out = grad.new_empty(grad.shape[0], dtype=dtype)
    kernels(OP, backend).blend_grad_lam(grad, x, index, lam, scale, out)
    return out


class Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, lam, scale, shift, dtype, backend, lead):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, index, lam, scale)
        ctx.dtype, ctx.backend, ctx.lead = x.dtype, backend, lead
        return common.handed_out(_blend(x, index, lam, scale, shift, dtype, backend), lead)

    @staticmethod
    def backward(ctx, *grads):
        x, index, lam, scale = ctx.saved_tensors
        if common.differentiated_again(*grads):

            def mixed(x, lam):
                return reference.blend(x, index.view(ctx.lead), lam.view(ctx.lead) if lam.dim() else lam)

            needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
            grad_x, grad_lam = common.graphed_images(mixed, x, lam, ctx.dtype, needs, grads, scale)
            return grad_x, None, grad_lam, None, None, None, None, None
        dtype = common.grad_dtype(ctx.dtype, grads)

        def for_x(grad, index, lam):
            order, start = common.inverse_index(index)
            return _blend_grad_x(common.dense(common.scaled(grad, scale)), order, start, lam, dtype, ctx.backend)

        def for_lam(grad, index, lam):
            return _blend_grad_lam(common.like(grad, x), x, index, lam, scale, lam.dtype, ctx.backend)

        grad_x = grad_lam = None
        if ctx.needs_input_grad[0]:
            grad_x = common.summed(common.each_draw(for_x, grads, index, lam), ctx.dtype)
        if ctx.needs_input_grad[2]:
            grad_lam = common.lam_shaped(common.each_draw(for_lam, grads, index, lam), lam)
        return grad_x, None, grad_lam, None, None, None, None, None
