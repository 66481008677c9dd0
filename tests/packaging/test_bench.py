"""The benchmark: the registry, the check before timing, the clock, comparison of runs, tables, pictures, the README."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from fastmix import cli, dispatch
from fastmix.bench import clock, compare, report, results, run
from fastmix.bench.cases import Case, Entry
from fastmix.bench.provider import FASTMIX, Provider, check

pytestmark = pytest.mark.usefixtures("one_thread")
ENTRIES = {entry.name: entry for entry in run.registry()}
QUICK = [name for name, entry in ENTRIES.items() if entry.quick]


def made(name: str) -> Case:
    return ENTRIES[name].make(torch.Generator().manual_seed(0))


def test_names_are_unique_and_every_op_is_in_the_quick_run():
    assert len(ENTRIES) == len(list(run.registry()))
    assert {ENTRIES[name].op for name in QUICK} >= set(dispatch.ORDER)


@pytest.mark.parametrize("name", QUICK)
def test_a_case_is_what_its_entry_says_and_our_results_are_right(name):
    case = made(name)
    assert case.name == name and case.op == ENTRIES[name].op
    ours = [provider for provider in run.providers(case, "cpu", "") if provider.ours]
    assert ours and all(check(case, provider) == "" for provider in ours)


@pytest.mark.parametrize("name", [name for name in QUICK if not ENTRIES[name].name.startswith("step")])
def test_a_wrong_result_is_named(name):
    case = made(name)
    ours = next(provider for provider in run.providers(case, "cpu", "") if provider.ours)

    def spoilt(found):
        if isinstance(found, torch.Tensor):
            return found + 1 if found.dtype in (torch.int32, torch.int64) else found * 1.05 + 0.01
        if isinstance(found, (tuple, list)):
            return type(found)(map(spoilt, found))
        found.x = found.x * 1.05 + 0.01
        return found

    wrong = replace(ours, call=lambda *args, call=ours.call, **options: spoilt(call(*args, **options)))
    assert check(case, wrong) != ""


def timed(name: str, milliseconds: float, right: bool = True) -> Provider:
    def call(x):
        time.sleep(milliseconds / 1e3)
        return x * 2 if right else x * 3

    return Provider(name, call)


def doubling(*providers: Provider) -> Entry:
    def make(generator):
        x = torch.rand(4, 3, generator=generator)
        return Case("doubling/small", (x,), None, lambda x: x * 2, 96, providers=providers)

    return Entry("doubling/small", make)


@pytest.mark.slow
def test_rows_hold_what_was_measured_and_why_the_rest_was_not():
    entry = doubling(
        timed(FASTMIX + "cpu", 1),
        timed("eager", 3),
        timed("wrong", 1, right=False),
        Provider("absent", lambda x: x, package="no-such-package"),
        Provider("broken", lambda x: 1 / 0),
    )
    rows = {r.provider: r for r in run.measure(entry.make, clock.CpuTimer(), {"copy GB/s": 1.0}, 0.2)}
    assert 1 <= rows["fastmix cpu"].ms < rows["eager"].ms and rows["eager"].ms >= 3
    ours = rows["fastmix cpu"]
    assert ours.low_ms <= ours.ms <= ours.high_ms and ours.samples >= 7 and ours.first_ms >= 1
    assert ours.gb_per_s == pytest.approx(96 / ours.ms / 1e6) and ours.percent_of_roof == pytest.approx(
        ours.gb_per_s * 100
    )
    assert rows["wrong"].ms is None and "off by" in rows["wrong"].note
    assert rows["absent"].ms is None and rows["absent"].note == "absent: no-such-package is not installed"
    assert rows["broken"].ms is None and "division by zero" in rows["broken"].note
    text = results.table(rows.values())
    assert "not timed: number 0" in text and "absent" in text and "1.00" in text


def test_rounds_in_which_others_hold_the_cores_do_not_count(monkeypatch):
    busy = iter([0.0, *([0.0] * 3), *(float(i) for i in range(1, 100))])
    monkeypatch.setattr(clock, "_others_seconds", lambda: next(busy))
    monkeypatch.setattr(clock, "_JUDGED_SECONDS", 0.0)
    timer = clock.CpuTimer()
    found = timer.rounds({"a": clock.Prepared(lambda: time.sleep(0.001), 1)}, 0.01)["a"]
    assert found.flagged and found.disturbed > 0 and len(found.values) >= 7


def test_undisturbed_rounds_are_not_flagged(monkeypatch):
    monkeypatch.setattr(clock, "_others_seconds", lambda: 0.0)
    found = clock.CpuTimer().rounds({"a": clock.Prepared(lambda: time.sleep(0.001), 1)}, 0.05)["a"]
    assert not found.flagged and found.disturbed == 0 and found.quantile(0) <= found.median <= found.quantile(1)


def test_extra_memory_is_that_of_the_call():
    timer = clock.CpuTimer()
    extra, result = timer.extra_bytes(lambda: (torch.ones(2**23) + 1).sum())
    if extra is None:
        pytest.skip("the system does not tell the peak of memory")
    assert 60e6 < extra < 100e6 and result.item() == 2**24


def row(provider: str, ms: float, case: str = "blend/x", spread: float = 0.02, **more) -> run.Row:
    half = spread * ms / 2
    return run.Row(case, "blend", False, "1", "fp32", provider, "1", ms, ms - half, ms + half, 20, **more)


def of(*rows: run.Row) -> results.Results:
    return results.Results({"cpu": "a", "torch": "b"}, {"copy GB/s": 1.0}, list(rows))


def verdicts(before: results.Results, after: results.Results) -> list[str]:
    return [move.verdict for move in compare.compare(before, after, 0.1)]


def test_a_slower_kernel_is_told_from_a_slower_machine():
    before = of(row("fastmix cpu", 1.0), row("eager", 5.0), row("copy_", 0.5))
    assert verdicts(before, of(row("fastmix cpu", 1.05), row("eager", 5.1), row("copy_", 0.5))) == ["same"]
    assert verdicts(before, of(row("fastmix cpu", 1.5), row("eager", 5.0), row("copy_", 0.5))) == ["slower"]
    assert verdicts(before, of(row("fastmix cpu", 1.5), row("eager", 7.5), row("copy_", 0.75))) == ["same"]
    assert verdicts(before, of(row("fastmix cpu", 0.66), row("eager", 2.8), row("copy_", 0.28))) == ["same"]
    assert verdicts(before, of(row("fastmix cpu", 0.6), row("eager", 5.0), row("copy_", 0.5))) == ["faster"]
    assert verdicts(before, of(row("fastmix cpu", 1.5, spread=0.5), row("eager", 5.0), row("copy_", 0.5))) == ["same"]
    assert verdicts(before, of(row("fastmix cpu", 1.5, flagged=True), row("eager", 5.0))) == ["unsure"]


def test_the_command_compares_two_files(tmp_path, capsys):
    paths = [tmp_path / name for name in ("before.json", "same.json", "slow.json")]
    for path, ms in zip(paths, (1.0, 1.02, 1.9), strict=True):
        of(row("fastmix cpu", ms), row("eager", 5.0)).save(path)
    before, same, slow = map(str, paths)
    assert cli.main(["bench", "compare", before, same]) == 0
    assert "1 of 1 did not move" in capsys.readouterr().out
    assert cli.main(["bench", "compare", before, slow]) == 1
    assert "slower  blend/x  fastmix cpu: 1 -> 1.9 ms, 1.90x" in capsys.readouterr().out
    assert cli.main(["bench", "compare", before, slow, "--threshold", "1"]) == 0
    assert cli.main(["bench", "compare", before, str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
    paths[1].write_text("{}")
    assert cli.main(["bench", "compare", before, same]) == 2
    assert "not a file of results" in capsys.readouterr().err


def test_results_survive_a_file(tmp_path):
    before = of(row("fastmix cpu", 1.25), row("eager", 5.0, note="a note"))
    before.save(tmp_path / "folder" / "r.json")
    assert results.Results.load(tmp_path / "folder" / "r.json") == before
    assert json.loads((tmp_path / "folder" / "r.json").read_text())["format"] == results.FORMAT
    before.save_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().count("\n") == 3


def test_the_command_times_what_was_asked_for(tmp_path, capsys):
    arguments = ["bench", "--quick", "--only", "transport/rounds", "--provider", "fastmix", "--seconds", "0.05"]
    code = cli.main([*arguments, "--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")])
    assert code == 0
    found = results.Results.load(tmp_path / "r.json")
    assert found.cases == ["transport/rounds-T8-flat"] and [r.provider for r in found.rows] == ["fastmix cpu"]
    assert found.machine["allocator"] and found.roofs["copy GB/s"] > 0
    assert "transport/rounds-T8-flat" in capsys.readouterr().out
    assert cli.main(["bench", "--only", "no-such-case"]) == 2
    assert "--only no-such-case" in capsys.readouterr().err
    assert cli.main(["bench", "step", "--method", "no-such-method"]) == 2
    assert cli.main(["bench", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(ENTRIES)


@pytest.mark.slow
def test_a_wrong_kernel_fails_the_run(monkeypatch, capsys):
    entry = doubling(timed(FASTMIX + "cpu", 1, right=False), timed("eager", 1))
    monkeypatch.setattr(run, "registry", lambda device: [replace(entry, quick=True)])
    assert cli.main(["bench", "--quick", "--seconds", "0.01"]) == 1
    assert "fastmix cpu: not timed" in capsys.readouterr().err


def test_training_steps_are_divided_by_the_plain_one(tmp_path):
    arguments = ["bench", "step", "--method", "mixup", "--batch-size", "4", "--image-size", "16", "--width", "4"]
    assert cli.main([*arguments, "--seconds", "0.05", "--json", str(tmp_path / "r.json")]) == 0
    rows = results.Results.load(tmp_path / "r.json").of("step/resnet18-16")
    assert list(rows) == ["fastmix plain", "fastmix mixup"] and all(r.ms > 0 for r in rows.values())


def whole() -> results.Results:
    rows = [
        row(provider, 1.0 + i, entry.name, extra_mb=1.0, tflop_per_s=0.1, flop_per_byte=10.0)
        for entry in ENTRIES.values()
        for i, provider in enumerate(("fastmix cpu out=", "fastmix cpu", "eager", "gco"))
    ]
    machine = dict.fromkeys(("date", "commit", "cpu", "fastmix", "torch", "python", "allocator"), "x")
    return results.Results(machine, {"copy GB/s": 10.0, "fp32 TFLOP/s": 0.2}, rows)


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from fastmix.bench.plots import draw

    written = draw(whole(), tmp_path)
    assert [path.name for path in written] == ["roofline.png", "speedups.png", "feature-map-size.png", "batch-size.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)
    assert draw(of(), tmp_path / "none") == []


def test_goals_are_about_cases_that_exist():
    assert {case for goal in report.GOALS for case in goal.cases} <= set(ENTRIES)


def test_the_section_is_made_from_the_numbers(tmp_path, capsys):
    page, numbers = tmp_path / "page.md", tmp_path / "r.json"
    whole().save(numbers)
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    command = [str(numbers), str(page)]
    assert report.main([*command, "--check"]) == 1
    assert report.main(command) == 0 and report.main([*command, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    # gco takes 4 ms, ours with out= 1 ms; eager 3 ms
    assert "| exact `grid_cut`, 4 x 4 blocks, against gco | >= 5x | 4.00x | missed |" in text
    assert "| `mask_blend`, `out=`, against eager | >= 10x | 3.00x | missed |" in text
    assert "| PuzzleMix's mixing, 100x3x32x32, mean over B | <= 10 ms | 1.0 ms | met |" in text
    page.write_text("no markers")
    assert report.main(command) == 2 and "markers" in capsys.readouterr().err
