from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select
from . import common

OP = "saliency_pool"


def saliency_pool(grad: Tensor, blocks: int | tuple[int, int], *, backend: str | None = None) -> Tensor:
    """The share that each block of an image has in its saliency.

    `S = sqrt(mean_c grad[:, c]**2)`, averaged over each block, each map divided by its sum: the block saliency of
    PuzzleMix (Kim et al., 2020, Section 4), which takes for `grad` the gradient of the loss with respect to the
    images. Only ratios matter, so neither does a loss scale. A saliency map `(N, 1, H, W)` that is known already may
    take the place of the gradient.

    Args:
        grad: (N, C, H, W) float16, bfloat16, float32 or float64, contiguous or channels_last (others are copied).
        blocks: how many blocks an image has a side, or (rows, columns); must divide H and W.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, rows, columns) float32 in [0, 1], each map with sum 1. A map of zeros, or with a gradient that is not
        finite, becomes uniform, where the published code divides 0 by 0. Arithmetic is float32 (float64 for
        float64), on the CPU in the order of the published code, on values scaled by a power of two where squares
        would over- or underflow; sums over an image are float64. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or shape.

    Example:
        >>> (grad,) = torch.autograd.grad(loss, images)
        >>> saliency = fastmix.ops.saliency_pool(grad, 4)  # (N, 4, 4)
    """
    if not isinstance(grad, Tensor) or grad.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"fastmix.{OP}: grad must be a floating tensor, got {_checks.describe(grad)}")
    _checks.strided(OP, "grad", grad)
    if grad.dim() != 4 or not all(grad.shape[1:]):
        raise ValueError(
            f"fastmix.{OP}: grad must have shape (N, C, H, W) with C, H, W > 0, got {_checks.describe(grad)}"
        )
    rows, columns = _blocks(blocks, *grad.shape[2:])
    chosen = select(OP, grad, backend)
    grad = grad.detach()
    if chosen == "reference":
        return reference.saliency_pool(grad, (rows, columns))
    return _saliency_pool(common.dense(grad), rows, columns, chosen)


def _blocks(blocks: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    pair = (blocks, blocks) if isinstance(blocks, int) else blocks
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(count, int) for count in pair):
        raise TypeError(f"fastmix.{OP}: blocks must be an int or (rows, columns), got {_checks.describe(blocks)}")
    rows, columns = pair
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(
            f"fastmix.{OP}: blocks must divide the image of {height} x {width} pixels, got {rows} x {columns}"
        )
    return rows, columns


def _fake(grad, rows, columns, backend):
    return grad.new_empty((grad.shape[0], rows, columns), dtype=torch.float32)


@raw_op("saliency_pool(Tensor grad, int rows, int columns, str backend) -> Tensor", _fake)
def _saliency_pool(grad, rows, columns, backend):
    out = _fake(grad, rows, columns, backend)
    kernels(OP, backend).saliency_pool(grad, rows, columns, out)
    return out
