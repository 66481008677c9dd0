"""The table of all methods, from what they declare."""

from __future__ import annotations

from fastmix.methods import METHODS
from fastmix.methods.base import DATA_SETS, MixMethod

BEGIN, END = "<!-- methods: python -m fastmix.methods -->", "<!-- /methods -->"


def markdown() -> str:
    """The table as it stands in the README: name, class, paper, operations, alpha by default and for each data set.

    Example:
        >>> print(fastmix.methods.table.markdown())
    """
    heads = ["`--method`", "class", "paper", "ops", "alpha", *DATA_SETS.values()]
    rows = [_row(method) for method in METHODS.values()]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(method: type[MixMethod]) -> list[str]:
    paper = method.paper
    source = "" if paper is None else f"{paper.title} ({paper.authors} {paper.year})"
    if paper is not None and paper.arxiv:
        source = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv}) ({paper.authors} {paper.year})"
    ops = ", ".join(f"`{op}`" for op in method.ops)
    default = f"{method.default_alpha:g}" if method.uses_alpha else ""
    chosen = (method.alphas.get(name, "") for name in DATA_SETS)
    return [f"`{method.name}`", f"`{method.__name__}`", source, ops, default, *(_short(alpha) for alpha in chosen)]


def _short(alpha: float | str) -> str:
    return alpha if isinstance(alpha, str) else f"{alpha:g}"
