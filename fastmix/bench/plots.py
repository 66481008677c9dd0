"""Pictures of a run: roofline, speed-ups, and how cost grows with the feature map and with the batch."""

from __future__ import annotations

from pathlib import Path

from fastmix.bench.provider import FASTMIX, NOT_THE_OP
from fastmix.bench.results import Results
from fastmix.bench.run import Row


def draw(results: Results, folder: Path) -> list[Path]:
    """Every picture that the results have numbers for; their files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in (
        ("roofline", _roofline),
        ("speedups", _speedups),
        ("feature-map-size", _sizes),
        ("batch-size", _batches),
    ):
        figure = plt.figure(figsize=(10, 5.5))
        if picture(results, figure):
            figure.text(0.99, 0.01, _caption(results), ha="right", fontsize=6, color="gray")
            figure.tight_layout(rect=(0, 0.03, 1, 1))
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120)
        plt.close(figure)
    return written


def _caption(results: Results) -> str:
    return ", ".join(results.machine.get(key, "") for key in ("gpu", "cpu", "torch", "date") if key in results.machine)


def _ours(rows: dict[str, Row]) -> Row | None:
    return min((row for name, row in rows.items() if name.startswith(FASTMIX)), key=lambda row: row.ms, default=None)


def _roofline(results: Results, figure) -> bool:
    points = [
        row for row in results.rows if row.tflop_per_s and row.provider not in NOT_THE_OP and "/r" not in row.case[:17]
    ]
    if not points:
        return False
    axes = figure.add_subplot()
    top = max(value for name, value in results.roofs.items() if "TFLOP/s" in name)
    slope = results.roofs["copy GB/s"] / 1e3
    reach = [1.0, max(2 * top / slope, *(2 * row.flop_per_byte for row in points))]
    axes.plot([reach[0], top / slope, reach[1]], [reach[0] * slope, top, top], color="black", linewidth=1)
    for name in dict.fromkeys(row.provider for row in points):
        own = [row for row in points if row.provider == name]
        axes.scatter([row.flop_per_byte for row in own], [row.tflop_per_s for row in own], s=28, label=name)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per compulsory byte", ylabel="TFLOP/s")
    axes.set_title("pair_attention under the machine's measured roof")
    axes.legend(fontsize=7)
    return True


def _speedups(results: Results, figure) -> bool:
    """For every case the time of each competitor over ours; sweeps and training steps have pictures of their own."""
    bars = []
    for case in results.cases:
        rows = results.of(case)
        ours = _ours(rows)
        if ours is None or case.startswith("step/") or _swept(case):
            continue
        others = {n: r.ms / ours.ms for n, r in rows.items() if not n.startswith(FASTMIX) and n not in NOT_THE_OP}
        if others:
            bars.append((case, others))
    if not bars:
        return False
    figure.set_size_inches(10, 1.2 + 0.13 * sum(len(others) + 1 for _, others in bars))
    axes, place, ticks = figure.add_subplot(), 0.0, []
    names = list(dict.fromkeys(name for _, others in bars for name in others))
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for case, others in bars:
        ticks.append((place + (len(others) - 1) / 2, case))
        for name, ratio in others.items():
            axes.barh(place, ratio, 0.9, color=colours[name], label=name)
            axes.text(ratio * 1.03, place, f"{ratio:.1f}", va="center", fontsize=5)
            place += 1
        place += 1
    axes.set_yticks([at for at, _ in ticks], [case for _, case in ticks], fontsize=5)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time over fastmix's fastest backend (1: level)")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=6)
    axes.margins(y=0.01)
    return True


def _swept(case: str) -> bool:
    tail = case.split("/")[1]
    return tail[0] in "nr" and tail[1:].isdigit()


def _sweep(results: Results, op: str, letter: str) -> dict[str, list[tuple[int, Row]]]:
    """By provider: (size, row) of a sweep."""
    found: dict[str, list[tuple[int, Row]]] = {}
    for row in results.rows:
        name, _, tail = row.case.partition("/")
        if (
            name == op
            and tail[:1] == letter
            and tail[1:].isdigit()
            and row.ms is not None
            and row.provider not in NOT_THE_OP
        ):
            found.setdefault(row.provider, []).append((int(tail[1:]), row))
    return found


def _sizes(results: Results, figure) -> bool:
    found = _sweep(results, "pair_attention+grad", "r")
    if not found:
        return False
    time, memory = figure.subplots(1, 2)
    for name, points in found.items():
        sizes = [r for r, _ in points]
        time.plot(sizes, [row.ms for _, row in points], marker="o", label=name)
        memory.plot(sizes, [max(row.extra_mb or 0, 0.01) for _, row in points], marker="o", label=name)
    n = next(iter(found.values()))[0][1].shape.split("x")[0]
    sizes = sorted({r for points in found.values() for r, _ in points})
    memory.plot(sizes, [int(n) * r * r * 4 / 1e6 for r in sizes], ":", color="gray", label="the matrix P alone")
    for axes, label in ((time, "ms, forward and backward"), (memory, "extra memory, MB")):
        axes.set(xscale="log", yscale="log", xlabel="positions r of the feature map", ylabel=label)
        axes.legend(fontsize=7)
    figure.suptitle("AutoMix's attention: cost against the size of the feature map")
    return True


def _batches(results: Results, figure) -> bool:
    sweeps = {op: _sweep(results, op, "n") for op in ("blend", "mask_blend")}
    if not any(sweeps.values()):
        return False
    for axes, (op, found) in zip(figure.subplots(1, 2), sweeps.items(), strict=True):
        for name, points in found.items():
            axes.plot([n for n, _ in points], [1e3 * row.ms / n for n, row in points], marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="us an image (3x64x64)", title=op)
        axes.legend(fontsize=7)
    return True
