"""The README's section of results, from a file of results and nothing else.

python -m fastmix.bench.report RESULTS.json README.md [--check]
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from fastmix.bench.provider import FASTMIX, NOT_THE_OP
from fastmix.bench.results import Results
from fastmix.bench.run import Row

BEGIN = "<!-- made by `make bench-report` from the committed results: do not edit -->"
END = "<!-- end of what is made -->"


@dataclass(frozen=True)
class Goal:
    """What a case should show: `theirs` takes at least `least` times as long as `ours`, or at most `most` times.

    Names are beginnings of providers' names; of several the fastest counts. Several cases are averaged, as a method
    that draws one of them at random costs.
    """

    what: str
    cases: tuple[str, ...]
    ours: str
    theirs: str = ""
    least: float = 0.0
    most: float = math.inf
    most_ms: float = math.inf

    def measured(self, results: Results) -> float | None:
        """The ratio, or our milliseconds where nobody else is named; None where something was not timed."""
        pairs = []
        for case in self.cases:
            rows = results.of(case)
            ours, theirs = (_fastest(rows, name) for name in (self.ours, self.theirs or self.ours))
            if ours is None or theirs is None:
                return None
            pairs.append((ours.ms, theirs.ms))
        ours, theirs = (sum(part) / len(pairs) for part in zip(*pairs, strict=True))
        return theirs / ours if self.theirs else ours

    def met(self, value: float) -> bool:
        return (self.least <= value <= self.most) if self.theirs else value <= self.most_ms

    @property
    def wanted(self) -> str:
        if not self.theirs:
            return f"<= {self.most_ms:g} ms"
        return f">= {self.least:g}x" if self.least else f"<= {self.most:g}x"


def _fastest(rows: dict[str, Row], name: str) -> Row | None:
    return min((row for provider, row in rows.items() if provider.startswith(name)), key=lambda r: r.ms, default=None)


_BLEND, _MASK = "blend/imagenet-fp32-nchw", "mask_blend/imagenet-fp32-nchw"
_OUT, _FRESH = FASTMIX + "cpu out=", FASTMIX + "cpu"
_LOSS = "mix_cross_entropy+grad"
_PUZZLE = {size: tuple(f"puzzlemix/{size}-B{b}" for b in (2, 4, 8, 16)) for size in ("cifar", "imagenet")}

GOALS = (
    Goal("`mask_blend`, `out=`, against eager", (_MASK,), _OUT, "eager", 10),
    Goal("`mask_blend`, `out=`, against `torch.compile`", (_MASK,), _OUT, "torch.compile", 2),
    Goal("`copy_` against `mask_blend`, `out=`", (_MASK,), "copy_", _OUT, most=2),
    Goal("`copy_` against `blend`, `out=`", (_BLEND,), "copy_", _OUT, most=1.7),
    Goal("AutoMix's mixing, ResNet-50's layer3, against the published", ("automix/r50-l3",), FASTMIX, "published", 2),
    Goal("the same, ResNet-18's layer3", ("automix/l3",), FASTMIX, "published", 1.5),
    Goal("the same, ResNet-50's layer1", ("automix/r50-l1",), FASTMIX, "published", 1.2),
    *(
        Goal(f"exact `grid_cut`, {b} x {b} blocks, against gco", (f"grid_cut/B{b}-L3",), FASTMIX, "gco", 5)
        for b in (4, 8, 16)
    ),
    *(
        Goal(
            f"exact `transport`, {b} x {b} {kind} maps, against scipy",
            (f"transport/exact-T{b}-{kind}",),
            FASTMIX,
            "scipy",
            2,
        )
        for b in (4, 8, 16)
        for kind in ("flat", "sharp")
    ),
    *(
        Goal(
            f"moves within `mask_blend`, {size}, against dense plans",
            (f"mask_blend/plans-{size}",),
            FASTMIX,
            "eager",
            20,
        )
        for size in ("cifar", "imagenet")
    ),
    Goal("PuzzleMix's mixing, 100x3x32x32, mean over B", _PUZZLE["cifar"], FASTMIX, most_ms=10),
    Goal("PuzzleMix's mixing, 32x3x224x224, mean over B", _PUZZLE["imagenet"], FASTMIX, most_ms=30),
    Goal("MixUp against kornia", ("mixup/imagenet",), FASTMIX + "MixUp", "kornia", 3),
    Goal("CutMix against kornia", ("cutmix/imagenet",), FASTMIX + "CutMix", "kornia", 5),
    Goal("MixUp in place against timm's", ("mixup/imagenet",), FASTMIX + "for timm, in place", "timm in place", 3),
    Goal("MixUp with a lam each against timm's", ("mixup/imagenet",), FASTMIX + "for timm, elem", "timm elem", 3),
    Goal("CutMix with a box each against timm's", ("cutmix/imagenet",), FASTMIX + "for timm, elem", "timm elem", 3),
    *(
        Goal(
            f"mixed cross entropy{what}, {size}, forward and backward", (f"{_LOSS}/{size}{tail}",), FASTMIX, "eager", 2
        )
        for size in ("imagenet", "imagenet-21k")
        for what, tail in (("", ""), (" with smoothing against dense targets", "-smoothing"))
    ),
)


def section(results: Results) -> str:
    """Markdown: the machine, goals with verdicts, ops, mixing steps and training steps."""
    parts = [_machine(results), _goals(results), _ops(results), _mixing(results), _steps(results)]
    return "\n\n".join(part for part in parts if part)


def _machine(results: Results) -> str:
    machine = results.machine
    roofs = ", ".join(
        f"{value:.3g} {name.partition(' ')[2]} {name.partition(' ')[0]}" for name, value in results.roofs.items()
    )
    return (
        f"Measured by `python -m fastmix bench` on {machine['date']}, commit {machine['commit']}: {machine['cpu']}, "
        f"{machine['fastmix'].partition(', ')[2]}, torch {machine['torch']}, Python {machine['python']}, allocator: "
        f"{machine['allocator']}. This machine's roof in the same run: {roofs}. Medians of interleaved calls, each "
        "provider checked before it was timed; ! marks rows during which other processes held the cores."
    )


def _goals(results: Results) -> str:
    lines = ["| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = goal.measured(results)
        if value is None:
            lines.append(f"| {goal.what} | {goal.wanted} | not measured | |")
            continue
        text = f"{value:.2f}x" if goal.theirs else f"{value:.1f} ms"
        lines.append(f"| {goal.what} | {goal.wanted} | {text} | {'met' if goal.met(value) else 'missed'} |")
    return "\n".join(lines)


def _ops(results: Results) -> str:
    """Ours, eager, compiled and the best peer of every op at its shapes."""
    lines = [
        "| op / case, ms | fastmix | `out=` | eager | `torch.compile` | best peer | % of roof |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in results.cases:
        rows = results.of(case)
        if _op(case) in _WHOLE or _sweeps(case) or not rows:
            continue
        given = next((row for name, row in rows.items() if name.endswith(" out=")), None)
        fresh = next((r for n, r in rows.items() if n.startswith(FASTMIX) and r is not given), None)
        peers = [
            row
            for name, row in rows.items()
            if not name.startswith(FASTMIX) and name not in ("eager", "torch.compile", *NOT_THE_OP)
        ]
        peer = min(peers, key=lambda row: row.ms, default=None)
        best = given or fresh
        roof = f"{best.percent_of_roof:.0f}" if best and best.percent_of_roof else ""
        named = "" if peer is None else f"{_ms(peer)} {peer.provider.partition(',')[0]}"
        cells = (_ms(fresh), _ms(given), _ms(rows.get("eager")), _ms(rows.get("torch.compile")), named, roof)
        lines.append(f"| `{case}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


_WHOLE = ("mixup", "cutmix", "fmix", "puzzlemix", "automix", "step")


def _op(case: str) -> str:
    return case.partition("/")[0]


def _sweeps(case: str) -> bool:
    tail = case.partition("/")[2]
    return tail[:1] in ("n", "r") and tail[1:].isdigit()


def _mixing(results: Results) -> str:
    lines = ["| mixing step | provider | ms | over ours |", "|---|---|---|---|"]
    for case in results.cases:
        if _op(case) in _WHOLE and _op(case) != "step":
            rows = results.of(case)
            ours = next((row for row in rows.values() if row.provider.startswith(FASTMIX)), None)
            for row in rows.values():
                ratio = f"{row.ms / ours.ms:.1f}" if ours else ""
                lines.append(f"| `{case}` | {_provider(row)} | {_ms(row)} | {ratio} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _steps(results: Results) -> str:
    """Step time of each method divided by the plain step."""
    lines = ["| training step | method | ms | plain steps |", "|---|---|---|---|"]
    for case in results.cases:
        rows = results.of(case) if _op(case) == "step" else {}
        plain = rows.get(FASTMIX + "plain")
        for row in rows.values():
            ratio = f"{row.ms / plain.ms:.2f}" if plain else ""
            lines.append(f"| `{case}` | {row.provider.removeprefix(FASTMIX)} | {_ms(row)} | {ratio} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _ms(row: Row | None) -> str:
    return "" if row is None else f"{row.ms:.3g}" + (" !" if row.flagged else "")


def _provider(row: Row) -> str:
    ours = row.provider.startswith((FASTMIX, "eager", "published composition"))
    return row.provider if ours else f"{row.provider} ({row.version})"


def replaced(text: str, made: str) -> str:
    """`text` with what stands between the markers made anew.

    Raises:
        ValueError: the markers are not there, once each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the markers {BEGIN!r} and {END!r} must be there, once each")
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    args = parser.parse_args(argv)
    try:
        text = args.page.read_text()
        new = replaced(text, section(Results.load(args.results)))
    except (OSError, ValueError) as error:
        print(f"fastmix.bench.report: {args.page}: {error}", file=sys.stderr)
        return 2
    if args.check:
        if new != text:
            print(f"{args.page} is not what {args.results} makes of it; run `make bench-report`", file=sys.stderr)
        return int(new != text)
    args.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
