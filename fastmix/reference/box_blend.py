from __future__ import annotations

import torch
from torch import Tensor

from .pixels import acc_dtype, finish, handed_out, mix, per_sample


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """(..., 1, H, W) bool: which pixels lie in the half-open boxes `(y0, x0, y1, x1)` (..., 4)."""
    y0, x0, y1, x1 = box.view(*box.shape, 1, 1, 1).unbind(-4)  # each [..., 1, 1, 1]
    y = torch.arange(height, device=box.device).view(-1, 1)
    x = torch.arange(width, device=box.device)
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def box_blend(
    x: Tensor,
    index: Tensor,
    box: Tensor,
    lam: Tensor | float | None = None,
    *,
    source: Tensor | None = None,
    resize: str = "nearest",
    align_corners: bool = False,
    normalize: tuple | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Reference of `fastmix.ops.box_blend`."""
    size = x.shape[2:]
    if source is not None:
        box, source = (clipped(part.expand(*index.shape, 4), *size) for part in (box, source))
        box = filled(box, source)
    within = inside(box, *size)
    weight = per_sample(1.0 if lam is None else lam, x)
    weight = torch.where(within, torch.zeros_like(weight), weight)
    mixed = mix(x, index, weight)
    if source is not None:
        partner = x.to(acc_dtype(x.dtype))[index]
        for axis in (0, 1):
            ends = [(part[..., axis], part[..., axis + 2]) for part in (box, source)]
            first, t = taps(size[axis], *ends, resize, align_corners)
            partner = resampled(partner, axis - 2, first, t.to(partner.dtype))
        mixed = torch.where(within, partner, mixed)
    return handed_out(finish(mixed, x, normalize, dtype), index)


def clipped(box: Tensor, height: int, width: int) -> Tensor:
    """Boxes (..., 4) cut at the borders of the image."""
    y, x = box[..., ::2].clamp(0, height), box[..., 1::2].clamp(0, width)
    return torch.stack((y, x), -1).flatten(-2)


def filled(box: Tensor, source: Tensor) -> Tensor:
    """The boxes (..., 4), emptied where the region that is to fill them is empty."""
    y0, x0, y1, x1 = source.unbind(-1)
    return torch.where(((y0 < y1) & (x0 < x1)).unsqueeze(-1), box, 0)


def taps(size: int, box: tuple, source: tuple, resize: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Along an axis of `size` pixels: (..., size) the first input of each, and the weight of the one after it.

    `box` and `source` are the ends (begin, end) of both stretches, each (...). Coordinates are exact, but for nearest
    ones, which are rounded in float32 as in `F.interpolate`. What lies outside the box gets any input.
    """
    begin, end, from_begin, from_end = (part.unsqueeze(-1).long() for part in (*box, *source))
    count, inputs = (end - begin).clamp(min=1), (from_end - from_begin).clamp(min=1)
    i = (torch.arange(size, device=begin.device) - begin).clamp(min=0).minimum(count - 1)
    if resize == "nearest":
        first = (i.float() * (inputs.float() / count.float())).long()
        t = torch.zeros((), dtype=torch.float64, device=begin.device)
    else:
        if align_corners:
            at, one = i * (inputs - 1), (count - 1).clamp(min=1)
        else:
            at, one = (2 * i + 1) * inputs - count, 2 * count
        at = at.clamp(min=0).minimum((inputs - 1) * one)
        first = at // one
        t = (at - first * one).double() / one
    return (from_begin + first.minimum(inputs - 1)).clamp(0, max(size - 1, 0)), t.expand_as(first)


def resampled(x: Tensor, dim: int, first: Tensor, t: Tensor) -> Tensor:
    """x (..., C, H, W) along `dim`: `(1 - t) * x[first] + t * x[first + 1]`; a weight of 0 leaves a value out."""
    other = -3 - dim  # the other of the last two dimensions
    first, t = (part.unsqueeze(-2).unsqueeze(other) for part in (first, t))
    a = x.gather(dim, first.expand_as(x))
    b = x.gather(dim, (first + 1).clamp(max=max(x.shape[dim] - 1, 0)).expand_as(x))
    return torch.where(t == 0, a, a * (1 - t) + b * t)
