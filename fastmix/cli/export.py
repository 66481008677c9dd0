"""Write the weights of a trained classifier to a file that torchvision, timm or plain PyTorch loads.

OUT is a state dict, .pt (torch.load) or .safetensors, whose names are those of the model that was trained. How to load
it is printed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmix.train.errors import UserError, need, printable

if TYPE_CHECKING:
    from fastmix.train.export import Exported

WEIGHTS = ("teacher", "student", "teacher_one_hot", "teacher_mix", "student_one_hot", "student_mix")
SUFFIXES = (".pt", ".pth", ".safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastmix export``."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint.pt, or the folder of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="automix: whose weights, and of which head (default: those that the run's test accuracy is of)",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix export``."""
    try:
        print(_export(args.checkpoint, args.out, args.weights))
    except UserError as error:
        print(f"fastmix export: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _export(checkpoint: Path, out: Path, weights: str | None) -> str:
    """Write the file and return what is to be said of it."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"{printable(out)}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{printable(out)}: is a folder, or there is no folder {printable(out.parent)}")
    if out.suffix == ".safetensors":
        need("safetensors", "safetensors", f"writing {out.suffix}")
    from fastmix.train.export import export
    from fastmix.train.files import CHECKPOINT, write_atomic

    source = checkpoint / CHECKPOINT if checkpoint.is_dir() else checkpoint
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{printable(out)}: is the checkpoint, which would be lost")
    exported = export(checkpoint, weights)
    write_atomic(out, _content(exported, out.suffix))
    return _how_to_load(exported, out)


def _content(exported: Exported, suffix: str) -> bytes:
    if suffix == ".safetensors":
        from safetensors.torch import save

        texts = {"classes": exported.data.classes, "mean": exported.data.mean, "std": exported.data.std}
        return save(exported.weights, {name: json.dumps(value) for name, value in texts.items()})
    import torch

    buffer = io.BytesIO()
    torch.save(exported.weights, buffer)
    return buffer.getvalue()


def _how_to_load(exported: Exported, out: Path) -> str:
    data = exported.data
    colour = "RGB" if data.in_channels == 3 else "grey"
    if out.suffix == ".safetensors":
        loading = f"from safetensors.torch import load_file\nmodel.load_state_dict(load_file({str(out)!r}))"
    else:
        loading = f"import torch\nmodel.load_state_dict(torch.load({str(out)!r}, weights_only=True))"
    numbers = [", ".join(f"{value:.4g}" for value in values) for values in (data.mean, data.std)]
    return "\n".join(
        (
            f"{printable(out)}: {exported.config.model} of {len(data.classes)} classes; load it by",
            "",
            exported.code,
            loading,
            "model.eval()",
            "",
            f"images: {colour} in [0, 1], {data.image_size} x {data.image_size}, minus mean {numbers[0]}, "
            f"over std {numbers[1]}",
        )
    )
