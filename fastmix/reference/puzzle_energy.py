from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixels import acc_dtype

LARGEST_COST = 1 << 24


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference of `fastmix.ops.puzzle_energy`, in the precision of each step of the published code.

    That is float32 up to the costs of showing one image (float64 for float64 images) and float64 from there on.
    """
    acc = acc_dtype(x.dtype)
    rows, columns = saliency.shape[1:]
    height, width = x.shape[2] // rows, x.shape[3] // columns  # of a block
    side = min(neighborhood, height, width)
    image = _unit_image(x, acc, mean, std)
    own = F.avg_pool2d(image, side)
    pair = own[index], own  # by whether a block shows the own image
    blocks = rows * columns
    smooth = beta / math.sqrt(blocks) / 16
    down, across = {}, {}
    for a in (0, 1):
        for b in (0, 1):
            above, below = _differences(pair[a], pair[b], height // side, width // side)
            down[a, b], across[a, b] = smooth * gamma * above, smooth * gamma * below

    show_own, show_partner = saliency.to(acc)[index], saliency.to(acc).clone()
    for p, edge in ((down, (slice(None), slice(None, -1))), (across, (..., slice(None, -1)))):
        show_own[edge] += (p[1, 0] + p[1, 1]) / 2
        show_partner[edge] += (p[0, 1] + p[0, 0]) / 2
        edge = (*edge[:-1], slice(1, None))
        show_own[edge] += (p[0, 1] + p[1, 1]) / 2
        show_partner[edge] += (p[1, 0] + p[0, 0]) / 2

    scale = 1000 * blocks
    weights = (scale * ((p[1, 0] + p[0, 1] - p[1, 1] - p[0, 0]) / 2 + smooth) for p in (down, across))
    share = torch.linspace(0, 1, n_labels, dtype=torch.float64, device=x.device)
    unary = (1 - share) * show_own.double().unsqueeze(-1) + share * show_partner.double().unsqueeze(-1)
    unary = scale * (unary + eta * _prior(lam, n_labels, x.device).view(-1, 1, 1, n_labels) / blocks)
    return _truncated(unary), *map(_truncated, weights)


def _unit_image(x: Tensor, acc: torch.dtype, mean, std) -> Tensor:
    """The image in [0, 1]."""
    if mean is None:
        return x.to(acc) * (1 / 255) if x.dtype is torch.uint8 else x.to(acc)
    mean, std = (torch.as_tensor(part, dtype=acc, device=x.device).expand(x.shape[1]) for part in (mean, std))
    return x.to(acc) * std.view(-1, 1, 1) + mean.view(-1, 1, 1)


def _differences(first: Tensor, second: Tensor, high: int, wide: int) -> tuple[Tensor, Tensor]:
    """Mean absolute differences over channels and cells where a block of `first` lies above (left of) one of `second`.

    A block has `high` x `wide` cells. Differences that are not finite are 0.
    """
    above = (first[:, :, :-1] - second[:, :, 1:])[:, :, high - 1 :: high].abs().mean(1)
    left = (first[..., :-1] - second[..., 1:])[..., wide - 1 :: wide].abs().mean(1)
    down, across = _pooled(above, (1, wide)), _pooled(left, (high, 1))
    return down.nan_to_num(0, 0, 0), across.nan_to_num(0, 0, 0)


def _pooled(values: Tensor, size: tuple[int, int]) -> Tensor:
    if values.numel() == 0:  # of which avg_pool2d knows nothing
        return values[:, :: size[0], :: size[1]]
    return F.avg_pool2d(values, size)


def _prior(lam: Tensor | float, n_labels: int, device: torch.device) -> Tensor:
    """`-log(C(L-1, l) lam^(L-1-l) (1-lam)^l + 1e-8)`, (1, L) or (N, L) float64."""
    lam = torch.as_tensor(lam, device=device).double().nan_to_num(0).clamp(0, 1).view(-1, 1)
    label = torch.arange(n_labels, device=device)
    ways = torch.tensor([math.comb(n_labels - 1, k) for k in range(n_labels)], device=device)
    return -(ways * lam ** (n_labels - 1 - label) * (1 - lam) ** label + 1e-8).log()


def _truncated(values: Tensor) -> Tensor:
    return values.nan_to_num(0).clamp(-LARGEST_COST, LARGEST_COST).int()
