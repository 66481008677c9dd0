"""Mix your own pictures by every method and draw one contact sheet, with the masks and lam, to look at.

Without pictures it takes eight of its own. Needs Pillow.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmix.train.config import MAX_PIXELS
from fastmix.train.errors import UserError, need, printable
from fastmix.train.listing import named_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from fastmix.cli.sheet import Mixed

DEFAULT_OUT = Path("gallery.png")
COLUMNS, SIZE = 6, 128
SIZES = range(64, 513, 16)  # so that the sides can be cut into the blocks of every method
LAM = (0.25, 0.75)
# What shows more of a method than its defaults do.
OPTIONS = {
    "puzzlemix": {"blocks": (4, 8, 16), "blocks_per_sample": True},
    "mixer": {"methods": ("mixup", "cutmix", "resizemix")},
}
CELLS = 8  # a side, that an attention has
UNSEEN = "mixes the hidden features of a model, so there is nothing to look at"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastmix gallery``."""
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="pictures of any format, size and shape")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the sheet; one that exists is replaced (default: {DEFAULT_OUT}, new)"
    )
    parser.add_argument("--methods", metavar="A,B", help="methods to show (default: all that can be seen)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="side of each picture in pixels (default: %(default)s)")
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="do not read larger ones (default: %(default)s)"
    )
    parser.add_argument("--columns", type=int, default=COLUMNS, help="pictures in a row (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix gallery``."""
    try:
        return _gallery(args)
    except UserError as error:
        print(f"fastmix gallery: error: {error}", file=sys.stderr)
        return 2


def _gallery(args: argparse.Namespace) -> int:
    need("PIL.Image", "pillow", "the gallery")
    from fastmix.cli.sheet import draw_sheet, write_sheet

    if args.size not in SIZES:
        raise UserError(f"--size must be a multiple of 16 from {SIZES[0]} to {SIZES[-1]}, got {args.size}")
    if not 1 <= args.columns <= 32:
        raise UserError(f"--columns must be from 1 to 32, got {args.columns}")
    if args.max_pixels < 1:
        raise UserError(f"--max-pixels must be above 0, got {args.max_pixels}")
    out = _checked_out(args.out, args.images)
    names = _chosen(args.methods)
    pictures = load(_pictures(args.images), args.size, args.columns, args.max_pixels)
    own = [number % len(pictures) for number in range(max(args.columns, len(pictures)))]
    index = partners(own)
    rows = [mix(name, [pictures[k][1] for k in own], index, args.seed) for name in names]
    sheet = draw_sheet([pictures[k] for k in own], index, rows, args.columns, _left_out(args.methods))
    write_sheet(sheet, out)
    print(f"{out}: {sheet.width} x {sheet.height}, {len(rows)} methods, {len(pictures)} pictures")
    return 0


def _pictures(paths: list[Path]) -> list[Path]:
    """Those of the named files that are pictures by the rule of all commands."""
    for path in paths:
        if path.is_dir():
            raise UserError(
                f"{printable(path)} is a folder; name the pictures in it, as in {printable(path / '*.jpg')}"
            )
    chosen, left_out = named_images(paths)
    for path in left_out:
        print(f"fastmix gallery: left out {printable(path)}, a hidden file or one of the system", file=sys.stderr)
    return chosen


def _checked_out(out: Path | None, images: list[Path]) -> Path:
    """Where to write; checked before the work begins."""
    from fastmix.cli.sheet import check_out

    if out is None:
        if DEFAULT_OUT.exists():
            raise UserError(f"{DEFAULT_OUT} exists: name another file by --out, or this one to replace it")
        return DEFAULT_OUT
    check_out(out, images)
    return out


def _chosen(wanted: str | None) -> list[str]:
    from fastmix.methods import METHODS

    if wanted is None:
        return [name for name, method in METHODS.items() if name != "none" and method.needs != "model"]
    names = [name.strip().lower() for name in wanted.split(",") if name.strip()]
    if not names:
        raise UserError(f"--methods must name methods, such as {','.join(list(METHODS)[1:3])}")
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(METHODS)}"
            raise UserError(f"--methods: there is no method {name!r}; {hint}")
        if METHODS[name].needs == "model":
            raise UserError(f"--methods: {name} {UNSEEN}")
    return list(dict.fromkeys(names))


def _left_out(wanted: str | None) -> list[str]:
    """What the sheet says of methods that nobody chose to leave out."""
    from fastmix.methods import METHODS

    if wanted is not None:
        return []
    unseen = [f"{method.__name__} {UNSEEN}." for method in METHODS.values() if method.needs == "model"]
    return [*unseen, "AutoMix learns its masks, so it is not here: fastmix train draws them as they become better."]


def load(
    paths: list[Path], size: int, columns: int = COLUMNS, max_pixels: int = MAX_PIXELS
) -> list[tuple[str, Image.Image]]:
    """Names and square pictures of ``size`` pixels: those at the paths, or a row of our own."""
    from PIL import Image, ImageOps

    from fastmix.cli.pictures import PICTURES
    from fastmix.train.images import read_image

    images = ((path.stem, read_image(path, max_pixels)) for path in paths)
    found = [(printable(name), ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)) for name, image in images]
    wanted = max(2, columns) if not found else 2  # a partner is needed
    return found + [(name, draw(size)) for name, draw in list(PICTURES.items())[: max(0, wanted - len(found))]]


def partners(own: list[int]) -> list[int]:
    """For each place the next one with another picture."""
    count = len(own)
    return [next((k % count for k in range(n + 1, n + count) if own[k % count] != own[n]), n) for n in range(count)]


def mix(name: str, pictures: list[Image.Image], index: list[int], seed: int) -> Mixed:
    """The pictures mixed by one method, each by a lam of its own."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from fastmix.cli.sheet import Mixed
    from fastmix.methods import create

    x = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).movedim(-1, 1).float() / 255
    count, generator = len(x), torch.Generator().manual_seed(seed)
    lam = torch.linspace(*LAM, count)[torch.randperm(count, generator=generator)]
    method = create(name, mode="sample", **OPTIONS.get(name, {}))
    given = {}
    if method.needs is not None:
        given["saliency"] = contrast(x) if method.needs == "saliency" else F.adaptive_avg_pool2d(contrast(x), CELLS)
    batch = method(x, torch.arange(count), generator, lam, torch.tensor(index), **given)
    lam_b = 1 - batch.lam if batch.lam_b is None else batch.lam_b
    labels = [part.expand(len(batch.x))[-count:].tolist() for part in (batch.lam, lam_b)]
    source = str(method.paper) if method.paper is not None else ""
    return Mixed(
        type(method).__name__, _about(type(method)), source, batch.x[-count:], batch.pixel_weight()[-count:], *labels
    )


def _about(method: type) -> str:
    """What a method does, from the first line of its file, without its name and its paper."""
    line = (inspect.getmodule(method).__doc__ or "").partition("\n")[0].removeprefix(f"{method.__name__}: ")
    text = re.sub(r" \([^()]*\d{4}[^()]*\)", "", line).replace("`", "")
    return text[:1].upper() + text[1:]


def contrast(x: Tensor) -> Tensor:
    """How much a picture differs from its border, smoothed, ``(B, H, W)``: a saliency that takes no network."""
    import torch
    import torch.nn.functional as F

    rim = torch.ones(x.shape[2:], dtype=torch.bool)
    edge = max(1, x.shape[2] // 10)
    rim[edge:-edge, edge:-edge] = False
    border = x[:, :, rim].mean(2)[..., None, None]
    difference = (x - border).square().mean(1, keepdim=True).sqrt()
    window = x.shape[2] // 16 * 2 + 1
    return F.avg_pool2d(difference, window, 1, window // 2, count_include_pad=False).squeeze(1)
