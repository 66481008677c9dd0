"""The command line: ``fastmix COMMAND ...`` or ``python -m fastmix COMMAND ...``.

A command is a module with ``SUMMARY``, ``add_arguments(parser)`` and ``main(args) -> int`` and one line in
``COMMANDS``; it is imported only when it is run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    "train": ("fastmix.cli.train", "train a classifier with mixed images"),
    "predict": ("fastmix.cli.predict", "name what is on pictures, by a trained classifier"),
    "export": ("fastmix.cli.export", "write a trained classifier's weights for torchvision, timm or PyTorch"),
    "demo": ("fastmix.cli.demo", "train four ways on handwritten digits and compare"),
    "bench": ("fastmix.cli.bench", "time every op beside its peers, compare two runs"),
    "methods": ("fastmix.cli.methods", "list the mixing methods and their papers"),
    "gallery": ("fastmix.cli.gallery", "a contact sheet of every mixing method on your own pictures"),
    "info": ("fastmix.cli.info", "versions, backends and a self-check"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong use, 130 interrupted, 141 output cut off."""
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # a reader that has gone is noticed here at the latest, not when Python ends
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fastmix import __version__

        print(f"fastmix {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"fastmix: error: no command {name!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(COMMANDS[name][0])
    parser = Parser(prog=f"fastmix {name}", description=module.__doc__.partition("\n")[0])
    module.add_arguments(parser)
    try:
        return module.main(parser.parse_args(rest))
    except KeyboardInterrupt:
        print(f"\nfastmix {name}: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = ["usage: fastmix COMMAND [options]", "", "commands:"]
    lines += [f"  {name:8} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([*lines, "", "fastmix COMMAND --help lists the options of a command"])
