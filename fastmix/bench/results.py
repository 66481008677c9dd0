"""What a run leaves behind: machine, roofs and rows, as JSON, CSV and a table to read."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import fastmix
from fastmix import native
from fastmix.bench.run import Row

FORMAT = 1


@dataclass
class Results:
    """Everything a run measured."""

    machine: dict[str, str] = field(default_factory=dict)
    roofs: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def of(self, case: str) -> dict[str, Row]:
        """The timed rows of a case by provider."""
        return {row.provider: row for row in self.rows if row.case == case and row.ms is not None}

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(row.case for row in self.rows))

    def save(self, path: Path) -> None:
        """Write JSON; a file that is there is replaced only once the new one is whole."""
        content = {"format": FORMAT, "machine": self.machine, "roofs": self.roofs, "rows": list(map(_plain, self.rows))}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing, or is not such a file, naming it.
        """
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise ValueError(f"{path}: has format {content['format']!r}, this version reads {FORMAT}")
            known = {f.name for f in fields(Row)}
            rows = [Row(**{key: value for key, value in row.items() if key in known}) for row in content["rows"]]
            return cls(content["machine"], content["roofs"], rows)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a file of results of `fastmix bench` ({error})") from None

    def save_csv(self, path: Path) -> None:
        """One line a row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(map(_plain, self.rows))


def _plain(row: Row) -> dict[str, Any]:
    """Numbers to five digits: more mean nothing, and files stay comparable."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in asdict(row).items()}


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"),
        "cpu": f"{_cpu()}, {torch.get_num_threads()} of {os.cpu_count()} threads",
        "fastmix": f"{fastmix.__version__}, {_build()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": _allocator(),
    }
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return found


def _build() -> str:
    why = native.why_unavailable()
    return f"pure Python ({why})" if why else f"kernels for {native.module().cpu_isa()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _allocator() -> str:
    names = ("LD_PRELOAD", "GLIBC_TUNABLES", *sorted(name for name in os.environ if name.startswith("MALLOC_")))
    found = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    return " ".join(found) or f"{platform.libc_ver()[0] or 'system'} defaults"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


COLUMNS = (
    ("ms", "ms", "{:.4g}"),
    ("q1-q3", None, "{}"),
    ("ratio", None, "{:.2f}"),
    ("GB/s", "gb_per_s", "{:.1f}"),
    ("TFLOP/s", "tflop_per_s", "{:.3f}"),
    ("% roof", "percent_of_roof", "{:.0f}"),
    ("+MB", "extra_mb", "{:.1f}"),
    ("host us", "host_us", "{:.1f}"),
)


def table(rows: Iterable[Row]) -> str:
    """The rows of one case. `ratio` is a provider's time over that of our first row."""
    rows = list(rows)
    base = next((row.ms for row in rows if row.ms is not None and row.provider.startswith("fastmix ")), None)
    lines = [
        f"{rows[0].case}  {rows[0].shape} {rows[0].dtype}" + ("  forward and backward" if rows[0].backward else "")
    ]
    width = max(len(_name(row)) for row in rows) + 2
    lines.append(" " * (width + 2) + "".join(f"{title:>13}" for title, *_ in COLUMNS))
    for row in rows:
        cells = "".join(f"{_cell(row, *column, base=base):>13}" for column in COLUMNS)
        lines.append(f"  {_name(row):<{width}}{cells if row.ms is not None else ''}  {_remark(row)}".rstrip())
    return "\n".join(lines)


def _name(row: Row) -> str:
    peer = row.version and not row.provider.startswith(("fastmix", "eager", "torch.compile", "copy_", "QK^T"))
    return f"{row.provider} ({row.version})" if peer else row.provider


def _cell(row: Row, title: str, attribute: str | None, form: str, base: float | None) -> str:
    if title == "q1-q3":
        value = None if row.low_ms is None else f"{row.low_ms:.3g}-{row.high_ms:.3g}"
    elif title == "ratio":
        value = row.ms / base if base and row.ms else None
    else:
        value = getattr(row, attribute)
    return "" if value is None else form.format(value)


def _remark(row: Row) -> str:
    if row.flagged:
        return "! other processes held the cores"
    return row.note
