from __future__ import annotations

import torch
from torch import Tensor

SURROUNDS = (12, 24, 48, 28, 56, 112)
"""Half the sides of the squares that a pixel is compared with."""
GREY = (3735, 19235, 9798)
"""Shares of blue, green and red in 2^15 parts."""


def fine_grained_saliency(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, red_first: bool = False
) -> Tensor:
    """Reference of `fastmix.ops.fine_grained_saliency`; `x * scale + shift` are the bytes of a floating image."""
    grey = _grey(_as_bytes(x, scale, shift), red_first)
    for _ in range(2):
        grey = _blurred(grey)
    height, width = grey.shape[1:]
    sums = torch.nn.functional.pad(grey.long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    y, x = (torch.arange(size, device=grey.device) for size in (height, width))
    on, off = torch.zeros_like(grey), torch.zeros_like(grey)
    for reach in SURROUNDS:
        (top, bottom), (left, right) = (
            ((at - reach + 1).clamp(0, size), (at + reach + 1).clamp(0, size)) for at, size in ((y, height), (x, width))
        )
        rows = sums[:, bottom] - sums[:, top]
        around = (rows[:, :, right] - rows[:, :, left] - grey).float()
        count = ((bottom - top)[:, None] * (right - left) - 1).float()
        mean = around / count.clamp_min(1)  # a square of one pixel has no surroundings, and `around` is 0
        difference = torch.where(count > 0, grey.float() - mean, 0.0)
        on += difference.clamp_min(0).int()
        off += (-difference).clamp_min(0).int()
    # Where both are large the byte overflows, in OpenCV's binaries as well.
    return ((_stretched(on) + _stretched(off)) % 256).float() * (1 / 255)


def _as_bytes(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """(N, C, H, W) int32 in 0..255."""
    if x.dtype is torch.uint8:
        return x.int()
    v = x.float()
    if scale is not None:
        v = v * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    else:
        finite = v.isfinite()
        low = torch.where(finite, v, torch.inf).amin((1, 2, 3), keepdim=True) * 0.5
        high = torch.where(finite, v, -torch.inf).amax((1, 2, 3), keepdim=True) * 0.5
        step = torch.full_like(low, 255) / (high - low)  # halves, lest the range overflows
        v = (v * 0.5 - low) * torch.where(step.isfinite(), step, 0.0)
    return torch.where(v > 0, v, 0.0).clamp_max(255).round().int()


def _grey(planes: Tensor, red_first: bool) -> Tensor:
    """(N, H, W) int32: shares of three channels, rounded half up."""
    if planes.shape[1] == 1:
        return planes[:, 0]
    blue, green, red = planes.flip(1).unbind(1) if red_first else planes.unbind(1)
    return (blue * GREY[0] + green * GREY[1] + red * GREY[2] + (1 << 14)) >> 15


def _blurred(grey: Tensor) -> Tensor:
    """By (1, 2, 1) / 4 along both sides, rounded half up; beyond the edge lies the mirror image without the edge."""
    for dim in (1, 2):
        size = grey.shape[dim]
        at = torch.arange(size, device=grey.device)
        before, after = (at - 1).abs().clamp_max(size - 1), (at + 1).where(at + 1 < size, (at - 1).clamp_min(0))
        grey = grey.index_select(dim, before) + 2 * grey + grey.index_select(dim, after)
    return (grey + 8) >> 4


def _stretched(total: Tensor) -> Tensor:
    """To 0..255 by the largest of a map, rounded down."""
    largest = total.amax((1, 2), keepdim=True).float()
    return ((total.float() / largest.clamp_min(1)).double() * 255).int()
