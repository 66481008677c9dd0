"""The example programs for other people's loops, shortened, where these are installed."""

from __future__ import annotations

import re
from pathlib import Path

import compat_support
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


def run(name: str, **shorter: str) -> None:
    """Runs an example whose settings, as the source says them, are replaced."""
    pytest.importorskip("sklearn")
    source = (EXAMPLES / name).read_text()
    assert len(source.splitlines()) <= 60
    for setting, value in shorter.items():
        source, count = re.subn(rf"^{setting} = \S+( \d+)?", f"{setting} = {value}", source, flags=re.MULTILINE)
        assert count == 1, setting
    exec(compile(source, name, "exec"), {"__name__": "__main__"})


def accuracy(printed: str) -> float:
    return float(re.search(r"test accuracy: ([\d.]+)%", printed)[1])


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    run("lightning_module.py", **{"EPOCHS, BATCH": "4, 50"})
    assert accuracy(capsys.readouterr().out) > 30


def test_accelerate(capsys):
    pytest.importorskip("accelerate")
    run("accelerate_loop.py", **{"EPOCHS, BATCH": "4, 50"})
    assert accuracy(capsys.readouterr().out) > 30


@pytest.mark.slow
def test_torchvision(capsys):
    if compat_support.load_torchvision() is None:
        pytest.skip("torchvision is not installed")
    run("torchvision_finetune.py", WEIGHTS="None", **{"STEPS, BATCH": "2, 8"})
    assert "test accuracy" in capsys.readouterr().out
