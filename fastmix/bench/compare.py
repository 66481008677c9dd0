"""What changed between two runs, beyond noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from fastmix.bench.provider import FASTMIX
from fastmix.bench.results import Results
from fastmix.bench.run import Row

NOISE = 2.0
"""How many times the noise of its samples a change must be to count."""


@dataclass
class Move:
    """How one of our providers changed in one case.

    Attributes:
        ratio: time after over time before.
        drift: the same of those who are not ours, in the same case: what the machine did.
        margin: from which change on it counts, as a share: the larger of the threshold and the noise.
        verdict: "slower", "faster", "same", or "unsure" where other processes held the cores.
    """

    case: str
    provider: str
    before_ms: float
    after_ms: float
    ratio: float
    drift: float
    margin: float
    verdict: str


def compare(before: Results, after: Results, threshold: float = 0.1) -> list[Move]:
    """Every provider of ours that both runs timed.

    A change counts beyond `threshold` and beyond the noise of the samples, after what eager PyTorch, the plain copy
    and the peers did in the same case is divided out: a slower machine is not a slower kernel. It must also show
    without that division.
    """
    moves = []
    for case in before.cases:
        old, new = before.of(case), after.of(case)
        controls = [
            (math.log(new[p].ms / row.ms), _noise(row, new[p]))
            for p, row in old.items()
            if p in new and not p.startswith(FASTMIX)
        ]
        drift = statistics.median(change for change, _ in controls) if controls else 0.0
        for provider, row in old.items():
            if provider in new and provider.startswith(FASTMIX):
                moves.append(_move(row, new[provider], drift, [noise for _, noise in controls], threshold))
    return moves


def _move(old: Row, new: Row, drift: float, controls: list[float], threshold: float) -> Move:
    raw = math.log(new.ms / old.ms)
    adjusted = raw - drift
    # Controls can be off as well: what counts must show with and without them.
    change = min(raw, adjusted, key=abs) if raw * adjusted > 0 else 0.0
    noise = math.hypot(_noise(old, new), statistics.median(controls) if controls else 0.0)
    margin = max(math.log1p(threshold), NOISE * noise)
    if abs(change) <= margin:
        verdict = "same"
    elif old.flagged or new.flagged:
        verdict = "unsure"
    else:
        verdict = "slower" if change > 0 else "faster"
    ratio = new.ms / old.ms
    return Move(old.case, old.provider, old.ms, new.ms, ratio, math.exp(drift), math.expm1(margin), verdict)


def _noise(old: Row, new: Row) -> float:
    """Of the logarithm of their ratio: the spread between quartiles of both."""
    return math.hypot(*((row.high_ms - row.low_ms) / row.ms if row.high_ms is not None else 0.0 for row in (old, new)))


def report(moves: list[Move]) -> str:
    """What moved, and how many did not."""
    moved = [move for move in moves if move.verdict != "same"]
    lines = [
        f"{m.verdict:<7} {m.case}  {m.provider}: {m.before_ms:.4g} -> {m.after_ms:.4g} ms, {m.ratio / m.drift:.2f}x "
        f"after the machine's own {m.drift:.2f}x (counts from {100 * m.margin:.0f} % on)"
        for m in sorted(moved, key=lambda m: -m.ratio / m.drift)
    ]
    lines.append(f"{len(moves) - len(moved)} of {len(moves)} did not move beyond noise")
    return "\n".join(lines)
