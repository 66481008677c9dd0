"""Real handwritten digits without a download: scikit-learn's bundled set, plain and among clutter."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix.train.data import Images, Splits
from fastmix.train.errors import need

DIGIT_SIDE = 16
CANVAS_SIDE = 40
FRAGMENT_SIDE = 6
FRAGMENTS = (4, 8)
SHIFT = 4
TEST_DIGITS = 1000


def digits(seed: int = 0) -> Splits:
    """1797 handwritten digits (UCI, 43 writers), enlarged from 8x8 to 16x16: 797 to train on, 1000 to test.

    The division is fixed; ``seed`` has no effect.
    """
    del seed
    (train, train_labels), (test, test_labels) = _split()
    return _splits(Images(_bytes(train), train_labels, train), Images(_bytes(test), test_labels, test))


def cluttered_digits(seed: int = 0) -> Splits:
    """The same digits, each once, at a random place of a 40x40 canvas beside 4 to 8 fragments of other digits.

    The fragments look like digits, so what carries the label is a small part of the image, as in photographs.
    ``seed`` fixes the training compositions; the test images are always the same. ``object`` holds the ink of the
    labelled digit alone, for :func:`mask_measures`. In training images are shifted by up to 4 pixels.
    """
    (train, train_labels), (test, test_labels) = _split()
    return _splits(
        _compose(train, train_labels, np.random.default_rng([seed, 1])),
        _compose(test, test_labels, np.random.default_rng([0, 2])),
    )


def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    bundled = need("sklearn.datasets", "scikit-learn", "the digits data").load_digits()
    small = torch.from_numpy(bundled.images).float()[:, None] / 16  # [n, 1, 8, 8]
    images = F.interpolate(small, size=(DIGIT_SIDE, DIGIT_SIDE), mode="bilinear")[:, 0]
    labels = torch.from_numpy(bundled.target).long()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:]
    return (images[train], labels[train]), (images[test], labels[test])


def _compose(images: Tensor, labels: Tensor, rng: np.random.Generator) -> Images:
    count = len(images)
    digit = images.numpy()
    canvas = np.zeros((count, CANVAS_SIDE, CANVAS_SIDE), np.float32)
    ink = np.zeros_like(canvas)
    for n in range(count):
        y, x = rng.integers(0, CANVAS_SIDE - DIGIT_SIDE + 1, 2)
        for _ in range(rng.integers(FRAGMENTS[0], FRAGMENTS[1] + 1)):
            other = (n + rng.integers(1, count)) % count
            _paste(canvas[n], _fragment(digit[other], rng), y, x, rng)
        ink[n, y : y + DIGIT_SIDE, x : x + DIGIT_SIDE] = digit[n]
    canvas = torch.from_numpy(np.maximum(canvas, ink))
    return Images(_bytes(canvas), labels, torch.from_numpy(ink), shift=SHIFT)


def _fragment(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(0, DIGIT_SIDE - FRAGMENT_SIDE + 1, 2)
    return digit[y : y + FRAGMENT_SIDE, x : x + FRAGMENT_SIDE]


def _paste(canvas: np.ndarray, patch: np.ndarray, y: int, x: int, rng: np.random.Generator) -> None:
    """Paste at a random place outside the digit's square at ``(y, x)``."""
    while True:
        top, left = rng.integers(0, CANVAS_SIDE - FRAGMENT_SIDE + 1, 2)
        beside = left + FRAGMENT_SIDE <= x or left >= x + DIGIT_SIDE
        if beside or top + FRAGMENT_SIDE <= y or top >= y + DIGIT_SIDE:
            break
    place = canvas[top : top + FRAGMENT_SIDE, left : left + FRAGMENT_SIDE]
    np.maximum(place, patch, out=place)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)[:, None]  # [n, 1, H, W]


def _splits(train: Images, test: Images) -> Splits:
    pixels = train.images.float() / 255
    return Splits(train, test, [str(c) for c in range(10)], mean=(pixels.mean().item(),), std=(pixels.std().item(),))


def mask_measures(weight: Tensor, own: Tensor, partner: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """How well mixed images keep what their labels name.

    Args:
        weight: ``(N, H, W)`` weight of the own image at each pixel, in ``[0, 1]``.
        own, partner: ``(N, H, W)`` ink of the labelled object in the own image and in its partner.
        lam: label weight of the own image, ``()`` or ``(N,)``.

    Returns:
        ``(share, mismatch)``, both ``(N,)``. With ``a`` the visible part of the own object, ``sum(weight * own) /
        sum(own)``, and ``b`` that of the partner's, ``sum((1 - weight) * partner) / sum(partner)``:
        ``share = (a + b) / 2``, the part of an object's area given to its own image, and
        ``mismatch = |lam - a / (a + b)|``, with 1/2 for the ratio where nothing of either is left.
    """
    a = (weight * own).sum(dim=(1, 2)) / own.sum(dim=(1, 2))
    b = ((1 - weight) * partner).sum(dim=(1, 2)) / partner.sum(dim=(1, 2))
    visible = torch.where(a + b > 0, a / (a + b).clamp_min(1e-12), torch.full_like(a, 0.5))
    return (a + b) / 2, (lam - visible).abs()
