"""What the public ops share: layouts, draws, the inverse of an index map, the decision for autograd.

An op called with `index` (D, N) makes D draws of one batch in one launch. Inside, outputs and what belongs to them are
flattened: output m = d * N + n has the own sample m % N. Results leave as one view a draw, each a node of its own in
the autograd graph, so that a draw nobody differentiates costs nothing in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..dispatch import CHANNELS_LAST, dense, plain, select, tracing, transformed
from ..reference.pixels import acc_dtype


def like(grad: Tensor, x: Tensor) -> Tensor:
    """`grad` in the layout of the dense `x`."""
    form = torch.contiguous_format if x.is_contiguous() else CHANNELS_LAST[x.dim()]
    return grad.contiguous(memory_format=form)


def wants_grad(op: str, *tensors: Tensor | None) -> bool:
    """Whether a call on these tensors has to be recorded by autograd."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                if tracing():
                    raise RuntimeError(f"fastmix.{op}: torch.jit.trace takes no gradient: trace under torch.no_grad()")
                return True
    return False


def inverse_index(index: Tensor) -> tuple[Tensor, Tensor]:
    """CSR form of the inverse map: the n with `index[n] == j` are `order[start[j]:start[j + 1]]`, ascending."""
    order = index.argsort(stable=True)
    targets = torch.arange(index.shape[0] + 1, device=index.device)
    return order, torch.searchsorted(index[order], targets)


def outputs_like(x: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for one output a partner, laid out like the dense `x`."""
    if index.shape[0] == x.shape[0]:
        return torch.empty_like(x, dtype=dtype)
    form = torch.contiguous_format if x.is_contiguous() else CHANNELS_LAST[x.dim()]
    return torch.empty((index.shape[0], *x.shape[1:]), dtype=dtype, device=x.device, memory_format=form)


def by_draw(tensor: Tensor | None, draws: int) -> tuple[Tensor | None, ...]:
    """Flattened (D * N, ...) as a view (N, ...) for each draw; what serves all draws, None or (), D times."""
    if draws == 1 or tensor is None or tensor.dim() == 0:
        return (tensor,) * draws
    return tensor.unflatten(0, (draws, tensor.shape[0] // draws)).unbind()


def flat(out: Tensor, lead: torch.Size) -> Tensor:
    """`out` (*lead, ...) with its outputs in one dimension."""
    return out if len(lead) == 1 else out.flatten(0, 1)


def handed_out(flat: Tensor, lead: torch.Size) -> Tensor | tuple[Tensor, ...]:
    """A flattened result as the caller gets it: itself, or a tuple of D draws for `index` (D, N)."""
    return flat if len(lead) == 1 else by_draw(flat, lead[0])


def into(result: Tensor | tuple[Tensor, ...], lead: torch.Size, out: Tensor | None) -> Tensor | tuple[Tensor, ...]:
    """A result as handed out, copied to `out` if that is given."""
    if out is None:
        return result
    out.copy_(torch.stack(result) if isinstance(result, tuple) else result)
    return out if len(lead) == 1 else out.unbind()


def each_draw(function: Callable, grads: tuple[Tensor | None, ...], *flattened: Tensor | None) -> list[Tensor | None]:
    """`function(grad, *parts)` of every draw that has a gradient, with its parts of the flattened tensors."""
    parts = zip(*(by_draw(tensor, len(grads)) for tensor in flattened), strict=True)
    return [None if grad is None else function(grad, *part) for grad, part in zip(grads, parts, strict=True)]


def summed(parts: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """Sum of the draws' gradients for what they share, in `dtype`, made in the memory of the first."""
    known = [part for part in parts if part is not None]
    for part in known[1:]:
        known[0].add_(part)
    return known[0].to(dtype) if known else None


def grad_dtype(dtype: torch.dtype, grads: tuple[Tensor | None, ...]) -> torch.dtype:
    """Dtype of one draw's gradient for what the draws share: not rounded yet while there is more to be summed."""
    return dtype if sum(grad is not None for grad in grads) < 2 else acc_dtype(dtype)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The draws' gradients for what belongs to each, flattened again; 0 for draws without one."""
    if len(parts) == 1:
        return parts[0]
    like = next((part for part in parts if part is not None), None)
    return None if like is None else torch.cat([torch.zeros_like(like) if part is None else part for part in parts])


def differentiated_again(*grads: Tensor | None) -> bool:
    """Asked in a backward pass: whether its result will be differentiated, or a gradient stands for many."""
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or transformed() or any(grad is not None and batched(grad) for grad in grads)


def graphed(
    function: Callable,
    leaves: Sequence[Tensor | None],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
    materialize: bool = False,
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: what a backward pass returns under `create_graph=True`.

    The kernels' gradients carry no graph, so `function` repeats the call in plain PyTorch: tensors, or tuples of them,
    for which `grads` are the gradients. `leaves` are its arguments, None where it takes none; the result has a gradient
    for those that are needed: None, or zeros with `materialize`, where the results do not depend on them.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the gradient with respect to them stays connected to what they view, and does not run on into what
        # that was made of: `lam` may be made of the logits.
        held = [_asking(leaf.view_as(leaf)) if need else leaf for leaf, need in zip(leaves, needs, strict=True)]
        results = flattened(function(*held))
        pairs = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return [None] * len(held)
        wanted = [leaf for leaf, need in zip(held, needs, strict=True) if need]
        results, grads = zip(*pairs, strict=True)
        options = {"create_graph": again, "allow_unused": True, "materialize_grads": materialize}
        found = iter(torch.autograd.grad(results, wanted, grads, **options))
        return [next(found) if need else None for need in needs]


def _asking(view: Tensor) -> Tensor:
    return view if view.requires_grad else view.requires_grad_()


def graphed_images(
    function: Callable,
    x: Tensor | None,
    weight: Tensor | None,
    dtype: torch.dtype,
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
    scale: Tensor | None,
    grads_mean: Sequence[Tensor | None] = (),
) -> list[Tensor | None]:
    """`graphed` for `function(x, weight)`, which mixes images before normalisation, and may return means behind them.

    `x` is None where the gradients do not depend on it; `dtype` is its dtype.
    """
    acc = acc_dtype(dtype)
    like = next((grad for grad in grads if grad is not None), None)
    if x is None and like is None:
        return [None, None]
    # not zeros_like: where `grad` stands for many gradients, the images are still one batch
    x = torch.zeros(like.shape, dtype=dtype, device=like.device) if x is None else x
    grads = [None if grad is None else scaled(grad.to(acc), scale) for grad in grads]
    return graphed(lambda x, weight: function(x.to(acc), weight), (x, weight), needs, [*grads, *grads_mean])


def flattened(result: Tensor | tuple) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flattened(part)]


def blend_backend(op: str, x: Tensor, dtype: torch.dtype, backend: str | None) -> str:
    """Backend of a blend. The kernels keep float64 apart; a mix of it with another dtype is the reference's."""
    chosen = select(op, x, backend)
    if (x.dtype is torch.float64) is not (dtype is torch.float64):
        if backend is not None and backend != "reference":
            raise ValueError(f"fastmix.{op}: backend {backend!r} does not turn {x.dtype} into {dtype}")
        return "reference"
    return chosen


class Call(NamedTuple):
    """The checked arguments that all blends share: `index` is flattened, `lead` its shape, (N,) or (D, N)."""

    x: Tensor
    index: Tensor
    lead: torch.Size
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
        _checks.output(op, out, index.shape, x, dtype)
        if writes_directly(out, given):
            _checks.separate(op, out, {"x": given, "index": index, **weights})
    return Call(x, index if index.dim() == 1 else index.flatten(), index.shape, acc, scale, shift, dtype, chosen)


def records(op: str, out: Tensor | None, *tensors: Tensor | None) -> bool:
    """Whether autograd has to record the call, which `out=` rules out."""
    if not wants_grad(op, out, *tensors):
        return False
    if out is not None:
        raise ValueError(f"fastmix.{op}: out= cannot be used when a gradient is asked for; call under torch.no_grad()")
    return True


def writes_directly(out: Tensor | None, *inputs: Tensor | None) -> bool:
    """Whether the kernel itself fills `out`; else the registered op makes a result, which is copied into it."""
    return out is not None and not torch.compiler.is_compiling() and plain(out, *inputs)


def written(out: Tensor, lead: torch.Size) -> Tensor | tuple[Tensor, ...]:
    """`out`, filled by a kernel behind autograd's back: a graph that saved its old values must notice."""
    torch.autograd.graph.increment_version(out)
    return out if len(lead) == 1 else out.unbind()


def scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient with respect to the mixed value before normalisation."""
    return grad if scale is None else grad * scale.view(1, -1, *[1] * (grad.dim() - 2))


def lam_shaped(parts: list[Tensor | None], lam: Tensor) -> Tensor | None:
    """Each draw's gradients (N,) in the shape of the flattened `lam`: summed when one weight served all."""
    if lam.dim():
        return joined(parts)
    return summed([None if part is None else part.sum() for part in parts], lam.dtype)
