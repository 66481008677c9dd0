"""Eight small pictures, drawn here, for the gallery of those who name none of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
SUPERSAMPLE = 4
RED, YELLOW = ("#e5383b", "#a5171d"), ("#ffb703", "#e08600")


class Canvas:
    """A square picture in coordinates from (0, 0), top left, to (1, 1), drawn large and made small at the end."""

    def __init__(self, size: int, *sky: str) -> None:
        self.side = SUPERSAMPLE * size
        self.size = size
        self.image = self._gradient(sky)

    def finished(self) -> Image.Image:
        return self.image.resize((self.size, self.size), Image.Resampling.BOX)

    def ellipse(self, x: float, y: float, rx: float, ry: float, *fill: str, turn: float = 0.0) -> None:
        """An ellipse around (x, y), turned by so many degrees clockwise."""
        angle, around = math.radians(turn), [2 * math.pi * k / 96 for k in range(96)]
        c, s = math.cos(angle), math.sin(angle)
        points = [(rx * math.cos(a), ry * math.sin(a)) for a in around]
        self.polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in points], *fill)

    def polygon(self, points: Sequence[Point], *fill: str) -> None:
        """Filled by one colour, or by a gradient from its top to its bottom."""
        if len(fill) == 1:
            ImageDraw.Draw(self.image).polygon([(x * self.side, y * self.side) for x, y in points], fill=fill[0])
            return
        mask = self._mask(points)
        if (box := mask.getbbox()) is not None:
            left, top, right, bottom = box
            gradient = self._gradient(fill).resize((right - left, bottom - top))
            self.image.paste(gradient, (left, top), mask.crop(box))

    def blob(self, points: Sequence[Point], *fill: str) -> None:
        """The smooth closed curve through the points."""
        self.polygon(smooth(points), *fill)

    def ball(self, points: Sequence[Point], light: Point, bright: str, dark: str) -> None:
        """A smooth shape that is lit at one point."""
        mask = self._mask(smooth(points))
        place = (np.arange(self.side) + 0.5) / self.side
        distance = np.hypot(place[:, None] - light[1], place[None] - light[0])
        reach = max(math.hypot(x - light[0], y - light[1]) for x, y in points)
        self.image.paste(_blend(bright, dark, np.clip(distance / reach, 0, 1) ** 1.3), mask=mask)

    def line(self, points: Sequence[Point], width: float, colour: str) -> None:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        ImageDraw.Draw(self.image).line(scaled, fill=colour, width=round(width * self.side), joint="curve")

    def soft(self, x: float, y: float, rx: float, ry: float, colour: str, strength: float) -> None:
        """A shadow or a glow: an ellipse with a blurred edge."""
        mask = Image.new("L", (self.side, self.side))
        box = [(x - rx) * self.side, (y - ry) * self.side, (x + rx) * self.side, (y + ry) * self.side]
        ImageDraw.Draw(mask).ellipse(box, fill=round(255 * strength))
        self.image.paste(colour, mask=mask.filter(ImageFilter.GaussianBlur(0.4 * min(rx, ry) * self.side)))

    def _mask(self, points: Sequence[Point]) -> Image.Image:
        mask = Image.new("L", (self.side, self.side))
        ImageDraw.Draw(mask).polygon([(x * self.side, y * self.side) for x, y in points], fill=255)
        return mask

    def _gradient(self, colours: Sequence[str]) -> Image.Image:
        """From top to bottom."""
        at = np.linspace(0, len(colours) - 1, self.side)
        stops = np.array([rgb(colour) for colour in colours], dtype=np.float64)
        column = np.stack([np.interp(at, range(len(colours)), stops[:, c]) for c in range(3)], 1)
        pixels = np.broadcast_to(column[:, None].round().astype(np.uint8), (self.side, self.side, 3))
        return Image.fromarray(np.ascontiguousarray(pixels))


def rgb(colour: str) -> Colour:
    """Of "#rrggbb"."""
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _blend(a: str, b: str, t: np.ndarray) -> Image.Image:
    first, second = (np.array(rgb(colour), dtype=np.float64) for colour in (a, b))
    return Image.fromarray((first + (second - first) * t[..., None]).round().astype(np.uint8))


def smooth(points: Sequence[Point], steps: int = 12) -> list[Point]:
    """The closed Catmull-Rom spline through the points."""
    found, count = [], len(points)
    for i in range(count):
        p = [np.array(points[(i + k) % count], dtype=np.float64) for k in (-1, 0, 1, 2)]
        for step in range(steps):
            t = step / steps
            a, b = p[2] - p[0], 2 * p[0] - 5 * p[1] + 4 * p[2] - p[3]
            c = 3 * p[1] - p[0] - 3 * p[2] + p[3]
            found.append(tuple(0.5 * (2 * p[1] + a * t + b * t * t + c * t**3)))
    return found


def mirrored(points: Sequence[Point], axis: float = 0.5) -> list[Point]:
    """The points, then their mirror images in reverse: a symmetric outline from its right half."""
    return [*points, *((2 * axis - x, y) for x, y in reversed(points))]


def boat(size: int) -> Image.Image:
    c = Canvas(size, "#2b2d6e", "#8d4a8f", "#f0776b", "#ffc46b", "#ffe3a3", "#ffe3a3", "#ffe3a3")
    c.soft(0.3, 0.6, 0.3, 0.3, "#fff3c9", 0.75)
    c.ellipse(0.3, 0.6, 0.12, 0.12, "#fff7dc")
    c.polygon([(0, 0.62), (1, 0.62), (1, 1), (0, 1)], "#e88f6e", "#8a4f86", "#2c2a63")
    for k in range(7):
        y, half = 0.645 + 0.045 * k, 0.13 - 0.012 * k
        c.ellipse(0.3 + 0.012 * math.sin(2.1 * k), y, half, 0.008, "#ffd79a")
    c.soft(0.6, 0.83, 0.24, 0.04, "#1d1a47", 0.6)
    c.polygon([(0.61, 0.16), (0.61, 0.7), (0.87, 0.7)], "#ffffff", "#ffdfc2")
    c.polygon([(0.575, 0.24), (0.575, 0.7), (0.37, 0.7)], "#fff4e6", "#f2b5a0")
    c.line([(0.593, 0.12), (0.593, 0.76)], 0.016, "#4a2c33")
    c.polygon([(0.34, 0.745), (0.9, 0.745), (0.8, 0.84), (0.43, 0.84)], "#b23a48", "#6d1f33")
    c.line([(0.36, 0.768), (0.88, 0.768)], 0.014, "#ffe9d6")
    return c.finished()


def apple(size: int) -> Image.Image:
    c = Canvas(size, "#d9efe3", "#b7dfcf", "#8fc9b5")
    c.polygon([(0, 0.74), (1, 0.74), (1, 1), (0, 1)], "#7bb5a0", "#5d9a86")
    c.soft(0.53, 0.87, 0.3, 0.06, "#1f4a3e", 0.65)
    right = [(0.5, 0.335), (0.62, 0.28), (0.77, 0.33), (0.83, 0.5), (0.77, 0.7), (0.64, 0.865), (0.55, 0.86)]
    c.ball(mirrored(right), (0.37, 0.42), "#ff6b57", "#9c1027")
    c.soft(0.5, 0.335, 0.085, 0.028, "#5c0a17", 0.75)
    c.line([(0.5, 0.34), (0.515, 0.24), (0.55, 0.17)], 0.025, "#5b3a21")
    c.blob([(0.53, 0.25), (0.6, 0.15), (0.72, 0.11), (0.82, 0.14), (0.73, 0.22), (0.62, 0.26)], "#8bd450", "#3f8f2f")
    c.line([(0.545, 0.245), (0.66, 0.185), (0.78, 0.145)], 0.008, "#2f7424")
    c.soft(0.34, 0.44, 0.06, 0.09, "#fff1ea", 0.85)
    return c.finished()


def mountains(size: int) -> Image.Image:
    c = Canvas(size, "#3d7fd0", "#8dc0ee", "#dff0fb", "#f6f3e4")
    c.soft(0.8, 0.17, 0.16, 0.16, "#fff6cf", 0.8)
    c.ellipse(0.8, 0.17, 0.075, 0.075, "#fffbe3")
    for peak, left, right, top in ((0.3, -0.12, 0.72, 0.2), (0.72, 0.36, 1.15, 0.3)):
        c.polygon([(left, 0.78), (peak, top), (right, 0.78)], "#7d8fb3", "#56688f")
        c.polygon([(peak, top), (right, 0.78), (peak + 0.05, 0.78)], "#64769c", "#465779")
        low, width = top + 0.17, 0.115
        snow = [(peak, top), (peak + width, low), (peak + 0.055, low - 0.045), (peak + 0.01, low + 0.02)]
        c.polygon([*snow, (peak - 0.05, low - 0.035), (peak - width * 0.98, low - 0.005)], "#ffffff", "#e3edf8")
    c.blob(
        [(-0.2, 0.75), (0.15, 0.66), (0.5, 0.73), (0.85, 0.65), (1.2, 0.72), (1.2, 1.2), (-0.2, 1.2)],
        "#6fae5f",
        "#3f7f45",
    )
    for x, y, h in ((0.1, 0.9, 0.26), (0.24, 0.96, 0.3), (0.8, 0.9, 0.27), (0.93, 0.97, 0.32), (0.66, 0.95, 0.2)):
        c.polygon([(x - 0.012, y), (x + 0.012, y), (x + 0.012, y + 0.05), (x - 0.012, y + 0.05)], "#4c3524")
        for k in range(3):
            base, half = y - 0.28 * h * k, h * (0.34 - 0.08 * k)
            c.polygon([(x, base - 0.48 * h), (x + half, base), (x - half, base)], "#2f6a43", "#1b4730")
    return c.finished()


def balloon(size: int) -> Image.Image:
    c = Canvas(size, "#1f9bd1", "#6cc6ea", "#c9ecf8")
    for x, y, r in ((0.14, 0.3, 0.07), (0.86, 0.2, 0.06), (0.82, 0.76, 0.09), (0.14, 0.82, 0.08)):
        for dx, dy, scale in ((-1, 0.2, 0.7), (0, 0, 1), (1, 0.2, 0.75)):
            c.ellipse(x + dx * r, y + dy * r, r * scale, r * scale * 0.75, "#ffffff", "#e6f5fb")
    for x0, x1 in ((0.42, 0.452), (0.58, 0.548)):
        c.line([(x0, 0.66), (x1, 0.83)], 0.008, "#5a3b23")
    for half, colours in ((0.3, 0), (0.215, 1), (0.125, 0), (0.04, 1)):
        right = [
            (0.5, 0.08),
            (0.5 + 0.75 * half, 0.14),
            (0.5 + half, 0.36),
            (0.5 + 0.72 * half, 0.55),
            (0.5 + 0.3 * half, 0.69),
        ]
        c.blob(mirrored(right), *(RED, YELLOW)[colours])
    c.soft(0.37, 0.27, 0.08, 0.11, "#fff6d8", 0.5)
    c.polygon([(0.41, 0.665), (0.59, 0.665), (0.575, 0.695), (0.425, 0.695)], "#7d1116")
    c.polygon([(0.44, 0.82), (0.56, 0.82), (0.545, 0.93), (0.455, 0.93)], "#b9814a", "#7d5028")
    c.line([(0.435, 0.825), (0.565, 0.825)], 0.018, "#5a3b23")
    return c.finished()


def cat(size: int) -> Image.Image:
    c = Canvas(size, "#6a5acd", "#8f7fe0", "#b6a6f0")
    c.soft(0.5, 0.93, 0.34, 0.07, "#2d2372", 0.5)
    for side in (-1, 1):
        ear = [(0.5 + side * 0.33, 0.1), (0.5 + side * 0.345, 0.42), (0.5 + side * 0.09, 0.27)]
        c.polygon(ear, "#f7a04a", "#d9742a")
        inner = [(0.5 + side * 0.295, 0.19), (0.5 + side * 0.3, 0.36), (0.5 + side * 0.15, 0.28)]
        c.polygon(inner, "#ffc7b8", "#ee8f86")
    right = [(0.53, 0.235), (0.72, 0.29), (0.85, 0.47), (0.84, 0.66), (0.7, 0.83), (0.55, 0.9)]
    c.ball(mirrored(right), (0.42, 0.4), "#ffc06e", "#d76f26")
    for x, top, low in ((0.5, 0.245, 0.38), (0.42, 0.26, 0.36), (0.58, 0.26, 0.36)):
        c.polygon([(x - 0.02, top), (x + 0.02, top), (x, low)], "#b9541c")
    for side in (-1, 1):
        c.ellipse(0.5 + side * 0.095, 0.71, 0.125, 0.095, "#fff3e2", "#ffe0bd")
        x = 0.5 + side * 0.175
        c.ellipse(x, 0.52, 0.088, 0.1, "#b8f06a", "#4fae3c")
        c.ellipse(x, 0.52, 0.034, 0.085, "#17231a")
        c.ellipse(x - 0.026, 0.485, 0.02, 0.024, "#ffffff")
        for dy in (-0.025, 0.02, 0.065):
            c.line([(0.5 + side * 0.17, 0.7 + dy / 2), (0.5 + side * 0.43, 0.685 + 1.6 * dy)], 0.007, "#fff6ea")
    c.blob([(0.455, 0.628), (0.5, 0.617), (0.545, 0.628), (0.5, 0.678)], "#f2879a", "#d35a74")
    for side in (-1, 1):
        c.line(
            [(0.5, 0.67), (0.5 + side * 0.01, 0.715), (0.5 + side * 0.06, 0.742), (0.5 + side * 0.1, 0.725)],
            0.012,
            "#8a4122",
        )
    return c.finished()


def flower(size: int) -> Image.Image:
    c = Canvas(size, "#0f5e63", "#1d7f74", "#2f9c7c")
    for x, y, r in ((0.12, 0.16, 0.1), (0.88, 0.3, 0.13), (0.14, 0.72, 0.12), (0.84, 0.85, 0.1)):
        c.soft(x, y, r, r, "#7fd6b0", 0.3)
    c.line([(0.5, 0.5), (0.515, 0.8), (0.49, 1.05)], 0.035, "#3d8b3d")
    c.blob([(0.505, 0.93), (0.6, 0.83), (0.75, 0.8), (0.85, 0.83), (0.74, 0.92), (0.61, 0.96)], "#7ccf5f", "#35833a")
    for ring, (count, reach, colours) in enumerate(
        ((16, 0.25, ("#f39c12", "#d97706")), (16, 0.235, ("#ffd23f", "#f5a906")))
    ):
        for k in range(count):
            turn = 360 * (k + 0.5 * ring) / count
            x, y = 0.5 + reach * math.cos(math.radians(turn)), 0.42 + reach * math.sin(math.radians(turn))
            c.ellipse(x, y, 0.125, 0.042, *colours, turn=turn)
    c.ball([(0.5 + 0.15 * math.cos(a), 0.42 + 0.15 * math.sin(a)) for a in np.linspace(0, 2 * np.pi, 12, False)],
           (0.45, 0.36), "#8a5a2b", "#3a200d")  # fmt: skip
    for k in range(1, 90):
        radius, angle = 0.0148 * math.sqrt(k), 2.39996 * k
        c.ellipse(0.5 + radius * math.cos(angle), 0.42 + radius * math.sin(angle), 0.006, 0.006, "#c98b3f")
    return c.finished()


def fish(size: int) -> Image.Image:
    c = Canvas(size, "#35c3d9", "#1587b8", "#0b4f8a", "#082f62")
    for x, width in ((0.15, 0.1), (0.45, 0.07), (0.75, 0.12)):
        mask = Image.new("L", (c.side, c.side))
        corners = [(x, 0), (x + width, 0), (x + width - 0.08, 0.85), (x - 0.16, 0.85)]
        ImageDraw.Draw(mask).polygon([(u * c.side, v * c.side) for u, v in corners], fill=30)
        c.image.paste("#ffffff", mask=mask.filter(ImageFilter.GaussianBlur(0.02 * c.side)))
    c.blob([(-0.2, 0.93), (0.2, 0.88), (0.55, 0.93), (1.2, 0.87), (1.2, 1.2), (-0.2, 1.2)], "#e4cf9a", "#b3955c")
    for x, height, colour in ((0.1, 0.3, "#2f9e6e"), (0.17, 0.22, "#48b97f"), (0.91, 0.26, "#ef6f8e")):
        wave = [(x + 0.02 * math.sin(9 * t + x), 0.94 - height * t) for t in np.linspace(0, 1, 12)]
        c.line(wave, 0.03, colour)
    c.blob([(0.29, 0.5), (0.13, 0.33), (0.09, 0.36), (0.14, 0.5), (0.09, 0.65), (0.13, 0.68)], "#ff9a3d", "#e85d1f")
    c.blob([(0.42, 0.36), (0.5, 0.2), (0.66, 0.22), (0.72, 0.36)], "#ffb347", "#f07427")
    c.blob([(0.45, 0.65), (0.48, 0.8), (0.6, 0.76), (0.63, 0.64)], "#ffa23f", "#e2611f")
    body = [(0.25, 0.5), (0.36, 0.37), (0.54, 0.3), (0.74, 0.34), (0.88, 0.5), (0.74, 0.65), (0.54, 0.7), (0.36, 0.63)]
    c.ball(body, (0.6, 0.38), "#ffd166", "#f3722c")
    for x, half in ((0.42, 0.145), (0.64, 0.182)):
        band = [(x - 0.028, 0.5 - half), (x + 0.028, 0.5 - half), (x + 0.05, 0.5), (x + 0.028, 0.5 + half)]
        c.blob([*band, (x - 0.028, 0.5 + half), (x - 0.005, 0.5)], "#ffffff", "#dcebf5")
    c.blob([(0.54, 0.52), (0.48, 0.6), (0.46, 0.57), (0.49, 0.5)], "#f9844a")
    c.ellipse(0.77, 0.45, 0.037, 0.04, "#ffffff")
    c.ellipse(0.779, 0.453, 0.021, 0.024, "#10243d")
    c.ellipse(0.785, 0.445, 0.007, 0.008, "#ffffff")
    c.line([(0.866, 0.53), (0.83, 0.555), (0.795, 0.55)], 0.011, "#b4441a")
    for x, y, r in ((0.9, 0.3, 0.03), (0.86, 0.19, 0.022), (0.92, 0.11, 0.016), (0.3, 0.2, 0.018)):
        c.ellipse(x, y, r, r, "#b9ecf6")
        c.ellipse(x, y, r * 0.78, r * 0.78, "#4fb8d6")
        c.ellipse(x - r / 3, y - r / 3, r / 4, r / 4, "#ffffff")
    return c.finished()


def house(size: int) -> Image.Image:
    c = Canvas(size, "#83c5ff", "#c4e6ff", "#fdf4dc", "#fdf4dc")
    c.blob([(-0.2, 0.64), (0.2, 0.58), (0.6, 0.65), (1.2, 0.57), (1.2, 1.2), (-0.2, 1.2)], "#a5d66b", "#5fa04a")
    for x, y, r in ((0.2, 0.16, 0.06), (0.7, 0.11, 0.05)):
        for dx, scale in ((-1, 0.7), (0, 1), (1, 0.75)):
            c.ellipse(x + dx * r, y + 0.15 * r * abs(dx), r * scale, r * scale * 0.7, "#ffffff", "#eaf5fd")
    c.soft(0.4, 0.86, 0.34, 0.035, "#2e5a2a", 0.55)
    c.polygon([(0.52, 0.21), (0.6, 0.21), (0.6, 0.42), (0.52, 0.42)], "#a85f43", "#854832")
    c.polygon([(0.15, 0.48), (0.64, 0.48), (0.64, 0.85), (0.15, 0.85)], "#fff3da", "#efd6ab")
    c.polygon([(0.395, 0.2), (0.71, 0.5), (0.08, 0.5)], "#e2574c", "#a92f33")
    c.line([(0.08, 0.5), (0.71, 0.5)], 0.016, "#7c1f27")
    c.polygon([(0.345, 0.62), (0.455, 0.62), (0.455, 0.85), (0.345, 0.85)], "#4b7f9e", "#2f5a78")
    c.ellipse(0.437, 0.74, 0.01, 0.01, "#ffd86b")
    for x in (0.2, 0.5):
        c.polygon([(x - 0.012, 0.578), (x + 0.112, 0.578), (x + 0.112, 0.722), (x - 0.012, 0.722)], "#ffffff")
        c.polygon([(x, 0.59), (x + 0.1, 0.59), (x + 0.1, 0.71), (x, 0.71)], "#bfe6fb", "#79bfe6")
        c.line([(x + 0.05, 0.59), (x + 0.05, 0.71)], 0.01, "#ffffff")
        c.line([(x, 0.65), (x + 0.1, 0.65)], 0.01, "#ffffff")
    c.ellipse(0.395, 0.4, 0.042, 0.042, "#ffffff")
    c.ellipse(0.395, 0.4, 0.03, 0.03, "#8fcdf0")
    c.polygon([(0.345, 0.85), (0.455, 0.85), (0.6, 1.02), (0.3, 1.02)], "#f1dfb8", "#d9c08c")
    c.polygon([(0.815, 0.6), (0.855, 0.6), (0.865, 0.88), (0.805, 0.88)], "#8b5e3c", "#5f3d25")
    for x, y, r in ((0.76, 0.5, 0.1), (0.9, 0.52, 0.095), (0.835, 0.4, 0.125)):
        c.ellipse(x, y, r, r, "#6fbf4b", "#3f8f3a")
    for x, y in ((0.8, 0.42), (0.88, 0.47), (0.77, 0.52), (0.9, 0.56), (0.85, 0.35)):
        c.ellipse(x, y, 0.016, 0.016, "#e63946")
    return c.finished()


PICTURES: dict[str, Callable[[int], Image.Image]] = {
    "boat": boat,
    "apple": apple,
    "cat": cat,
    "mountains": mountains,
    "balloon": balloon,
    "fish": fish,
    "flower": flower,
    "house": house,
}
