"""Name what is on pictures, by a classifier that fastmix train made.

Prints the likeliest classes of each picture with their probabilities; --csv and --out write them to files. Pictures
are read, cut and normalised as the test images of the training run were. Needs Pillow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastmix.train.config import MAX_PIXELS, UNREADABLE
from fastmix.train.errors import UserError, need, printable
from fastmix.train.listing import named_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

TOP = 5
COLUMNS, SIZE = 6, 128
SHOWN = 300  # pictures on a sheet


class Prediction(NamedTuple):
    """The likeliest classes of a picture with their probabilities, falling."""

    path: Path
    best: list[tuple[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastmix predict``."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint.pt, or the folder of a run")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--top", type=int, metavar="K", help=f"classes to show (default: {TOP}, or all if fewer)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--out", type=Path, metavar="PICTURE", help="draw the pictures with their classes on one sheet")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at once (default: 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--unreadable", choices=UNREADABLE, default="stop", help="pictures that cannot be read (default: stop)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="do not read larger ones (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix predict``."""
    try:
        return _predict(args)
    except UserError as error:
        print(f"fastmix predict: error: {error}", file=sys.stderr)
        return 2


def _predict(args: argparse.Namespace) -> int:
    need("PIL.Image", "pillow", "fastmix predict")
    from fastmix.train.distributed import usable_device
    from fastmix.train.predictor import Predictor

    for option, value in (("--batch-size", args.batch_size), ("--top", args.top), ("--max-pixels", args.max_pixels)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be above 0, got {value}")
    paths, left_out = named_images(args.images)
    for path in left_out:
        print(f"fastmix predict: left out {printable(path)}, a hidden file or one of the system", file=sys.stderr)
    _check_files(args, paths)
    predictor = Predictor(args.checkpoint, usable_device(args.device))
    count = len(predictor.classes)
    if args.top is not None and args.top > count:
        raise UserError(f"--top {args.top}: the model has {count} classes")
    predictions, thumbnails = _run(args, predictor, paths, args.top or min(TOP, count))
    _print_table(predictions)
    if args.csv is not None:
        _write_csv(args.csv, predictions)
    if args.out is not None:
        _draw(args.out, predictor, predictions, thumbnails)
    return 0


def _check_files(args: argparse.Namespace, paths: list[Path]) -> None:
    """Before the work begins, that what is written harms nothing."""
    from fastmix.cli.sheet import check_out

    inputs = [*paths, args.checkpoint]
    if args.out is not None:
        check_out(args.out, inputs)
    if args.csv is None:
        return
    if args.csv.is_dir() or not args.csv.parent.is_dir():
        raise UserError(f"--csv {args.csv}: is a folder, or there is no folder {args.csv.parent}")
    if args.csv.exists() and any(path.exists() and path.samefile(args.csv) for path in inputs):
        raise UserError(f"--csv {args.csv} is one of the inputs, which would be lost")


def _run(args, predictor, paths: list[Path], top: int) -> tuple[list[Prediction], list[Image.Image]]:
    """Predictions of all pictures that can be read, and small pictures of as many as a sheet shows."""
    import torch
    from PIL import Image, ImageOps

    from fastmix.train.images import read_image

    def read(path: Path) -> tuple[Tensor, Image.Image | None] | UserError:
        try:
            image = read_image(path, args.max_pixels)
        except UserError as error:
            return error
        drawn = args.out is not None and path in shown
        small = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.LANCZOS) if drawn else None
        return predictor.pixels(image), small

    shown = set(paths[:SHOWN])
    predictions: list[Prediction] = []
    thumbnails: list[Image.Image] = []
    faults: list[UserError] = []
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), args.batch_size):
            chosen = paths[first : first + args.batch_size]
            found = list(zip(chosen, pool.map(read, chosen), strict=True))
            faults += [read for _, read in found if isinstance(read, UserError)]
            if faults and args.unreadable == "stop":
                raise UserError(f"{faults[0]}; --unreadable skip leaves such files out")
            good = [(path, *read) for path, read in found if not isinstance(read, UserError)]
            if not good:
                continue
            best = predictor(torch.stack([pixels for _, pixels, _ in good])).topk(top)
            for (path, _, small), shares, numbers in zip(
                good, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                names = [predictor.classes[number] for number in numbers]
                predictions.append(Prediction(path, list(zip(names, shares, strict=True))))
                thumbnails += [] if small is None else [small]
    for fault in faults:
        print(f"fastmix predict: left out {fault}", file=sys.stderr)
    if not predictions:
        raise UserError(f"none of the {len(paths)} pictures can be read")
    return predictions, thumbnails


def _print_table(predictions: Sequence[Prediction]) -> None:
    """A line for each picture."""
    head = ["image", *(f"{k}." for k in range(1, 1 + len(predictions[0].best)))]
    lines = [
        [printable(path), *(f"{share:6.1%} {printable(name)}" for name, share in best)] for path, best in predictions
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    encoding = sys.stdout.encoding or "utf-8"
    for cells in [head, *lines]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def _write_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Columns image, class_1, probability_1, class_2 and so on."""
    from fastmix.train.files import write_csv

    def whole(name: str) -> str:
        """As it is, but that broken bytes are escaped."""
        return name.encode("utf-8", "backslashreplace").decode()

    rows = []
    for prediction in predictions:
        row: dict[str, str | float] = {"image": whole(str(prediction.path))}
        for place, (name, share) in enumerate(prediction.best, start=1):
            row |= {f"class_{place}": whole(name), f"probability_{place}": share}
        rows.append(row)
    write_csv(path, rows)


def _draw(out: Path, predictor, predictions: Sequence[Prediction], thumbnails: list[Image.Image]) -> None:
    from fastmix.cli.sheet import draw_predictions, write_sheet

    names = [printable(prediction.best[0][0]) for prediction in predictions[: len(thumbnails)]]
    shares = [prediction.best[0][1] for prediction in predictions[: len(thumbnails)]]
    about = [f"{predictor.config.model}, {predictor.config.method}", f"{len(predictor.classes)} classes"]
    more = f"The first {len(thumbnails)} of {len(predictions)} pictures." if len(thumbnails) < len(predictions) else ""
    sheet = draw_predictions(thumbnails, names, shares, COLUMNS, about, more)
    write_sheet(sheet, out)
    print(f"{out}: {sheet.width} x {sheet.height}, {len(thumbnails)} pictures")
