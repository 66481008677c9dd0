"""Train an image classifier plainly, with AutoMix, or with any other mixing method.

Writes checkpoint.pt, log.csv, curves.png, mixes.png and config.yaml to the output folder. Needs the extra packages of
``pip install fastmix[train]``.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from fastmix.cli import Parser
from fastmix.train.config import CHOICES, FREE_ON_RESUME, Config, option
from fastmix.train.errors import UserError, need, reason

LISTED = 10
# What the command line alone has.
_ACTIONS = frozenset(("allow_changed_data", "config", "quiet", "resume"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. None of them sets a default, so that what was given can be told from what was not."""
    default = Config()

    def add(group, name: str, text: str, **options: Any) -> None:
        if (value := getattr(default, name, None)) is not None and options.get("action") is None:
            text += f" (default: {value})"
        if name in CHOICES:
            options["choices"] = CHOICES[name]
        group.add_argument(option(name), default=argparse.SUPPRESS, help=text, **options)

    def flag(group, name: str, text: str) -> None:
        add(group, name, text, action=argparse.BooleanOptionalAction)

    run = parser.add_argument_group("what to train")
    add(run, "data", "digits, cluttered-digits, cifar10:DIR, cifar100:DIR or folder:DIR", metavar="DATA")
    add(run, "method", "how images are mixed")
    add(run, "model", "resnet10, resnet18, resnet34, torchvision:NAME or timm:NAME", metavar="MODEL")
    add(run, "width", "channels of the first stage of a built-in model (default: 64, 16 for digits)", type=int)
    add(run, "labels_per_class", "train on so many images of each class only", type=int, metavar="K")
    add(run, "image_size", "side of the images of folder:DIR", type=int, metavar="PIXELS")
    add(run, "unreadable", "images of folder:DIR that cannot be read: stop, or go on without")
    add(run, "max_pixels", "an image of folder:DIR with more is not read", type=int, metavar="N")
    add(run, "seed", "of initial weights, order and mixing", type=int)
    add(run, "data_seed", "of the choice of labelled images (default: the seed)", type=int)

    loop = parser.add_argument_group("optimisation")
    add(loop, "epochs", "passes over the data (default: 30)", type=int)
    add(loop, "steps", "optimiser steps, instead of epochs", type=int)
    add(loop, "epoch_steps", "steps between evaluations (default: one pass over the data)", type=int)
    add(loop, "batch_size", "images a step and process", type=int)
    add(loop, "lr", "peak learning rate of SGD; a cosine takes it to 0", type=float)
    add(loop, "warmup", "steps of linear warm-up", type=int)
    add(loop, "weight_decay", "of all weights", type=float)
    add(loop, "smoothing", "label smoothing", type=float)
    flag(loop, "clean_loss", "add the loss on the unmixed images (default: only for automix)")

    mix = parser.add_argument_group("mixing")
    add(mix, "alpha", "of the Beta law of lambda (default: the method's, mostly 1; 2 for automix)", type=float)
    add(mix, "mode", "one lambda, box or mask for what (default: batch)")
    add(mix, "pairing", "how partners are found")
    add(
        mix, "mix_off_epoch", "mix in the first N epochs only, then train the same model plainly; 0 never", type=int,
        metavar="N",
    )  # fmt: skip
    add(mix, "feature", "automix, attentivemix: module of the model whose output is looked at")
    add(mix, "layers", "manifoldmix: modules to choose from, with commas; input for the images", metavar="NAMES")
    add(mix, "mix_lr", "automix: learning rate of the Mix Block", type=float)
    add(mix, "gamma", "automix: weight of the mask loss", type=float)
    add(mix, "init_std", "automix: initial spread of the Mix Block's weights", type=float)
    add(mix, "teacher_momentum", "automix: of the teacher, rising to 1 by a cosine", type=float)
    add(mix, "upsample", "automix: of the mask")
    add(mix, "lam_embed", "automix: where the Mix Block sees lambda")
    flag(mix, "released", "automix: the step and settings of the released code for CIFAR-100")
    flag(mix, "sequential", "automix: back-propagate part after part, for less memory")
    add(mix, "gen_every", "automix: train the Mix Block every K-th step", type=int, metavar="K")

    how = parser.add_argument_group("how to run")
    add(how, "out", "folder for all that is written (default: runs/DATA-METHOD-N)", type=Path, metavar="DIR")
    how.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with its settings")
    how.add_argument(
        "--allow-changed-data", action="store_true", help="resume though files, classes or arrays of the data changed"
    )
    how.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of these options")
    add(how, "amp", "mixed precision", nargs="?", const="bf16")
    flag(how, "channels_last", "memory layout of images and weights (default: on)")
    flag(how, "compile", "torch.compile the model")
    flag(how, "cuda_graph", "automix on one GPU: replay the whole step as a CUDA graph (not yet measured on a GPU)")
    add(how, "device", "auto, cpu, cuda or cuda:N")
    add(how, "workers", "processes that decode the images of folder:DIR", type=int)
    add(how, "threads", "of PyTorch on the CPU", type=int)
    flag(how, "tensorboard", "log to OUT/tensorboard where tensorboard is installed (default: on)")
    how.add_argument("--quiet", action="store_true", help="no progress bar and no line per epoch")


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix train``; a :class:`UserError` becomes one line and exit code 2.

    A run that a signal stopped returns 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    process = None
    try:
        given = {k: v for k, v in vars(args).items() if k not in _ACTIONS}
        if args.config is not None:
            given = {**_read_yaml(args.config), **given}
        from fastmix.train.distributed import join

        process = join(given.get("device", Config.device))
        with ExitStack() as stack:
            return _train(given, args, process, stack)
    except UserError as error:
        return 2 if process is not None and process.ended_elsewhere(error) else _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _fail(place + reason(error))
    except RuntimeError as error:
        if process is None or not process.ended_elsewhere(error):
            raise
        return 2
    finally:
        if process is not None:
            process.close()


def _train(given: dict[str, Any], args: argparse.Namespace, process, stack: ExitStack) -> int:
    """``stack`` keeps the output folder claimed to the end."""
    from fastmix.train import files, report
    from fastmix.train.trainer import Interrupted, Trainer

    need("matplotlib", "matplotlib", "drawing pictures")
    yaml = need("yaml", "pyyaml", "writing config.yaml")
    with process.together():
        config, out, state = _settings(given, args, process, stack)
    if config.data.startswith("folder:") and process.first and not args.quiet and sys.stderr.isatty():
        print("reading every image once, to find those that cannot be read", file=sys.stderr)
    trainer = Trainer(config, out, process)
    if state is not None:
        trainer.load(state, args.allow_changed_data)
    with process.together():
        if process.first:
            settings = {k: v for k, v in asdict(trainer.config).items() if v is not None}
            files.write_atomic(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
            _report_left_out(trainer.splits.left_out, out / "unreadable.txt")
    printer = _Printer(trainer, args.quiet or not process.first)
    try:
        with printer:
            trainer.fit(printer.on_step, printer.on_epoch)
    except Interrupted as stop:
        if process.first:
            print(
                f"stopped after step {trainer.step} of {trainer.total_steps}; "
                f"go on with: fastmix train --resume --out {out}"
            )
        return 128 + stop.signal
    if process.first:
        report.save_curves(out / "curves.png", {config.method: [trainer.history]})
        if config.method != "none":
            caption = f"{config.method} on {config.data} after {trainer.step} steps"
            report.save_grid(out / "mixes.png", report.mix_rows(trainer), caption)
        print(_closing(trainer, report.measure_masks(trainer)))
    return 0


def _settings(
    given: dict[str, Any], args: argparse.Namespace, process, stack: ExitStack
) -> tuple[Config, Path | None, dict[str, Any] | None]:
    """Settings, output folder, which the first process claims, and the state to resume from."""
    from fastmix.train import files
    from fastmix.train.trainer import resume_state

    out = given.pop("out", None)
    if not args.resume:
        config = Config(**given)
        if process.first:
            out = _claim_fresh(config, stack) if out is None else stack.enter_context(files.claim(out))
            if (out / files.CHECKPOINT).exists():
                raise UserError(f"{out}: holds a run already; go on with --resume or choose another --out")
        return config, out, None
    if out is None:
        raise UserError("--resume needs the folder to resume from: --out DIR")
    if process.first and out.is_dir():
        stack.enter_context(files.claim(out))
    saved, state = resume_state(out)
    config = _changed(saved, given)
    if args.allow_changed_data:
        # The plan of the run stays, whatever the number of images is now.
        plan = {"epoch_steps": "epoch_steps", "steps": "total_steps"}
        config = replace(config, **{name: state[kept] for name, kept in plan.items() if kept in state})
    if state["world"] != process.world:
        raise UserError(f"{out}: was trained by {state['world']} processes, not {process.world}")
    return config, out, state


def _report_left_out(faults: list[str], path: Path) -> None:
    """Says which images are not trained or tested on: the first of them on the screen, all in the file ``path``."""
    if not faults:
        return
    from fastmix.train.files import write_atomic

    write_atomic(path, "".join(f"{fault}\n" for fault in faults).encode())
    shown = [f"  {fault}" for fault in faults[:LISTED]]
    more = [f"  and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
    head = f"fastmix train: left out {len(faults)} images that cannot be read; all are in {path}"
    print("\n".join([head, *shown, *more]), file=sys.stderr)


def _closing(trainer, measures: dict[str, float] | None) -> str:
    row, config = trainer.history[-1], trainer.config
    head = " (teacher, one-hot head)" if config.method == "automix" and config.clean_loss else ""
    lines = [
        f"test accuracy {row['test_accuracy']:.2f} % on {len(trainer.splits.test)} images{head}, "
        f"{trainer.step} steps, {row['ms_per_step']:.1f} ms a step"
    ]
    if measures is not None:
        lines.append(
            f"of a labelled object's area {measures['object_share']:.2f} is given to its own image; "
            f"lambda misses the visible ratio by {measures['lam_mismatch']:.2f}"
        )
    names = sorted(p.name for p in trainer.out.iterdir() if not p.name.startswith("."))
    return "\n".join([*lines, f"in {trainer.out}: {', '.join(names)}"])


def _read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked by the rules of the command line."""
    yaml = need("yaml", "pyyaml", "--config")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold option: value lines")
    known = {f.name for f in fields(Config)} | {"out"}
    words = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"{path}: unknown key {key}" + (f"; did you mean {close[0]}?" if close else ""))
        if isinstance(value, bool):
            # YAML reads a bare `off` as false
            words += ["--amp", "bf16" if value else "off"] if name == "amp" else [_switch(name, value)]
        elif value is not None:
            words.append(f"{option(name)}={value}")
    parser = Parser(prog=f"fastmix train --config {path}")
    add_arguments(parser)
    found = vars(parser.parse_args(words))
    return {k: v for k, v in found.items() if k not in _ACTIONS}


def _switch(name: str, value: bool) -> str:
    return option(name) if value else option(f"no_{name}")


def _changed(saved: Config, given: dict[str, Any]) -> Config:
    """The saved settings with the few that may change on a resume."""
    before = asdict(saved)
    for name, value in given.items():
        if name not in FREE_ON_RESUME and before[name] != value:
            raise UserError(
                f"{option(name)} {value} differs from the checkpoint's {before[name]}; a resumed run keeps its settings"
            )
    return Config(**{**before, **given})


def _claim_fresh(config: Config, stack: ExitStack) -> Path:
    """The first of ``runs/DATA-METHOD-1``, ``-2`` and so on that does not exist, made by this process."""
    from fastmix.train.files import claim

    stem = f"{config.data.partition(':')[0]}-{config.method}"
    for number in count(1):
        with suppress(FileExistsError):
            return stack.enter_context(claim(Path("runs") / f"{stem}-{number}", new=True))
    raise AssertionError


def _fail(message: str) -> int:
    print(f"fastmix train: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Printer:
    """Progress bar, a line per epoch and TensorBoard, all optional."""

    def __init__(self, trainer, quiet: bool) -> None:
        self.trainer, self.quiet = trainer, quiet
        self.bar = self.board = None

    def __enter__(self) -> _Printer:
        if not self.quiet:
            tqdm = need("tqdm", "tqdm", "the progress bar (--quiet goes without)").tqdm
            # disable=None: no bar where stderr is not a terminal
            self.bar = tqdm(
                total=self.trainer.total_steps, initial=self.trainer.step, unit="step", disable=None, leave=False
            )
        if self.trainer.config.tensorboard and self.trainer.process.first:
            self.board = _board(self.trainer.out / "tensorboard", self.trainer.step)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()

    def on_step(self, values: dict[str, float]) -> None:
        if self.bar is None:
            return
        shown = {"loss": f"{values['loss']:.3f}", "images/s": f"{values['images_per_s']:.0f}"}
        if self.trainer.history:
            shown["accuracy"] = f"{self.trainer.history[-1]['test_accuracy']:.1f}%"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(values["step"] - self.bar.n)

    def on_epoch(self, row: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.write(
                f"epoch {row['epoch']:3}  step {row['step']:5}  loss {row['loss']:.3f}  "
                f"accuracy {row['test_accuracy']:5.2f} %  {row['images_per_s']:.0f} images/s"
            )
        if self.board is not None:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self.board.add_scalar(name, value, row["step"])


def _board(place: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(place), purge_step=step or None)
