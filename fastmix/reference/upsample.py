"""Upsampling as a matrix: row `i` of `interpolation(out, in)` holds the weights of output `i` over the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .pixels import no_autocast

MODES = ("nearest", "bilinear", "bicubic")


def interpolation(size: int, source: int, mode: str, device: torch.device) -> Tensor:
    """(size, source) float64 matrix of `F.interpolate(..., align_corners=False)` along one axis.

    Coordinates are exact: output `i` lies at `((2 i + 1) source - size) / (2 size)`; nearest takes `floor(i source /
    size)`; bilinear clamps a negative coordinate to 0; bicubic uses a = -0.75 and repeats the border.
    """
    i = torch.arange(size, device=device)
    if mode == "nearest":
        taps, weights = (i * source // size).unsqueeze(1), torch.ones(size, 1, dtype=torch.float64, device=device)
    else:
        numerator = (2 * i + 1) * source - size
        if mode == "bilinear":
            numerator = numerator.clamp(min=0)
        first = numerator.div(2 * size, rounding_mode="floor")
        t = (numerator - first * 2 * size).double() / (2 * size)
        if mode == "bilinear":
            taps, weights = torch.stack([first, first + 1], 1), torch.stack([1 - t, t], 1)
        else:
            taps = torch.stack([first - 1, first, first + 1, first + 2], 1)
            weights = torch.stack([_cubic(t + 1), _cubic(t), _cubic(1 - t), _cubic(2 - t)], 1)
    matrix = torch.zeros(size, source, dtype=torch.float64, device=device)
    return matrix.scatter_add_(1, taps.clamp(0, source - 1), weights)


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Keys' cubic convolution kernel at a distance in [0, 2]."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)


def upsample(mask: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(..., h, w) -> (..., height, width)."""
    if mode == "nearest":  # picked, so that no cell meets the gradient of another one's pixels
        y, x = (
            torch.arange(n, device=mask.device) * cells // n
            for n, cells in zip((height, width), mask.shape[-2:], strict=True)
        )
        return mask[..., y, :][..., x]
    rows = interpolation(height, mask.shape[-2], mode, mask.device).to(mask.dtype)
    columns = interpolation(width, mask.shape[-1], mode, mask.device).to(mask.dtype)
    with no_autocast(mask):
        return rows @ mask @ columns.T
