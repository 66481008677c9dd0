"""The list of methods: in the README, on the command line, and what each declares."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastmix import methods, ops
from fastmix.cli import main
from fastmix.methods.base import DATA_SETS
from fastmix.methods.table import BEGIN, END, markdown
from fastmix.train.config import METHODS

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="not a checkout")
def test_the_readme_holds_the_table():
    between = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == markdown(), "put the output of python -m fastmix.methods between the markers"


def test_it_is_printed(capsys):
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown()
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(methods.METHODS)
    printed = subprocess.run([sys.executable, "-m", "fastmix.methods"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == markdown()


@pytest.mark.parametrize("name", methods.METHODS)
def test_each_declares_itself(name):
    method = methods.METHODS[name]
    assert method.name == name and method.__doc__ and getattr(methods, method.__name__) is method
    assert method.ops and all(hasattr(ops, op) for op in method.ops)
    assert set(method.alphas) <= set(DATA_SETS)
    assert method.needs in (None, "saliency", "features", "model")
    assert repr(method()).startswith(f"{method.__name__}(alpha=")


def test_the_command_line_knows_them_all():
    assert (*methods.METHODS, "automix") == METHODS
