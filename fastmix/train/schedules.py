"""Values that change over training. A schedule is a function of the step number, 0 for the first step.

Being functions of the step alone, they need no state of their own to resume exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Schedule = Callable[[int], float]


def as_schedule(value: float | Schedule) -> Schedule:
    """A schedule as it is, a number as a constant schedule."""
    return value if callable(value) else Constant(float(value))


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """`start + (end - start) * step / total_steps`, then `end`; the paper's weight of the mask loss (Eq.
    7)."""

    start: float
    end: float
    total_steps: int

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.total_steps, 1.0)


@dataclass(frozen=True)
class Cosine:
    """`end - (end - start) * (1 + cos(pi step / total_steps)) / 2`, then `end`; the paper's momentum (Eq.
    12)."""

    start: float
    end: float
    total_steps: int

    def __call__(self, step: int) -> float:
        progress = min(step / self.total_steps, 1.0)
        return self.end - (self.end - self.start) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class ReleasedMomentum:
    """`start` for the first `hold` of the training, then the value `Cosine` has there (so with a jump).

    What OpenMixup's momentum hook does, with 0.999 -> 0.999999 for CIFAR and 0.99999 for ImageNet.
    """

    total_steps: int
    start: float = 0.999
    end: float = 0.999999
    hold: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.hold * self.total_steps:
            return self.start
        return Cosine(self.start, self.end, self.total_steps)(step)


@dataclass(frozen=True)
class CompoundingCosine:
    """`start * prod_{u <= step} (1 + cos(pi u / total_steps)) / 2`: OpenMixup's annealed weight of the mask
    loss.

    Its hook feeds the current value back as the base, so the cosine factors multiply: about
    `start * exp(-pi^2 step^3 / (12 total_steps^2))`, gone after the first few epochs.
    """

    start: float
    total_steps: int
    _values: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, step: int) -> float:
        values = self._values
        for u in range(len(values), step + 1):
            factor = (1 + math.cos(math.pi * min(u / self.total_steps, 1.0))) / 2
            values.append(factor * (values[-1] if values else self.start))
        return values[step]
