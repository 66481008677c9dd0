"""The pages: API pages build without a warning, links lead somewhere, commands exist, made sections are current."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fastmix import __version__, bench, cli, dispatch, ops, reference
from fastmix.bench import report
from fastmix.cli import info

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_what_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:csrc|fastmix|kernels|tests)/[\w./<>-]*)`", text)
    assert len(named) >= 18
    for name in named:
        assert (ROOT / name.replace("<op>", "saliency_pool").replace("<method>", "gridmix")).exists(), name
    for name in re.findall(r"`(<op>[.\w]*|native\.py|triton_kernel\.py)`", text):
        assert list((ROOT / "kernels").glob(f"*/{name.replace('<op>', 'saliency_pool')}")), name


@pytest.mark.parametrize("op", dispatch.ORDER)
def test_every_op_is_in_the_tables_that_contributing_names(op):
    assert op in dispatch._DTYPES and op in info._CASES and op in ops.__all__ and hasattr(reference, op)
    assert {path.name for path in (ROOT / "kernels" / op).iterdir()} >= {"README.md", "native.py", f"{op}.cpp"}
    assert re.search(rf"FASTMIX_KERNEL(_AVX2)?\({op},", (ROOT / "csrc" / "cpu.cpp").read_text())
    assert all((ROOT / "fastmix" / part / f"{op}.py").exists() for part in ("ops", "reference"))


def test_each_bench_folder_says_what_the_other_holds():
    assert "`fastmix/bench`" in (ROOT / "bench" / "README.md").read_text().splitlines()[0]
    assert "``bench`` beside the package" in bench.__doc__


def test_the_citation_is_of_this_version():
    said = dict(re.findall(r"^(\S+): (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE))
    assert said["version"] == __version__ and said["license"] == "Apache-2.0" and said["cff-version"] == "1.2.0"
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_section_of_results_is_current():
    (results,) = re.findall(r"^RESULTS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert report.main([str(ROOT / results), str(ROOT / "README.md"), "--check"]) == 0
