from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select

OP = "transport"
METHODS = ("reference", "exact")
MAX_SIDE = 32
MAX_EPS = 1e30


def transport(
    visible: Tensor,
    saliency: Tensor,
    eps: float,
    method: str = "reference",
    *,
    backend: str | None = None,
) -> Tensor:
    """Plans that move the salient blocks of images to where the mask shows them.

    The transport of PuzzleMix (Kim et al., 2020). Moving block i to target j costs
    `eps * ((y_i - y_j)^2 + (x_i - x_j)^2) / (max(Ty, Tx) - 1)^2`, showing it gains `saliency[i]`; every visible target
    shows one block, and no block is shown twice. A grid of one block has no moves.

    Args:
        visible: (N, Ty, Tx) bool or uint8, not 0 where the mask shows the block at this place; Ty and Tx in 1..32.
        saliency: (N, Ty, Tx) float32, the blocks' shares in the saliency of their image, see `saliency_pool`. A map
            of another sum is taken as it is; values that are negative, infinite or NaN count as 0.
        eps: weight of the cost of moves, in [0, 1e30]; published with 0.8.
        method: "reference" for the published rounds, bit for bit in float32: max(Ty, Tx) times each block proposes to
            the target that is cheapest for it and each target takes the cheapest block, the first on ties; a target
            turned down costs 1 more from then on. "exact" for a plan of the least cost, where `saliency` and the costs
            of moves are rounded to 2^-28 of the power of two above the largest saliency.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`. The reference
            finds exact plans on the CPU, some tenths of a second for a grid of 16 x 16.

    Returns:
        (N, Ty * Tx) int32: at each visible target the block it shows, counted row by row; -1 where hidden. The same on
        cpu and cuda; of several best plans the reference may find another one. Not differentiable.

        The published plans also fill a hidden target here and there, to no effect. And they leave a visible one empty
        where no block gains anything (its own has saliency 0, or eps is 0): here it shows its own block or, if that is
        shown elsewhere, one that is not.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; an unknown method.

    Example:
        >>> plan = fastmix.ops.transport(mask > 0, fastmix.ops.saliency_pool(grad, 8), eps=0.8)
        >>> mixed, lam = fastmix.ops.mask_blend(x, index, mask, mode="nearest", plan=plan)
    """
    exact = bool(_checks.one_of(OP, "method", method, METHODS))
    _check_maps(visible, saliency)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"fastmix.{OP}: eps must be a number, got {_checks.describe(eps)}")
    if not 0 <= eps <= MAX_EPS:
        raise ValueError(f"fastmix.{OP}: eps must be a number in [0, {MAX_EPS:g}], got {eps!r}")
    chosen = select(OP, saliency, backend)
    saliency = saliency.detach().contiguous()
    return _transport(saliency, visible.contiguous(), float(eps), exact, chosen)


def _check_maps(visible: Tensor, saliency: Tensor) -> None:
    if not isinstance(visible, Tensor) or visible.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"fastmix.{OP}: visible must be a bool or uint8 tensor, got {_checks.describe(visible)}")
    _checks.strided(OP, "visible", visible)
    if visible.dim() != 3 or not all(1 <= side <= MAX_SIDE for side in visible.shape[1:]):
        raise ValueError(
            f"fastmix.{OP}: visible must have shape (N, Ty, Tx) with Ty and Tx in 1..{MAX_SIDE}, "
            f"got {_checks.describe(visible)}"
        )
    if not isinstance(saliency, Tensor) or saliency.dtype is not torch.float32:
        raise TypeError(f"fastmix.{OP}: saliency must be a float32 tensor, got {_checks.describe(saliency)}")
    _checks.strided(OP, "saliency", saliency)
    if saliency.shape != visible.shape or saliency.device != visible.device:
        raise ValueError(
            f"fastmix.{OP}: saliency must have shape {tuple(visible.shape)} on {visible.device}, "
            f"got {_checks.describe(saliency)}"
        )


def _fake(saliency, visible, eps, exact, backend):
    return saliency.new_empty((saliency.shape[0], saliency.shape[1] * saliency.shape[2]), dtype=torch.int32)


@raw_op("transport(Tensor saliency, Tensor visible, float eps, bool exact, str backend) -> Tensor", _fake)
def _transport(saliency, visible, eps, exact, backend):
    if backend == "reference":
        return reference.transport(visible, saliency, eps, METHODS[exact])
    source = _fake(saliency, visible, eps, exact, backend)
    kernels(OP, backend).transport(visible, saliency, eps, exact, source)
    return source
