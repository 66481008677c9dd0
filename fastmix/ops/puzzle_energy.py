from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _settings, reference
from ..dispatch import kernels, raw_op, select
from . import common

OP = "puzzle_energy"
MAX_SIDE = 32


def puzzle_energy(
    x: Tensor,
    saliency: Tensor,
    index: Tensor,
    lam: Tensor | float,
    n_labels: int,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    neighborhood: int = 4,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Integer costs of PuzzleMix's mask, ready for `grid_cut`.

    Label l of L shows the own image with weight 1 - t, t = l / (L - 1). With B x B blocks, beta' = beta / (16 B), and
    D_ab the mean absolute difference between the pixels (pooled over cells of n x n, n = min(neighborhood, block))
    on the two sides of a boundary between blocks, a and b saying which image the first and second block shows, the
    mask minimises (Kim et al., 2020, Eq. 4-6 in the form of the published code)

        sum_i U_i[l_i] + sum_edges w (l_u - l_v)^2 / (L - 1)^2
        U[l] = 1000 B^2 ((1 - t) (s[index] + folded p_1.) + t (s + folded p_0.) + prior(l)),   p_ab = beta' gamma D_ab
        w    = 1000 B^2 ((p_10 + p_01 - p_11 - p_00) / 2 + beta')
        prior(l) = -eta / B^2 log(C(L-1, l) lam^(L-1-l) (1-lam)^l + 1e-8)

    Images need not be square: B is the geometric mean of rows and columns, and B^2 their number.

    Args:
        x: (N, C, H, W) images, floating, or uint8 with values x / 255; contiguous or channels_last.
        saliency: (N, rows, columns) floating, the share of each block, as from `saliency_pool`. Its shape says how
            many blocks an image has, 32 a side at most; it must divide H and W.
        index: (N,) int64 in [0, N), the partner of each sample.
        lam: share of the own image that the prior asks for, in [0, 1] (else clamped): a number or a floating tensor
            of shape () or (N,), of which no more than float32 is needed.
        n_labels: L, 2 to 4.
        beta: weight of unequal labels in neighbouring blocks, >= 0.
        gamma: weight of the difference between neighbouring blocks. From 1 on `weight` can become negative.
        eta: weight of the prior, >= 0.
        neighborhood: side of the cells, limited to that of a block, which it must divide then.
        mean, std: C numbers each, undoing a normalisation: x * std + mean is in [0, 1]. None: x is.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        unary (N, rows, columns, L), weight_y (N, rows - 1, columns), weight_x (N, rows, columns - 1), int32, truncated
        towards zero. For float32 images they are the integers of the published code under NumPy 2: float32 up to the
        costs of showing one image, float64 from there. Costs are limited to 2^24 in size; with images in [0, 1], maps
        of sum 1 and the published settings they stay below 1100 B^2 + 4000. Differences and costs that are not finite
        count as 0; so do on CUDA, where index values are not read back, all costs of a pair without a partner. Not
        differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; an index out of range on the CPU.

    Example:
        >>> saliency = fastmix.ops.saliency_pool(grad, 4)
        >>> unary, weight_y, weight_x = fastmix.ops.puzzle_energy(images, saliency, index, lam, n_labels=3)
    """
    _checks.images(OP, x, dims=4)
    index = _checks.index(OP, index, x)
    if index.dim() != 1:
        raise ValueError(f"fastmix.{OP}: index must have shape ({x.shape[0]},), got {_checks.describe(index)}")
    _checks.floating(OP, "saliency", saliency, (x.shape[0], None, None), x)
    side = _side(x, *saliency.shape[1:], neighborhood)
    _check_settings(n_labels, beta, gamma, eta)
    lam = _checks.lam(OP, lam, index.shape, x, torch.float64)
    acc = common.acc_dtype(x.dtype)
    scale, shift = _affine(x, mean, std, acc)
    chosen = select(OP, x, backend)
    x, saliency, lam = x.detach(), saliency.detach(), lam.detach()
    if chosen == "reference":
        _checks.index_values(OP, index)
        return reference.puzzle_energy(x, saliency, index, lam, n_labels, beta, gamma, eta, neighborhood, mean, std)
    saliency = saliency.to(acc).contiguous()
    return _puzzle_energy(common.dense(x), saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, chosen)


def _side(x: Tensor, rows: int, columns: int, neighborhood: int) -> int:
    """Pixels along a cell."""
    height, width = x.shape[2:]
    if max(rows, columns) > MAX_SIDE:
        raise ValueError(f"fastmix.{OP}: saliency must have at most {MAX_SIDE} blocks a side, got {rows} x {columns}")
    if not rows or not columns or not height or not width or not x.shape[1] or height % rows or width % columns:
        raise ValueError(
            f"fastmix.{OP}: saliency must have a shape (N, rows, columns) that divides the image of {height} x {width} "
            f"pixels (C, H, W > 0), got {rows} x {columns} blocks"
        )
    if not isinstance(neighborhood, int) or neighborhood < 1:
        raise ValueError(f"fastmix.{OP}: neighborhood must be an int > 0, got {_checks.describe(neighborhood)}")
    height, width = height // rows, width // columns
    side = min(neighborhood, height, width)
    if height % side or width % side:
        fits = max(n for n in range(1, side) if height % n == 0 and width % n == 0)
        raise ValueError(
            f"fastmix.{OP}: neighborhood must divide the blocks of {height} x {width} pixels, got {neighborhood}; "
            f"use {fits}, the next smaller that does"
        )
    return side


def _check_settings(n_labels: int, beta: float, gamma: float, eta: float) -> None:
    _settings.whole(OP, "n_labels", n_labels, 2, 4)
    for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta)):
        _settings.number(OP, name, value)


def _affine(x: Tensor, mean, std, acc: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """(C,) tensors so that x * scale + shift is the image in [0, 1]; None where it is x."""
    if (mean is None) is not (std is None):
        raise ValueError(f"fastmix.{OP}: mean and std must be given together")
    if x.dtype is torch.uint8:
        if mean is not None:
            raise ValueError(f"fastmix.{OP}: mean and std must be None for uint8 images, which are not normalised")
        mean, std = (0.0,) * x.shape[1], (1 / 255,) * x.shape[1]
    if mean is None:
        return None, None
    mean, std = _checks.constants(OP, "mean", mean), _checks.constants(OP, "std", std, positive=True)
    for name, part in (("mean", mean), ("std", std)):
        size = part.shape if isinstance(part, Tensor) else (len(part),)
        if tuple(size) != (x.shape[1],):
            raise ValueError(f"fastmix.{OP}: {name} must hold {x.shape[1]} values, one a channel, got {tuple(size)}")
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        return tuple(torch.as_tensor(part, dtype=acc, device=x.device).contiguous() for part in (std, mean))
    return (_kept_tensors if _checks.keeps(x) else _tensors)(std, mean, acc, x.device)


def _tensors(std: tuple, mean: tuple, acc: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(std, dtype=acc, device=device), torch.tensor(mean, dtype=acc, device=device)


@functools.lru_cache(maxsize=64)
def _kept_tensors(*args) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _tensors(*args)


def _fake(x, saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, backend):
    n, rows, columns = saliency.shape
    shapes = (n, rows, columns, n_labels), (n, rows - 1, columns), (n, rows, columns - 1)
    return tuple(x.new_empty(shape, dtype=torch.int32) for shape in shapes)


@raw_op(
    "puzzle_energy(Tensor x, Tensor saliency, Tensor index, Tensor lam, Tensor? scale, Tensor? shift, int n_labels, "
    "float beta, float gamma, float eta, int side, str backend) -> (Tensor, Tensor, Tensor)",
    _fake,
)
def _puzzle_energy(x, saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, backend):
    costs = _fake(x, saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, backend)
    kernels(OP, backend).puzzle_energy(x, saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, costs)
    return costs
