"""Checks of settings, read on the host once: each raises an error that names the class, the setting and what came."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Iterable, Sequence


def number(where: str, name: str, value: float, low: float = 0.0, high: float = math.inf, above: bool = False) -> float:
    """A finite number in [low, high], or with `above` in (low, high]."""
    if not _finite(value) or not low <= value <= high or (above and value == low):
        raise ValueError(f"fastmix.{where}: {name} must be {_range('number', low, high, above)}, got {value!r}")
    return value


def whole(where: str, name: str, value: int, low: int = 1, high: float = math.inf) -> int:
    """A whole number in [low, high]."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"fastmix.{where}: {name} must be {_range('int', low, high)}, got {value!r}")
    return value


def flag(where: str, name: str, value: bool) -> bool:
    """True or False itself."""
    if not isinstance(value, bool):
        raise ValueError(f"fastmix.{where}: {name} must be True or False, got {value!r}")
    return value


def one_of(where: str, name: str, value: str, allowed: Sequence[str]) -> str:
    """One of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"fastmix.{where}: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def interval(
    where: str, name: str, value: Sequence[float], low: float, high: float = math.inf, above: bool = False
) -> Sequence[float]:
    """A pair of finite numbers, the first not above the second, both in [low, high], or with `above` in (low, high]."""
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2 and all(map(_finite, value))
    if not pair or not low <= value[0] <= value[1] <= high or (above and value[0] == low):
        raise ValueError(
            f"fastmix.{where}: {name} must be (low, high), each {_range('number', low, high, above)}, got {value!r}"
        )
    return value


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Arguments of a constructor by name, also those it hands on to the constructors of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__[:-1]:
        for name, parameter in inspect.signature(each.__init__).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    return found


def keywords(where: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first unknown keyword, with the known one that it resembles."""
    for name in unknown:
        known = list(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
        raise TypeError(f"fastmix.{where}: there is no argument {name!r}; {hint}")


def _finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and -math.inf < value < math.inf


def _range(kind: str, low: float, high: float, above: bool = False) -> str:
    article = "an" if kind == "int" else "a finite" if high == math.inf else "a"
    if high == math.inf:
        return f"{article} {kind} {'>' if above else '>='} {low:g}"
    return f"{article} {kind} in {'(' if above else '['}{low:g}, {high:g}]"
