from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, reference
from ..dispatch import kernels, raw_op, select
from . import common

OP = "fine_grained_saliency"
ORDERS = ("bgr", "rgb")


def fine_grained_saliency(
    x: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    *,
    order: str = "bgr",
    backend: str | None = None,
) -> Tensor:
    """Saliency of every pixel by its difference from its surroundings, the map that SaliencyMix looks for a peak in.

    The fine-grained saliency of Montabone and Soto (2010) as OpenCV's StaticSaliencyFineGrained computes it: the grey
    image, blurred twice, minus its mean over squares of 24, 48, 96, 56, 112 and 224 pixels (integral images), positive
    and negative differences summed over the squares apart, each stretched to 255, and added. Integer arithmetic: maps
    of uint8 images are equal to OpenCV's bit for bit (up to 65793 pixels, where its float32 sums begin to round).

    Args:
        x: (N, 3, H, W) or (N, 1, H, W) images, uint8 or floating, contiguous or channels_last (others are copied).
            Floating images are turned into bytes first: with `mean` and `std` into those they were before their
            normalisation, else by stretching the finite values of each image to 0..255. NaN counts as 0.
        mean, std: one number a channel each: `x * std + mean` is in [0, 1]. Not for uint8 images.
        order: which channels count as blue, green and red on the way to grey (weights 0.114, 0.587, 0.299): "bgr", as
            OpenCV takes an image and as the code of SaliencyMix hands its RGB images over, or "rgb".
        backend: "cuda", "cpu" or "reference"; default: the best that can run, see `fastmix.explain`.

    Returns:
        (N, H, W) float32 in [0, 1], multiples of 1/255; 0 for a flat image. Not differentiable.

        The code of SaliencyMix passes normalised float32 images, of which OpenCV then compares single bytes of the
        floats: where they peak depends on rounding. This function does not reproduce that.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or shape.

    Example:
        >>> saliency = fastmix.ops.fine_grained_saliency(images, MEAN, STD)
        >>> box = fastmix.ops.saliency_box(saliency[index], lam)
    """
    _checks.images(OP, x, dims=4)
    if x.shape[1] not in (1, 3) or not all(x.shape[2:]):
        raise ValueError(f"fastmix.{OP}: x must have shape (N, 3 or 1, H, W) with H, W > 0, got {_checks.describe(x)}")
    red_first = bool(_checks.one_of(OP, "order", order, ORDERS))
    scale, shift = _bytes_of(mean, std, x)
    chosen = select(OP, x, backend)
    x = x.detach()
    if chosen == "reference":
        return reference.fine_grained_saliency(x, scale, shift, red_first)
    return _fine_grained_saliency(common.dense(x), scale, shift, red_first, chosen)


def _bytes_of(mean, std, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """`scale`, `shift` (C,) float32 that make bytes of the images: x * scale + shift."""
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ValueError(f"fastmix.{OP}: mean and std must be given together")
    if x.dtype is torch.uint8:
        raise ValueError(f"fastmix.{OP}: mean and std must be None for uint8 images")
    mean, std = _checks.constants(OP, "mean", mean), _checks.constants(OP, "std", std, positive=True)
    for name, part in (("mean", mean), ("std", std)):
        size = tuple(part.shape) if isinstance(part, Tensor) else (len(part),)
        if size != (x.shape[1],):
            raise ValueError(f"fastmix.{OP}: {name} must hold {x.shape[1]} numbers, got {_checks.describe(part)}")
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        given = (torch.as_tensor(part, dtype=torch.float32, device=x.device).detach() for part in (std, mean))
        return tuple(255 * part for part in given)
    return (_kept_tensors if _checks.keeps(x) else _tensors)(std, mean, x.device)


def _tensors(std: tuple, mean: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    parts = (torch.tensor(part, dtype=torch.float32, device=device) for part in (std, mean))
    return tuple(255 * part for part in parts)


@functools.lru_cache(maxsize=64)
def _kept_tensors(*args) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _tensors(*args)


def _fake(x, scale, shift, red_first, backend):
    return x.new_empty((x.shape[0], *x.shape[2:]), dtype=torch.float32)


@raw_op(
    "fine_grained_saliency(Tensor x, Tensor? scale, Tensor? shift, bool red_first, str backend) -> Tensor",
    _fake,
)
def _fine_grained_saliency(x, scale, shift, red_first, backend):
    out = _fake(x, scale, shift, red_first, backend)
    kernels(OP, backend).fine_grained_saliency(x, scale, shift, red_first, out)
    return out
