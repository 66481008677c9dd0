"""The pages: API pages build without a warning, links lead somewhere, commands exist, made sections are current."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fastmix import cli
from fastmix.bench import report

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_api_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    (recipe,) = re.findall(r"^docs:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    command = shlex.split(recipe)
    command[command.index("docs/api")] = str(tmp_path)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "fastmix" / "ops.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    for line in re.findall(r"^(?:python -m )?fastmix (.*)$", page.read_text(), flags=re.MULTILINE):
        name, *rest = shlex.split(line, comments=True)
        module = import_module(cli.COMMANDS[name][0])
        parser = cli.Parser(prog=name)
        module.add_arguments(parser)
        parser.parse_args(rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_scripts_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^make ([\w-]+)", page.read_text(), flags=re.MULTILINE):
        assert target in targets
    for script in re.findall(r"(?<![\w/])((?:bench|examples|tests)/[\w/.-]+\.(?:py|sh|json|md))", page.read_text()):
        assert (ROOT / script).exists(), script


def test_the_section_of_results_is_current():
    (results,) = re.findall(r"^RESULTS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert report.main([str(ROOT / results), str(ROOT / "README.md"), "--check"]) == 0
