from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select

OP = "spectral_mask"
SPECTRA = ("paper", "reference")
CYCLES = 32
MAX_SIDE = 1 << 14


def spectral_mask_noise_shape(
    size: tuple[int, int], spectrum: str = "paper", cycles: int | None = CYCLES
) -> tuple[int, int, int]:
    """Shape of the normal noise that one mask of `spectral_mask` takes.

    Args:
        size: (H, W) of the mask.
        spectrum: "paper" or "reference", as for `spectral_mask`.
        cycles: highest frequency that the noise of "paper" reaches, in cycles along the longer side; None: all there
            are. What lies above 32 has 1.5e-6 of the power at decay 3: it moves the edge of a mask by a few
            hundredths of a pixel, and costs up to ten times as many random numbers.

    Returns:
        "paper": (rows, columns, 2), real and imaginary parts of the frequencies 0, 1, .., -2, -1 along the height and
        0, 1, .. along the width. "reference": (2, K, 2), the numbers `param[0, :2, :K]` of the released code that it
        goes on with.

    Example:
        >>> noise = torch.randn(n, *fastmix.ops.spectral_mask_noise_shape((32, 32)))
    """
    height, width = _check_size(size)
    if _checks.one_of(OP, "spectrum", spectrum, SPECTRA):
        if height < 2:
            raise ValueError(f"fastmix.{OP}: size must have two rows for the reference spectrum, got {(height, width)}")
        return 2, min(height, width, width // 2 + 1 + width % 2), 2
    if cycles is None:
        return height, width // 2 + 1, 2
    if not isinstance(cycles, int) or isinstance(cycles, bool) or cycles < 1:
        raise ValueError(f"fastmix.{OP}: cycles must be a positive int or None, got {_checks.describe(cycles)}")
    above, across = (min(side // 2, math.ceil(cycles * side / max(height, width))) for side in (height, width))
    return min(height, 2 * above + 1), across + 1, 2


def spectral_mask(
    noise: Tensor,
    count: Tensor | int,
    size: tuple[int, int],
    decay: float = 3.0,
    spectrum: str = "paper",
    softness: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Masks of FMix: the `count[n]` largest pixels of a random low-frequency image.

    The image of FMix (Harris et al., 2020, Section 4) is the inverse Fourier transform of `noise / max(f, f0)^decay`,
    f the frequency in cycles a pixel, f0 = 1 / max(H, W). All masks are made in one call.

    The released code (ecs-vlc/FMix) means to do the same, but takes the first two rows of the noise for real and
    imaginary part, and what are the parts for two columns. Its image is made of the frequencies 0 and +-1 along the
    width alone and of positive ones along the height; `spectrum="reference"` reproduces that.

    Args:
        noise: (N, *spectral_mask_noise_shape(size, spectrum)) float32 or float64, independent and normal. "paper"
            takes any number of the lowest frequencies, (N, rows <= H, columns <= W // 2 + 1, 2).
        count: (N,) int32 or int64 on the device of `noise`, or an int: pixels that show the own image, clamped to 0
            and H W. The released code takes `lam * H * W` rounded up or down by a coin.
        size: (H, W) of the masks.
        decay: how fast frequencies fade, >= 0; published with 3.
        spectrum: "paper" or "reference".
        softness: in [0, 0.5], as `max_soft` of the released code: the `m = min(floor(softness H W), count, H W -
            count)` pixels on either side of the edge fall from 1 to 0 in equal steps instead; the sum stays `count`.
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`. Soft masks on
            CUDA are the reference's, and the image is torch.fft's there.

    Returns:
        (N, H, W) float32, the weight of the own image: exactly `count[n]` ones and otherwise zeros, if not soft. Of
        equal pixels the first ones, row by row, are taken; those that are not finite come last. The image is computed
        in float64 and rounded once, to float32, in which pixels are equal or not. Not differentiable.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, device or range.

    Example:
        >>> noise = torch.randn(len(x), *fastmix.ops.spectral_mask_noise_shape((224, 224)))
        >>> mask = fastmix.ops.spectral_mask(noise, (lam * 224 * 224).long(), (224, 224))
        >>> mixed, lam = fastmix.ops.mask_blend(x, index, mask, mode="nearest")
    """
    released = bool(_checks.one_of(OP, "spectrum", spectrum, SPECTRA))
    height, width = _check_size(size)
    _check_noise(noise, height, width, released)
    count = _check_count(count, noise)
    for name, value, most in (("decay", decay, math.inf), ("softness", softness, 0.5)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"fastmix.{OP}: {name} must be a number, got {_checks.describe(value)}")
        if not 0 <= value <= most or value == math.inf:
            raise ValueError(f"fastmix.{OP}: {name} must be a number in [0, {most}], got {value!r}")
    soft = int(height * width * softness)
    chosen = _backend(noise, backend, soft)
    noise = noise.detach().contiguous()
    if chosen == "reference":
        return reference.spectral_mask(noise, count, (height, width), float(decay), spectrum, soft)
    return _spectral_mask(noise, count, height, width, float(decay), released, soft, chosen)


def _backend(noise: Tensor, backend: str | None, soft: int) -> str:
    chosen = select(OP, noise, backend)
    if chosen == "cuda" and soft:
        if backend is not None:
            raise ValueError(f"fastmix.{OP}: backend 'cuda' has no soft masks")
        return "reference"
    return chosen


def _check_size(size: object) -> tuple[int, int]:
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        raise TypeError(f"fastmix.{OP}: size must be (H, W), got {_checks.describe(size)}")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise ValueError(f"fastmix.{OP}: size must lie in 1..{MAX_SIDE}, got {tuple(size)}")
    return size[0], size[1]


def _check_noise(noise: object, height: int, width: int, released: bool) -> None:
    if not isinstance(noise, Tensor) or noise.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"fastmix.{OP}: noise must be float32 or float64, got {_checks.describe(noise)}")
    _checks.strided(OP, "noise", noise)
    if released:
        shape = spectral_mask_noise_shape((height, width), "reference")
        fits, expected = noise.shape[1:] == shape, f"(N, {', '.join(map(str, shape))})"
    else:
        expected = f"(N, 1..{height}, 1..{width // 2 + 1}, 2)"
        fits = noise.dim() == 4 and noise.shape[3] == 2
        fits = fits and 1 <= noise.shape[1] <= height and 1 <= noise.shape[2] <= width // 2 + 1
    if not fits:
        raise ValueError(f"fastmix.{OP}: noise must have shape {expected}, got {_checks.describe(noise)}")


def _check_count(count: object, noise: Tensor) -> Tensor:
    """(N,) int64."""
    if isinstance(count, int) and not isinstance(count, bool):
        return torch.full(noise.shape[:1], count, dtype=torch.int64, device=noise.device)
    if not isinstance(count, Tensor) or count.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"fastmix.{OP}: count must be an int or int32 or int64, got {_checks.describe(count)}")
    _checks.strided(OP, "count", count)
    if count.shape != noise.shape[:1] or count.device != noise.device:
        raise ValueError(
            f"fastmix.{OP}: count must have shape ({len(noise)},) on {noise.device}, got {_checks.describe(count)}"
        )
    return count.long().contiguous()


def _fake(noise, count, height, width, decay, released, soft, backend):
    return noise.new_empty((noise.shape[0], height, width), dtype=torch.float32)


@raw_op(
    "spectral_mask(Tensor noise, Tensor count, int height, int width, float decay, bool released, int soft, "
    "str backend) -> Tensor",
    _fake,
)
def _spectral_mask(noise, count, height, width, decay, released, soft, backend):
    out = _fake(noise, count, height, width, decay, released, soft, backend)
    kernels(OP, backend).spectral_mask(noise, count, decay, released, soft, out)
    return out
