"""One way from an image file to pixels, for training, prediction and the gallery: Pillow, and what it leaves open.

Whatever a file holds becomes an upright RGB picture of 8 bits on white:

* the first frame or page of an animation or a TIFF of many pages;
* turned as the EXIF orientation says;
* 16-bit grey ``v`` is ``v / 257`` rounded (integers of 12 bits by their own white, 4095); 16-bit colour keeps the
  upper 8 bits, as Pillow reads it;
* 32-bit integers in [0, 65535] count as 16-bit grey, floats in [0, 1] are times 255; where a value lies outside, the
  picture's own smallest and largest value become black and white. NaN and infinite values are an error;
* transparent pixels, of an alpha channel, a palette or a single colour, are composited on white;
* CMYK, YCbCr, LAB and HSV are converted by Pillow. Embedded colour profiles are not applied.

The content decides what a file is, not the ending of its name. PostScript, which Pillow would hand to another program,
is refused.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fastmix.train.config import MAX_PIXELS
from fastmix.train.errors import UserError, printable, reason

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_SLICE = 64
_lock = threading.Lock()


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file: RGB, upright, on white; see the top of this module.

    Safe to call from many threads.

    Args:
        path: a regular file; pipes, devices and folders are refused before they are opened.
        max_pixels: a larger picture is refused before it is decoded, whatever ``Image.MAX_IMAGE_PIXELS`` says.

    Raises:
        UserError: not there, not an image, damaged, too large, or not finite; the text names the file and why.

    Example:
        >>> read_image(Path("photograph.jpg")).mode
        'RGB'
    """
    return _read(path, max_pixels, whole=True)


def unreadable(paths: Sequence[Path], max_pixels: int = MAX_PIXELS) -> dict[Path, str]:
    """Those of the files that :func:`read_image` refuses, each with its error, in the order given.

    Every file is read to its end and decoded, on all cores; a JPEG only as far as an eighth of its size needs.
    """

    def faults(part: Sequence[Path]) -> list[tuple[Path, str]]:
        found = []
        for path in part:
            try:
                _read(path, max_pixels, whole=False)
            except UserError as error:
                found.append((path, str(error)))
        return found

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        parts = pool.map(faults, [paths[k : k + _SLICE] for k in range(0, len(paths), _SLICE)])
        return dict(fault for part in parts for fault in part)
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for all the files


def _read(path: Path, max_pixels: int, whole: bool) -> Image.Image:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UserError(f"{printable(path)}: {kind}")
        if status.st_size == 0:
            raise _fault(path, "the file is empty")
        with path.open("rb") as file:
            try:
                return _decoded(file, path, max_pixels, whole)
            except Image.DecompressionBombError:
                with _without_a_limit():
                    return _decoded(file, path, max_pixels, whole)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise _fault(path, "not of a format that Pillow knows, or damaged at its start") from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{printable(path)}: {reason(error)}") from None
        raise _fault(path, str(error)) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _fault(path, str(error) or type(error).__name__) from None


def _fault(path: Path, why: str) -> UserError:
    return UserError(f"{printable(path)}: not a readable image ({' '.join(why.split())})")


def _decoded(file: BinaryIO, path: Path, max_pixels: int, whole: bool) -> Image.Image:
    file.seek(0)
    with Image.open(file) as image:
        if image.format == "EPS":
            raise _fault(path, "PostScript is a program, which is not run")
        width, height = image.size
        if width * height > max_pixels:
            raise UserError(
                f"{printable(path)}: too large, {width} x {height} pixels; raise the limit of {max_pixels} "
                "by --max-pixels"
            )
        if not width * height:
            raise _fault(path, f"{width} x {height} pixels")
        if not whole:
            image.draft("RGB", (1, 1))
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _in_colour(image)
    return rgb if turn is None else rgb.transpose(turn)


@contextmanager
def _without_a_limit() -> Iterator[None]:
    """Pillow's own limit off. It belongs to the whole process, so it is taken off only for files that exceed it."""
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # notes about a picture that are damaged do not spoil its pixels
        return 1


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits of grey
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> np.ndarray:
    """8-bit grey ``(H, W)`` of a picture of mode I, I;16 or F."""
    tags = getattr(image, "tag_v2", {})  # of TIFF alone
    values = np.asarray(image)
    white = 65535
    if values.dtype.kind != "f":
        bits = tags.get(_BITS, (16,))[0]
        if bits == 32 and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
            values = values.view(np.uint32)  # which Pillow gives as int32
        if bits < 16:
            white = (1 << bits) - 1
        values = values.astype(np.int64)
    elif not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" and low >= 0 and high <= white:
        grey = (values * 255 + white // 2) // white
    elif low >= 0 and high <= 1:
        grey = np.rint(values * 255)
    else:
        # halves, because the difference of two floats may overflow
        spread = high / 2 - low / 2
        grey = np.rint((values / 2 - low / 2) * (255 / spread)) if spread else np.zeros_like(values)
    grey = grey.astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    clear = image.info.get("transparency")
    return grey if clear is None else np.where(values == clear, np.uint8(255), grey)
