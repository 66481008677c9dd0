"""The pages' own code, as a reader meets it: every Python snippet in order in one session, the quick commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# What makes a command of the README quick; nothing else of it is changed.
SHORTER = {"--steps 600": "--steps 2", "--epochs 100": "--epochs 1", "folder:DIR": "folder:pictures"}
TOO_LONG = ("bench",)


def snippets(page: Path, language: str) -> list[tuple[int, str]]:
    """Line number and text of each block of code."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n") + 1, block[1]) for block in found]


def session(*pages: Path) -> str:
    """A program of all Python snippets; a traceback names the page and its line."""
    parts = []
    for page in pages:
        for line, code in snippets(page, "python"):
            source = "\n" * (line - 1) + code
            parts.append(f"exec(compile({source!r}, {page.name!r}, 'exec'), globals())")
    return "\n".join(parts)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_every_snippet_runs_in_order_in_one_session(tmp_path):
    program = tmp_path / "session.py"
    program.write_text(session(README, ROOT / "docs" / "replace.md"))
    assert program.read_text().count("exec(") == README.read_text().count("```python") + 2
    done = run([sys.executable, str(program)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "-> cpu" in done.stdout, "explain is to be printed"


def test_what_a_snippet_needs_is_defined_in_the_page():
    """Not by an earlier page, nor by names that only this test knows."""
    first = snippets(README, "python")[0][1]
    for name in ("images", "labels", "model", "loader"):
        assert re.search(rf"^.*\b{name}\b.* = ", first, flags=re.MULTILINE), name


def commands() -> list[str]:
    """The README's `python -m fastmix` commands that can be made quick, shortened."""
    found = []
    for _, block in snippets(README, "sh"):
        for line in block.splitlines():
            line = line.split("  #")[0].strip()
            if line.startswith("python -m fastmix") and line.split()[3] not in TOO_LONG:
                for long, short in SHORTER.items():
                    line = line.replace(long, short)
                found.append(line)
    return found


@pytest.mark.slow
def test_the_quick_commands_run_in_order(tmp_path):
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision.models")
    for kind, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(8):
            image.new("RGB", (40, 40 + number), colour).save(tmp_path / "pictures" / kind / f"{number}.png")
    found = commands()
    assert {line.split()[3] for line in found} >= {"info", "train"}
    for line in found:
        done = run([sys.executable, *shlex.split(line)[1:]], tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"


def test_the_package_needs_no_clone_after_it_is_installed():
    """Nothing on the page asks for files of the clone from Python, or for its interpreter by path."""
    for _, block in [*snippets(README, "python"), *snippets(README, "sh")]:
        assert ".venv/bin/python" not in block
