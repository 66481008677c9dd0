from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select

OP = "saliency_box"


def saliency_box(
    saliency: Tensor,
    lam: Tensor | float | None = None,
    *,
    window: int | tuple[int, int] | Tensor | None = None,
    size: tuple[int, int] | None = None,
    smallest: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Boxes where a saliency map is largest, or smallest.

    With `lam`: the box of CutMix with the share 1 - lam of the image around the peak of the map, clipped, as in
    SaliencyMix (Uddin et al., 2021): in each direction `floor(floor(side * sqrt(1 - lam)) / 2)` pixels before and
    after the peak. What it really leaves of the own image is `1 - area / (H * W)`.

    With `window`: of all boxes of so many cells within the map the one with the largest sum, as SMMix (Chen et al.,
    2023) places its regions. Exactly one of the two must be given.

    Args:
        saliency: (N, h, w) float16, bfloat16, float32 or float64, compared as float32 (window sums are float64);
            values that are not finite count as 0.
        lam: weight of the own image, a float or a floating tensor, () or (N,); outside [0, 1] it is clamped.
        window: side of the box in cells of the map, (height, width), or an int32 or int64 tensor of shape
            (), (N,) or (N, 2), then limited to the map.
        size: (H, W) of the image that the map covers, default the map itself. A coarser map, such as attention over
            patches, gives boxes in pixels: around the middle of a cell, along the edges of cells for windows.
        smallest: look for the least instead of the most.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, 4) int32, half-open `(y0, x0, y1, x1)` in pixels, as `box_blend` takes them. Of equal places the first one,
        row by row. Nothing is read back from the device. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device; both or none of `lam` and `window`.

    Example:
        >>> saliency = fastmix.ops.fine_grained_saliency(x)
        >>> mixed = fastmix.ops.box_blend(x, index, fastmix.ops.saliency_box(saliency[index], lam))
    """
    if not isinstance(saliency, Tensor) or saliency.dtype not in _checks.FLOAT_DTYPES:
        raise TypeError(f"fastmix.{OP}: saliency must be a floating tensor, got {_checks.describe(saliency)}")
    _checks.strided(OP, "saliency", saliency)
    if saliency.dim() != 3 or not all(saliency.shape[1:]):
        raise ValueError(
            f"fastmix.{OP}: saliency must have shape (N, h, w) with h, w > 0, got {_checks.describe(saliency)}"
        )
    if (lam is None) is (window is None):
        raise ValueError(f"fastmix.{OP}: exactly one of lam and window must be given")
    size = _check_size(size, saliency)
    saliency = saliency.detach().float().contiguous()
    if lam is not None:
        lam = _check_lam(lam, saliency)
    else:
        window = _check_window(window, saliency)
    chosen = select(OP, saliency, backend)
    if chosen == "reference":
        return reference.saliency_box(saliency, lam, window, size, smallest)
    return _saliency_box(saliency, lam, window, *size, bool(smallest), chosen)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_size(size: object, saliency: Tensor) -> tuple[int, int]:
    if size is None:
        return saliency.shape[1], saliency.shape[2]
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(_is_count, size)):
        raise TypeError(f"fastmix.{OP}: size must be (H, W), got {_checks.describe(size)}")
    if min(size) < 1:
        raise ValueError(f"fastmix.{OP}: size must be positive, got {tuple(size)}")
    return size[0], size[1]


def _check_lam(lam: object, saliency: Tensor) -> Tensor:
    """() or (N,) float64."""
    if isinstance(lam, (int, float)):
        return torch.full((), lam, dtype=torch.float64, device=saliency.device)
    if not isinstance(lam, Tensor) or not lam.is_floating_point():
        raise TypeError(f"fastmix.{OP}: lam must be a float or a floating tensor, got {_checks.describe(lam)}")
    _checks.strided(OP, "lam", lam)
    if lam.shape not in ((), saliency.shape[:1]) or lam.device != saliency.device:
        raise ValueError(
            f"fastmix.{OP}: lam must have shape () or ({len(saliency)},) on {saliency.device}, "
            f"got {_checks.describe(lam)}"
        )
    return lam.detach().double().contiguous()


def _check_window(window: object, saliency: Tensor) -> Tensor:
    """(2,) or (N, 2) int32."""
    device, n = saliency.device, len(saliency)
    if not isinstance(window, Tensor):
        pair = (window, window) if _is_count(window) else window
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(_is_count, pair)):
            raise TypeError(
                f"fastmix.{OP}: window must be an int, (height, width) or a tensor, got {_checks.describe(window)}"
            )
        height, width = saliency.shape[1:]
        if not (1 <= pair[0] <= height and 1 <= pair[1] <= width):
            raise ValueError(f"fastmix.{OP}: window must fit in the map of {height} x {width} cells, got {tuple(pair)}")
        if pair[0] == pair[1]:
            return torch.full((2,), pair[0], dtype=torch.int32, device=device)
        return torch.cat([torch.full((1,), side, dtype=torch.int32, device=device) for side in pair])
    if window.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"fastmix.{OP}: window must be int32 or int64, got {_checks.describe(window)}")
    _checks.strided(OP, "window", window)
    if window.shape not in ((), (n,), (n, 2)) or window.device != device:
        raise ValueError(
            f"fastmix.{OP}: window must have shape (), ({n},) or ({n}, 2) on {device}, got {_checks.describe(window)}"
        )
    if window.dim() < 2:
        window = window.unsqueeze(-1).expand(*window.shape, 2)
    return window.clamp(0, 2**31 - 1).int().contiguous()


def _fake(saliency, lam, window, height, width, smallest, backend):
    return saliency.new_empty((saliency.shape[0], 4), dtype=torch.int32)


@raw_op(
    "saliency_box(Tensor saliency, Tensor? lam, Tensor? window, int height, int width, bool smallest, str backend) "
    "-> Tensor",
    _fake,
)
def _saliency_box(saliency, lam, window, height, width, smallest, backend):
    box = _fake(saliency, lam, window, height, width, smallest, backend)
    kernels(OP, backend).saliency_box(saliency, lam, window, height, width, smallest, box)
    return box
