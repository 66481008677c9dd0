"""Every mixing method once more, image by image in NumPy, as its paper or published code words it.

Each function takes the images (N, C, H, W), the partners and the random numbers of each sample, and returns the mixed
images and the weights of the own labels.
"""

from __future__ import annotations

import math

import numpy as np


def _each(x, index, mix):
    """Images and weights of `mix(own, partner, n)` for every sample."""
    found = [mix(x[n].copy(), x[index[n]], n) for n in range(len(x))]
    return np.stack([image for image, _ in found]), np.array([lam for _, lam in found])


def _clip(value, top):
    return min(max(value, 0), top)


def _centred(side_y, side_x, row, column, height, width):
    """The rectangle of these sides around a pixel, cut off at the border: y0, x0, y1, x1."""
    y, x = int(row * height), int(column * width)
    return (
        _clip(y - side_y // 2, height), _clip(x - side_x // 2, width),
        _clip(y + side_y // 2, height), _clip(x + side_x // 2, width),
    )  # fmt: skip


def none(x, index):
    return x, np.ones(len(x))


def mixup(x, index, lam):
    return _each(x, index, lambda own, partner, n: (lam[n] * own + (1 - lam[n]) * partner, lam[n]))


def regmixup(x, index, lam):
    mixed, weights = mixup(x, index, lam)
    return np.concatenate([x, mixed]), np.concatenate([np.ones(len(x)), weights])


def pasted(x, index, boxes):
    def mix(own, partner, n):
        y0, x0, y1, x1 = boxes[n]
        own[:, y0:y1, x0:x1] = partner[:, y0:y1, x0:x1]
        return own, 1 - (y1 - y0) * (x1 - x0) / (own.shape[1] * own.shape[2])

    return _each(x, index, mix)


def cutmix(x, index, lam, centre):
    height, width = x.shape[2:]
    boxes = []
    for n in range(len(x)):
        cut = math.sqrt(1 - lam[n])
        boxes.append(_centred(int(height * cut), int(width * cut), *centre[n], height, width))
    return pasted(x, index, boxes)


def cutmix_minmax(x, index, minmax, sides, place):
    height, width = x.shape[2:]
    boxes = []
    for n in range(len(x)):
        corners, ends = [], []
        for side, u, v in zip((height, width), sides[n], place[n], strict=True):
            low, high = int(side * minmax[0]), int(side * minmax[1])
            size = low + int(u * (high - low))  # a whole number in [low, high)
            begin = int(v * (side - size + 1))
            corners.append(begin)
            ends.append(begin + size)
        boxes.append((*corners, *ends))
    return pasted(x, index, boxes)


def resizemix(x, index, tau, centre):
    height, width = x.shape[2:]

    def mix(own, partner, n):
        y0, x0, y1, x1 = _centred(int(height * tau[n]), int(width * tau[n]), *centre[n], height, width)
        for y in range(y0, y1):
            for x_ in range(x0, x1):
                row, column = (y - y0) * height // (y1 - y0), (x_ - x0) * width // (x1 - x0)
                own[:, y, x_] = partner[:, row, column]
        return own, 1 - (y1 - y0) * (x1 - x0) / (height * width)

    return _each(x, index, mix)


def saliencymix(x, index, lam, saliency):
    height, width = x.shape[2:]
    boxes = []
    for n in range(len(x)):
        peak = int(np.argmax(saliency[index[n]]))  # the first of equal ones
        cut = math.sqrt(1 - lam[n])
        y, x_, sides = peak // width, peak % width, (int(height * cut) // 2, int(width * cut) // 2)
        y0, y1 = _clip(y - sides[0], height), _clip(y + sides[0], height)
        x0, x1 = _clip(x_ - sides[1], width), _clip(x_ + sides[1], width)
        boxes.append((y0, x0, y1, x1))
    return pasted(x, index, boxes)


def masked(x, index, mask):
    """`mask(n)` gives the weight of the own image at each pixel."""

    def mix(own, partner, n):
        weight = mask(n)
        return weight * own + (1 - weight) * partner, weight.mean()

    return _each(x, index, mix)


def enlarged(cells, height, width):
    rows = [y * cells.shape[0] // height for y in range(height)]
    columns = [x * cells.shape[1] // width for x in range(width)]
    return cells[np.ix_(rows, columns)]


def attentivemix(x, index, features, count):
    def mask(n):
        attention = features[n].mean(0)
        order = sorted(range(attention.size), key=lambda cell: (-attention.flat[cell], cell))
        cells = np.zeros(attention.size)
        cells[order[: count[n]]] = 1
        return enlarged(cells.reshape(attention.shape), *x.shape[2:])

    return masked(x, index, mask)


def random_grids(x, index, lam, noise, law):
    def mask(n):
        if law == "bernoulli":
            return enlarged((noise[n] < lam[n]).astype(float), *x.shape[2:])
        cells = np.zeros(noise[n].size)
        cells[np.argsort(noise[n].ravel(), kind="stable")[: math.ceil(lam[n] * noise[n].size)]] = 1
        return enlarged(cells.reshape(noise[n].shape), *x.shape[2:])

    return masked(x, index, mask)


def smoothmix(x, index, centre, sigma):
    height, width = x.shape[2:]

    def mask(n):
        cy, cx = int(centre[n][0] * height), int(centre[n][1] * width)
        spread = sigma[n] * min(height, width)
        weight = np.empty((height, width))
        for y in range(height):
            for column in range(width):
                weight[y, column] = 1 - math.exp(-((y - cy) ** 2 + (column - cx) ** 2) / (2 * spread**2))
        return weight

    return masked(x, index, mask)


def grid_holes(x, index, lam, holes, area, aspect, numbers):
    """Holes of a regular grid within a rectangle, written one by one."""
    height, width = x.shape[2:]

    def mask(n):
        pick, share, ratio, row, column = numbers[n]
        count = holes[0] + int(pick * (holes[1] - holes[0] + 1))
        cut = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = aspect[0] + ratio * (aspect[1] - aspect[0])
        across = int(math.sqrt(cut / ratio))
        down, across = min(int(across * ratio), height), min(across, width)
        patch = math.ceil(across / count)
        hole = min(max(int(patch * math.sqrt(1 - lam[n])), 1), patch - 1)
        top, left = int((height - down) * row), int((width - across) * column)
        weight = np.ones((height, width))
        for y in range(0, down, patch):
            for x_ in range(0, across, patch):
                bottom, right = min(y + hole, down), min(x_ + hole, across)
                weight[top + y : top + bottom, left + x_ : left + right] = 0
        return weight

    return masked(x, index, mask)


def fmix_paper(noise, size, decay):
    """The low-frequency image: noise of every frequency over its frequency to the power of `decay`."""
    height, width = size
    spectrum = np.zeros((height, width // 2 + 1), complex)
    for row in range(height):
        for column in range(width // 2 + 1):
            fy = (row if row < (height + 1) // 2 else row - height) / height
            f = max(math.hypot(fy, column / width), 1 / max(height, width))
            spectrum[row, column] = complex(*noise[row, column]) / f**decay
    return np.fft.irfft(np.fft.ifft(spectrum, axis=0), n=width, axis=1)


def fmix_released(noise, size, decay):
    """The same where row 0 and row 1 of the noise are taken for the real and the imaginary part."""
    height, width = size
    spectrum = np.zeros((noise.shape[1], 2), complex)
    for column in range(noise.shape[1]):
        frequency = min(column, width // 2) / width
        parts = [
            noise[row, column] / max(math.hypot(row / height, frequency), 1 / max(height, width)) ** decay
            for row in (0, 1)
        ]
        spectrum[column] = parts[0] + 1j * parts[1]
    padded = np.zeros((height, 2), complex)
    padded[: len(spectrum)] = spectrum[:height]
    return np.fft.irfft(np.fft.ifft(padded, axis=0), n=width, axis=1)


def fmix(x, index, lam, coin, noise, decay, image):
    """The largest pixels of `image(noise)`, their number rounded down where the coin is below 1/2."""
    size = x.shape[2:]

    def mask(n):
        pixels = lam[n] * size[0] * size[1]
        count = math.floor(pixels) if coin[n] < 0.5 else math.ceil(pixels)
        weight = np.zeros(size[0] * size[1])
        weight[np.argsort(-image(noise[n], size, decay).ravel(), kind="stable")[:count]] = 1
        return weight.reshape(size)

    return masked(x, index, mask)
