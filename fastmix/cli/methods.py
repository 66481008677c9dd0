"""List the mixing methods: paper, operations, default alpha for each data set."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")


def main(args: argparse.Namespace) -> int:
    """Run ``fastmix methods``."""
    from fastmix.methods import METHODS
    from fastmix.methods.table import markdown

    if args.markdown:
        print(markdown())
        return 0
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        paper = "" if method.paper is None else f"{method.paper.title} ({method.paper})"
        print(f"{name:{width}}  {method.__name__}: {paper or method.__doc__.partition('.')[0]}")
    return 0
