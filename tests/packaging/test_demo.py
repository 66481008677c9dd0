"""`fastmix demo`: how a first timing settles seeds and steps; the runs themselves are in tests/training."""

from __future__ import annotations

import pytest

from fastmix.cli import demo

# Seconds outside the steps and of each step, the longest first: AutoMix, MixUp with clean loss, CutMix, MixUp, plain.
TWO_CORES = [(2.0, 0.077), (2.0, 0.045), (2.0, 0.024), (2.0, 0.024), (2.0, 0.023)]


def slower(factor: float) -> list[tuple[float, float]]:
    return [(factor * fixed, factor * step) for fixed, step in TWO_CORES]


def seconds(costs: list[tuple[float, float]], seeds: int, steps: int) -> float:
    return demo.makespan([fixed + steps * step for fixed, step in costs] * seeds, 2)


def test_an_ordinary_machine_runs_all_seeds_and_steps():
    assert demo.fit(TWO_CORES, 2, 220, (3, 600)) == (3, 600)


def test_a_slower_one_drops_a_seed_before_any_step():
    assert demo.fit(slower(1.5), 2, 220, (3, 600)) == (2, 600)


@pytest.mark.parametrize("factor", [2, 3, 5, 50])
def test_there_are_never_fewer_than_two_seeds(factor):
    seeds, steps = demo.fit(slower(factor), 2, 220, (3, 600))
    assert seeds == 2 and 150 <= steps < 600
    assert steps == 150 or seconds(slower(factor), seeds, steps) <= 220


def test_what_was_asked_for_is_kept():
    assert demo.fit(slower(50), 2, 220, (3, 600), free=(False, False)) == (3, 600)
    assert demo.fit(slower(50), 2, 220, (1, 600), free=(False, True)) == (1, 150)
    assert demo.fit(slower(50), 2, 220, (3, 40), free=(True, False)) == (2, 40)


def test_runs_go_to_the_process_that_is_free():
    assert demo.makespan([5, 3, 2, 2], 2) == 7
    assert demo.makespan([4, 1], 5) == 4


def test_the_price_of_a_step_stands_beside_its_accuracy():
    row = {"seed": 0, "accuracy": 80.0, "object_share": None, "lam_mismatch": None}
    rows = [row | {"method": "plain", "ms_per_step": 20.0}, row | {"method": "AutoMix", "ms_per_step": 66.0}]
    head, plain, automix = demo.table(rows).strip().splitlines()
    at = head.index("price") + len("price")
    assert plain[:at].endswith(" 1.0") and automix[:at].endswith(" 3.3")


def test_the_picture_says_which_colour_is_whose(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import torch

    from fastmix.train import report

    said = []
    monkeypatch.setattr(report, "_write", lambda path, figure: said.append(figure.get_supxlabel()))
    mask, image = (torch.rand(4, 4), "mask"), (torch.rand(3, 4, 4), "mix")
    report.save_grid(tmp_path / "masks.png", [[image, mask]], "caption")
    report.save_grid(tmp_path / "plain.png", [[image, image]], "caption")
    assert said == ["masks: red = own image, blue = partner", ""]
