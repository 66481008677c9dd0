"""The contact sheets of ``fastmix gallery`` and ``fastmix predict``: cards of pictures with a few words below each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmix.train.errors import UserError, reason

if TYPE_CHECKING:
    from torch import Tensor

PAPER, CARD, RULE = "#f6f7fb", "#ffffff", "#dcdfea"
INK, MUTED = "#1b1e2e", "#73788c"
OWN, PARTNER = (59, 88, 199), (243, 146, 55)


class Mixed(NamedTuple):
    """What one method made of the pictures: ``images (B, 3, H, W)``, the own image's weights ``(B, H, W)``, labels'."""

    title: str
    about: str
    source: str
    images: Tensor
    weights: Tensor
    lam: list[float]
    lam_b: list[float]


class Sheet:
    """Draws from top to bottom. Lengths are those of pictures of 128 pixels and grow with them."""

    def __init__(self, size: int, columns: int, rows: int, texts: int) -> None:
        self.size, self.columns = size, columns
        self.margin, self.gap, self.pad = self.scaled(28), self.scaled(10), self.scaled(14)
        self.labels, self.caption = self.scaled(166), self.scaled(36)
        self.small, self.plain, self.large = (ImageFont.load_default(self.scaled(s)) for s in (11.5, 14.5, 30))
        width = 2 * (self.margin + self.pad) + self.labels + columns * (size + self.gap)
        self.head = self.scaled(92)
        height = self.head + rows + self.margin + texts * self.scaled(18)
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = self.head

    def scaled(self, length: float) -> int:
        return max(1, round(length * max(self.size, 96) / 128))

    def card_height(self, count: int) -> int:
        """Of a method with so many pictures."""
        lines = -(-count // self.columns)
        return 2 * self.pad + lines * (self.size + self.caption) + (lines - 1) * self.gap

    def header(self, title: str, legend: Sequence[tuple[tuple[int, int, int], str]], text: str) -> None:
        """`legend` says what the colours stand for; the text after it is left out where it is too long."""
        x, y = self.margin, self.scaled(22)
        self.draw.text((x, y), title, INK, self.large)
        y += self.scaled(42)
        for colour, name in legend:
            side = self.scaled(11)
            self.draw.rounded_rectangle((x, y, x + side, y + side), side // 4, colour)
            x += side + self.scaled(6)
            self.draw.text((x, y - self.scaled(1)), name, MUTED, self.small)
            x += self.scaled(20) + round(self.small.getlength(name))
        if x + self.small.getlength(text) <= self.image.width - self.margin:
            self.draw.text((x, y - self.scaled(1)), text, MUTED, self.small)

    def card(self, title: str, lines: list[str], cells: list[tuple]) -> None:
        """`cells` are (picture, thumbnail or None, text, share or None)."""
        height = self.card_height(len(cells))
        box = (self.margin, self.y, self.image.width - self.margin, self.y + height)
        self.draw.rounded_rectangle(box, self.scaled(10), CARD, RULE)
        x, y = self.margin + self.pad, self.y + self.pad
        self.draw.text((x, y), title, INK, self._fitting(title))
        y += self.scaled(24)
        room = max(1, (self.y + height - self.pad - y) // self.scaled(15))
        for line in [part for text in lines for part in self._wrapped(text)][:room]:
            self.draw.text((x, y), line, MUTED, self.small)
            y += self.scaled(15)
        for number, cell in enumerate(cells):
            row, column = divmod(number, self.columns)
            left = self.margin + self.pad + self.labels + column * (self.size + self.gap)
            self._cell(left, self.y + self.pad + row * (self.size + self.caption + self.gap), *cell)
        self.y += height + self.gap

    def _cell(
        self, x: int, y: int, picture: Image.Image, thumbnail: Image.Image | None, text: str, share: float | None
    ) -> None:
        self.image.paste(picture, (x, y), _rounded(picture.size, self.scaled(6)))
        side, top = self.caption - self.scaled(9), y + self.size + self.scaled(6)
        left, right = x, x + self.size
        if thumbnail is not None:
            self.image.paste(thumbnail.resize((side, side)), (x, top), _rounded((side, side), self.scaled(4)))
            left += side + self.scaled(8)
        if share is None:
            self.draw.text((left, top + side // 2), self._cut(text, right - left), MUTED, self.small, anchor="lm")
            return
        self.draw.text((left, top), self._cut(text, right - left), INK, self.small)
        bar, thick = top + side - self.scaled(8), self.scaled(6)
        middle = left + round((right - left) * min(max(share, 0.0), 1.0))
        self.draw.rectangle((left, bar, right - 1, bar + thick), RULE if thumbnail is None else PARTNER)
        if middle > left:
            self.draw.rectangle((left, bar, middle - 1, bar + thick), OWN)

    def notes(self, lines: list[str]) -> None:
        for line in lines:
            text = self._cut(line, self.image.width - 2 * self.margin)
            self.draw.text((self.margin, self.y + self.scaled(4)), text, MUTED, self.small)
            self.y += self.scaled(18)

    def _fitting(self, title: str) -> ImageFont.ImageFont:
        """The font of a title, smaller where that is too wide."""
        fonts = [ImageFont.load_default(self.scaled(points)) for points in (18, 16, 14, 12)]
        return next((font for font in fonts if font.getlength(title) <= self.labels - self.gap), fonts[-1])

    def _wrapped(self, text: str) -> list[str]:
        if not text:
            return [""]
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.small.getlength(longer) <= self.labels - self.gap:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def _cut(self, text: str, width: int) -> str:
        while text and self.small.getlength(text) > width:
            text = text[:-2].rstrip(". ") + "." if len(text) > 2 else ""
        return text


def draw_sheet(
    pictures: list[tuple[str, Image.Image]], index: list[int], rows: list[Mixed], columns: int, notes: list[str]
) -> Image.Image:
    """The whole sheet: the pictures with their partners, then a card for each method."""
    count, size = len(pictures), pictures[0][1].width
    sheet = Sheet(size, columns, 0, len(notes))
    height = (len(rows) + 1) * (sheet.card_height(count) + sheet.gap)
    sheet = Sheet(size, columns, height, len(notes))
    sheet.header(
        "fastmix gallery",
        ((OWN, "the picture itself"), (PARTNER, "its partner")),
        "below each mix: its mask, and lam, the weight of the picture's own label",
    )
    cells = [
        (image, pictures[k][1], f"+ {pictures[k][0]}", None) for (_, image), k in zip(pictures, index, strict=True)
    ]
    sheet.card("Pictures", ["each with the partner that it is mixed with"], cells)
    for row in rows:
        cells = [
            (_picture(x), _mask(weights), _label(lam, lam_b), lam / max(lam + lam_b, 1e-9))
            for x, weights, lam, lam_b in zip(row.images, row.weights, row.lam, row.lam_b, strict=True)
        ]
        sheet.card(row.title, [row.about, "", row.source], cells)
    sheet.notes(notes)
    return sheet.image


def draw_predictions(
    pictures: list[Image.Image], names: list[str], shares: list[float], columns: int, lines: list[str], note: str
) -> Image.Image:
    """One card of square pictures, each with its predicted class and the probability of that."""
    size = pictures[0].width
    sheet = Sheet(size, columns, 0, 1)
    sheet = Sheet(size, columns, sheet.card_height(len(pictures)) + sheet.gap, 1)
    sheet.header("fastmix predict", ((OWN, "probability of the predicted class"),), "")
    cells = [
        (picture, None, f"{share:.0%} {name}", share)
        for picture, name, share in zip(pictures, names, shares, strict=True)
    ]
    sheet.card("Predictions", lines, cells)
    sheet.notes([note])
    return sheet.image


def check_out(out: Path, inputs: Sequence[Path]) -> None:
    """That a sheet can be written to the file ``out`` without loss of an input.

    Raises:
        UserError: it cannot.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, such as {out / 'sheet.png'}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and any(path.exists() and path.samefile(out) for path in inputs):
        raise UserError(f"--out {out} is one of the pictures, which would be lost")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out}: cannot write {out.suffix or 'a file without ending'}; use .png, .jpg or .webp")


def write_sheet(sheet: Image.Image, out: Path) -> None:
    """Encoded first, so that a picture that cannot be written leaves the old file alone.

    Raises:
        UserError: it cannot be written.
    """
    memory = io.BytesIO()
    try:
        sheet.save(memory, Image.registered_extensions()[out.suffix.lower()])
        out.write_bytes(memory.getvalue())
    except OSError as error:
        raise UserError(f"{out}: {reason(error)}") from None


def _label(lam: float, lam_b: float) -> str:
    return f"lam {lam:.2f}" if abs(lam + lam_b - 1) < 1e-3 else f"{lam:.2f}, {lam_b:.2f}"


def _picture(x: Tensor) -> Image.Image:
    """Of values ``(3, H, W)`` in [0, 1]."""
    return Image.fromarray((x.clamp(0, 1) * 255).round().byte().movedim(0, -1).contiguous().numpy())


def _mask(weights: Tensor) -> Image.Image:
    """Weights ``(H, W)`` of the own image as colours between the partner's and its own."""
    own, partner = (np.array(colour, dtype=np.float32) for colour in (OWN, PARTNER))
    pixels = partner + (own - partner) * weights.clamp(0, 1).numpy()[..., None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with smooth corners."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * size[0] - 1, 4 * size[1] - 1), 4 * radius, 255)
    return mask.resize(size, Image.Resampling.BOX)
