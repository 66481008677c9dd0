from __future__ import annotations

import torch
from torch import Tensor


def saliency_box(
    saliency: Tensor, lam: Tensor | None, window: Tensor | None, size: tuple[int, int], smallest: bool = False
) -> Tensor:
    """Reference of `fastmix.ops.saliency_box`: `lam` () or (N,), or `window` (2,) or (N, 2) integers."""
    values = saliency.detach().nan_to_num(0.0, 0.0, 0.0).double()
    if window is None:
        return _around_peak(values, lam, size, smallest)
    height, width = values.shape[1:]
    sums = torch.nn.functional.pad(values.cumsum(2).cumsum(1), (1, 0, 1, 0))
    rows, columns = (
        window[..., i].long().clamp(0, side).expand(len(values)).view(-1, 1, 1)
        for i, side in enumerate((height, width))
    )
    top = torch.arange(height + 1, device=values.device).view(-1, 1)
    left = torch.arange(width + 1, device=values.device)
    bottom, right = (top + rows).clamp_max(height), (left + columns).clamp_max(width)
    sample = torch.arange(len(values), device=values.device).view(-1, 1, 1)
    inside = (sums[sample, bottom, right] - sums[sample, top, right]) - (sums[sample, bottom, left] - sums)
    fits = (top + rows <= height) & (left + columns <= width)
    at = _first_best(inside, smallest, fits)
    y, x = at // (width + 1), at % (width + 1)
    rows, columns = rows.flatten(), columns.flatten()
    corners = [_scaled(y, height, size[0]), _scaled(x, width, size[1])]
    corners += [_scaled(y + rows, height, size[0]), _scaled(x + columns, width, size[1])]
    return torch.stack(corners, 1).int()


def _around_peak(values: Tensor, lam: Tensor, size: tuple[int, int], smallest: bool) -> Tensor:
    at = _first_best(values, smallest)
    share = 1 - lam.double()
    side = torch.where(share > 0, share, 0.0).clamp_max(1).sqrt()
    corners = []
    for cell, cells, pixels in (
        (at // values.shape[2], values.shape[1], size[0]),
        (at % values.shape[2], values.shape[2], size[1]),
    ):
        middle, half = (2 * cell + 1) * pixels // (2 * cells), (pixels * side).long() // 2
        corners.append(((middle - half).clamp_min(0), (middle + half).clamp_max(pixels)))
    return torch.stack([edge for edges in zip(*corners, strict=True) for edge in edges], 1).int()


def _first_best(values: Tensor, smallest: bool, allowed: Tensor | None = None) -> Tensor:
    """(N,) place of the first of the largest values of each map, or of the smallest ones."""
    values = -values if smallest else values
    if allowed is not None:
        values = torch.where(allowed, values, -torch.inf)
    return values.flatten(1).argmax(1)


def _scaled(cell: Tensor, cells: int, pixels: int) -> Tensor:
    return cell * pixels // cells
