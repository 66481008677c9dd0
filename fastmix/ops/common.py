"""What the public ops share: layouts, the inverse of an index map, the decision for autograd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..dispatch import select
from ..reference.pixels import acc_dtype

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense(x: Tensor) -> Tensor:
    """`x` itself when its samples are dense blocks, contiguous or channels_last; else a contiguous copy."""
    x = x.resolve_neg()
    if x.is_contiguous():
        return x
    form = _FORMATS.get(x.dim())
    return x if form is not None and x.is_contiguous(memory_format=form) else x.contiguous()


def like(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` in the layout of the dense `x`."""
    form = torch.contiguous_format if x.is_contiguous() else _FORMATS[x.dim()]
    return grad.contiguous(memory_format=form)


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors has to be recorded by autograd."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def inverse_index(index: Tensor) -> tuple[Tensor, Tensor]:
    """CSR form of the inverse map: the n with `index[n] == j` are `order[start[j]:start[j + 1]]`, ascending."""
    order = index.argsort(stable=True)
    targets = torch.arange(index.shape[0] + 1, device=index.device)
    return order, torch.searchsorted(index[order], targets)


def blend_backend(op: str, x: Tensor, dtype: torch.dtype, backend: str | None) -> str:
    """Backend of a blend. The kernels keep float64 apart; a mix of it with another dtype is the reference's."""
    chosen = select(op, x, backend)
    if (x.dtype is torch.float64) is not (dtype is torch.float64):
        if backend is not None and backend != "reference":
            raise ValueError(f"fastmix.{op}: backend {backend!r} does not turn {x.dtype} into {dtype}")
        return "reference"
    return chosen


def into(result: Tensor, out: Tensor | None) -> Tensor:
    """The result, or `out` holding it."""
    return result if out is None else out.copy_(result)


class Call(NamedTuple):
    """The checked arguments that all blends share."""

    x: Tensor
    index: Tensor
    acc: torch.dtype
    scale: Tensor | None
    shift: Tensor | None
    dtype: torch.dtype
    backend: str


def begin(
    op: str,
    x: Tensor,
    index: Tensor,
    normalize: tuple | None,
    dtype: torch.dtype | None,
    out: Tensor | None,
    backend: str | None,
    **weights: object,
) -> Call:
    """Checks what all blends take, and chooses the backend; `x` itself has been checked.

    `weights` are the other arguments as given, none of which may lie in the memory of `out`.
    """
    index = _checks.index(op, index, x)
    acc = acc_dtype(x.dtype)
    dtype = _checks.output_dtype(op, x, dtype)
    scale, shift = _checks.normalization(op, normalize, x, acc)
    chosen = blend_backend(op, x, dtype, backend)
    if chosen == "reference":
        _checks.index_values(op, index)
    given, x = x, dense(x)
    if out is not None:
        _checks.output(op, out, x, dtype)
        if writes_directly(out):
            _checks.separate(op, out, {"x": given, "index": index, **weights})
    return Call(x, index, acc, scale, shift, dtype, chosen)


def records(op: str, out: Tensor | None, *tensors: Tensor | None) -> bool:
    """Whether autograd has to record the call, which `out=` rules out."""
    if not wants_grad(out, *tensors):
        return False
    if out is not None:
        raise ValueError(f"fastmix.{op}: out= cannot be used when a gradient is asked for; call under torch.no_grad()")
    return True


def writes_directly(out: Tensor | None) -> bool:
    """Whether the kernel itself fills `out`; compiled code copies into it."""
    return type(out) is Tensor and not torch.compiler.is_compiling()


def written(out: Tensor) -> Tensor:
    """`out`, filled by a kernel behind autograd's back: a graph that saved its old values must notice."""
    torch.autograd.graph.increment_version(out)
    return out


def scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient with respect to the mixed value before normalisation."""
    return grad if scale is None else grad * scale.view(1, -1, *[1] * (grad.dim() - 2))


def lam_shaped(per_sample: Tensor, lam: Tensor) -> Tensor:
    """Per-sample gradients (N,) in the shape of `lam`: summed when one weight served the batch."""
    return per_sample if lam.dim() else per_sample.sum()
