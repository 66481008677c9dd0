"""What a run on a GPU leaves behind: tables, the targets with their verdicts, one picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gpu_step import PASSES_OF, StepRow

from fastmix import dispatch
from fastmix.bench.provider import FASTMIX
from fastmix.bench.run import Row

FORMATS = [(dtype, layout) for dtype in ("bf16", "fp32") for layout in ("nchw", "nhwc")]


@dataclass
class Results:
    """Everything a run measured. `real` is False after a dry run, whose numbers mean nothing."""

    real: bool
    machine: dict[str, str]
    roofs: dict[str, float]
    sizes: dict[str, tuple]
    ops: list[Row]
    steps: list[StepRow]

    @property
    def device(self) -> str:
        return "cuda" if self.real else "cpu"

    def of(self, case: str) -> dict[str, Row]:
        """The timed rows of a case by provider, none if the run did not come to it."""
        return {row.provider: row for row in self.ops if row.case == case and row.ms is not None}

    def ours(self, case: str) -> Row | None:
        """The row of the backend that a call takes by default, else of the next in its order that was timed."""
        rows = self.of(case)
        order = dispatch.ORDER[case.split("/")[0].removesuffix("+grad")][self.device]
        return next((rows[FASTMIX + b] for b in order if FASTMIX + b in rows), None)

    def step(self, name: str, feature: str) -> StepRow | None:
        return next((s for s in self.steps if (s.step, s.feature) == (name, feature) and s.ms is not None), None)


@dataclass
class Finding:
    """One part of a target: what was measured in words, and whether that meets the goal; None: not measured."""

    text: str
    met: bool | None


@dataclass(frozen=True)
class Target:
    what: str
    goal: str
    find: Callable[[Results], list[Finding]]


def _missing(what: str, why: str = "not measured") -> Finding:
    return Finding(f"{what}: {why}", None)


def _of_copy(cases: list[str], least: float, eager: float = 0.0, compiled: float = 0.0) -> Callable:
    def find(results: Results) -> list[Finding]:
        found = []
        for case in cases:
            rows, ours = results.of(case), results.ours(case)
            if ours is None:
                found.append(_missing(case))
                continue
            text = f"{case}: {ours.percent_of_copy:.0f} % of the copy ({ours.provider})"
            found.append(Finding(text, ours.percent_of_copy >= least))
            for name, goal in (("eager", eager), ("torch.compile", compiled)):
                if name in rows:
                    ratio = rows[name].ms / ours.ms
                    found.append(Finding(f"{ratio:.1f}x {name}", ratio >= goal))
                elif goal:
                    found.append(_missing(name))
        return found

    return find


def _attention(results: Results) -> list[Finding]:
    found = []
    for case in ("pair_attention/tiny-l1-bf16", "pair_attention+grad/tiny-l1-bf16"):
        rows, ours = results.of(case), results.ours(case)
        if ours is None:
            found.append(_missing(case))
            continue
        direction = "backward" if ours.backward else "forward"
        if "eager" in rows:
            ratio = rows["eager"].ms / ours.ms
            found.append(Finding(f"{direction} {ratio:.1f}x eager with P", ratio >= 20))
        else:
            found.append(_missing(f"{direction} against eager with P"))
        peers = [row for name, row in rows.items() if name.startswith(("SDPA", "Flex"))]
        best = min(peers, key=lambda row: row.ms, default=None)
        if best is not None:
            ratio = best.ms / ours.ms
            found.append(Finding(f"{direction} {ratio:.2f}x {best.provider}, the best peer", ratio >= 1.2))
        else:
            found.append(_missing(f"{direction} against SDPA and FlexAttention"))
        n, r, _ = results.sizes["tiny-l1"]
        share = 100 * ours.extra_mb * 1e6 / (4 * n * r * r)
        passes = "forward and backward" if ours.backward else "forward"
        found.append(Finding(f"extra memory, {passes}: {ours.extra_mb:.0f} MB, {share:.2f} % of P", share <= 1))
    return found


def _against_matmul(results: Results) -> list[Finding]:
    case = "pair_attention/r50-l3-bf16"
    rows, ours = results.of(case), results.ours(case)
    if ours is None or "QK^T" not in rows:
        return [_missing(case)]
    ratio = ours.ms / rows["QK^T"].ms
    return [Finding(f"{ratio:.2f}x the time of QK^T by torch.bmm", ratio <= 1.5)]


def _small(results: Results) -> list[Finding]:
    cases = [f"{op}/small-{d}-nchw" for op in ("blend", "box_blend", "mask_blend") for d in ("bf16", "fp32")]
    found = []
    for case in (*cases, "pair_attention/small-l3-bf16"):
        ours = results.ours(case)
        if ours is None or ours.host_us is None:
            found.append(_missing(case))
            continue
        met = 1e3 * ours.ms <= 8 and ours.host_us <= 15
        found.append(Finding(f"{case}: {1e3 * ours.ms:.1f} us GPU, {ours.host_us:.1f} us host ({ours.provider})", met))
    return found


def _share(results: Results) -> list[Finding]:
    found = []
    for feature, most in (("layer3", 5), ("layer1", 40)):
        step, passes = (results.step(prefix + "default", feature) for prefix in ("", PASSES_OF))
        if step is None or passes is None:
            found.append(_missing(feature))
            continue
        share = 100 * (1 - passes.ms / step.ms)
        found.append(Finding(f"{feature}: {share:.1f} % of {step.ms:.2f} ms", share <= most))
    return found


def _ratios(results: Results) -> list[Finding]:
    step, passes = (results.step(prefix + "faithful", "layer3") for prefix in ("", PASSES_OF))
    mixup = results.step("MixUp", "layer3")
    found = []
    if step is None or passes is None:
        found.append(_missing("faithful step against its passes"))
    else:
        ratio = step.ms / passes.ms
        found.append(Finding(f"faithful: {ratio:.3f}x its encoder passes", ratio <= 1.05))
    for name in ("faithful", "default", "generator every 4th", "generator every 4th, no clean loss"):
        step = results.step(name, "layer3")
        if step is None or mixup is None:
            found.append(_missing(f"{name} against MixUp"))
            continue
        ratio = step.ms / mixup.ms
        economical = name.endswith("no clean loss")
        found.append(Finding(f"{name}: {ratio:.2f}x MixUp", ratio <= 1.5 if economical else True))
    return found


def _memory(results: Results) -> list[Finding]:
    found = []
    for feature in ("layer3", "layer1"):
        step, mixup = results.step("sequential", feature), results.step("MixUp", feature)
        if step is None or mixup is None or not mixup.peak_mb:
            found.append(_missing(feature))
            continue
        ratio = step.peak_mb / mixup.peak_mb
        found.append(Finding(f"{feature}: {ratio:.2f}x, {step.peak_mb:.0f} MB", ratio <= 1.5))
    return found


TARGETS = [
    Target(
        "`mask_blend` forward (256,3,224,224), bf16 and fp32, both layouts",
        ">= 85 % of the copy bandwidth, >= 5x eager, >= 1.5x `torch.compile`",
        _of_copy([f"mask_blend/imagenet-{d}-{f}" for d, f in FORMATS], 85, 5, 1.5),
    ),
    Target(
        "`mask_blend` backward to the mask",
        ">= 80 % of the copy bandwidth",
        _of_copy([f"mask_blend+grad/imagenet-{d}-{f}" for d, f in FORMATS], 80),
    ),
    Target(
        "`blend`, `box_blend`, same shape",
        ">= 90 % of the copy bandwidth",
        _of_copy([f"{op}/imagenet-{d}-{f}" for op in ("blend", "box_blend") for d, f in FORMATS], 90),
    ),
    Target(
        "`pair_attention` forward and backward at (100, 4096, 32), bf16",
        ">= 20x eager with P; >= 1.2x the best of SDPA and FlexAttention; extra memory <= 1 % of P",
        _attention,
    ),
    Target("`pair_attention` forward at (256, 196, 512), bf16", "<= 1.5x the time of QK^T alone", _against_matmul),
    Target("small batch (100,3,32,32), any op, forward", "<= 8 us GPU time, <= 15 us host time", _small),
    Target(
        "AutoMix step, ResNet-18, N=100, 64x64, bf16, channels_last: share that is no encoder or head pass",
        "l=3 <= 5 %, l=1 <= 40 %",
        _share,
    ),
    Target(
        "the same step (l=3) against its encoder passes and against MixUp's step",
        "faithful <= 1.05x its passes; economical <= 1.5x MixUp",
        _ratios,
    ),
    Target("peak memory of the sequential step against MixUp's", "<= 1.5x", _memory),
    Target(
        "PuzzleMix cut and both plans, N=256, B=16",
        "<= 0.4 ms together",
        lambda results: [_missing("cut and plans", "not in the library yet")],
    ),
]

_NOTES = """\
GPU time is that of CUDA graph replays between events, on inputs that rotate through more memory than the cache holds;
providers take turns; medians. Bytes are the compulsory ones: each image read once, each result written once. Every
provider was checked against float64 before it was timed.

* Attention peers run on keys already gathered and on values already padded by zeros to the columns named, neither of
  which is timed, and without a key bias: all in their favour.
* Extra memory is the most in use during a call beyond its arguments and results.
* Host time is the wall time of one of many eager calls in a row.
* "Passes alone" are the encoder and head passes of a step on ready images, with the optimiser's step. Steps run as
  CUDA graphs (`GraphedStep`), under autocast to bfloat16.
"""


def verdict(findings: list[Finding]) -> str:
    if any(finding.met is False for finding in findings):
        return "missed"
    return "not measured" if any(finding.met is None for finding in findings) else "met"


def targets_table(results: Results) -> str:
    lines = ["| what | goal | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        findings = target.find(results)
        measured = "; ".join(finding.text for finding in findings)
        outcome = verdict(findings) if results.real else "dry run, meaningless"
        lines.append(f"| {target.what} | {target.goal} | {measured} | {outcome} |")
    return "\n".join(lines)


def write(results: Results, folder: Path) -> None:
    """ops.csv, steps.csv, ops.json, targets.md and, with matplotlib, roofline.png."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "ops.csv", results.ops, Row)
    _write_csv(folder / "steps.csv", results.steps, StepRow)
    content = {
        "meaningless": not results.real,
        "machine": results.machine,
        "roofs": results.roofs,
        "ops": [asdict(row) for row in results.ops],
        "steps": [asdict(row) for row in results.steps],
    }
    (folder / "ops.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "targets.md").write_text(_markdown(results))
    try:
        _plot(results, folder / "roofline.png")
    except ImportError:
        print("roofline.png: matplotlib is not installed")


def _markdown(results: Results) -> str:
    warning = "" if results.real else "**A dry run on the CPU: every number below is meaningless.**\n\n"
    machine = "\n".join(f"* {key}: {value}" for key, value in results.machine.items())
    roofs = "\n".join(f"* {key}: {value:.4g}" for key, value in results.roofs.items())
    silent = [f"* {row.case}, {row.provider}: {row.note}" for row in results.ops if row.note]
    silent += [f"* {row.step}, {row.feature}: {row.note}" for row in results.steps if row.note]
    left_out = "\n".join(silent) or "* nothing"
    return (
        f"# Measured on {results.machine.get('GPU', 'a CPU')}\n\n{warning}{machine}\n{roofs}\n\n"
        f"## Targets\n\nThey were set for an H200.\n\n{targets_table(results)}\n\n{_NOTES}\n"
        f"## Not timed\n\n{left_out}\n"
    )


def _write_csv(path: Path, rows: list, kind: type) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        for row in rows:
            values = asdict(row).items()
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in values})


def _plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6))
    blends = [row for row in results.ops if row.op != "pair_attention" and row.ms and "imagenet" in row.case]
    cases = list(dict.fromkeys(row.case for row in blends))
    names = list(dict.fromkeys(row.provider for row in blends))
    for i, name in enumerate(names):
        own = {row.case: row.percent_of_copy for row in blends if row.provider == name}
        places = [k + 0.8 * i / len(names) for k, case in enumerate(cases) if case in own]
        left.barh(places, [own[case] for case in cases if case in own], 0.8 / len(names), label=name)
    left.set_yticks([k + 0.4 for k in range(len(cases))], cases, fontsize=7)
    left.invert_yaxis()
    left.axvline(100, color="black", linewidth=0.8)
    left.set_xlabel("% of the copy bandwidth, compulsory bytes")
    left.legend(fontsize=7)

    points = [row for row in results.ops if row.tflop_per_s]
    top, slope = results.roofs["bf16 TFLOP/s"], results.roofs["copy GB/s"] / 1e3
    reach = [1.0, max([2 * top / slope, *(2 * row.flop_per_byte for row in points)])]
    right.plot([reach[0], top / slope, reach[1]], [reach[0] * slope, top, top], color="black", linewidth=0.8)
    for name in dict.fromkeys(row.provider for row in points):
        own = [row for row in points if row.provider == name]
        right.scatter([row.flop_per_byte for row in own], [row.tflop_per_s for row in own], s=18, label=name)
    right.set(xscale="log", yscale="log", xlabel="FLOP per compulsory byte", ylabel="TFLOP/s, bf16 roof")
    right.set_title("pair_attention")
    right.legend(fontsize=6)
    title = results.machine.get("GPU", "") if results.real else "dry run: meaningless numbers"
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
