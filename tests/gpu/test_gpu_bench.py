"""The benchmark for GPUs, as far as it runs without one: the dry run, the checks before timing, the verdicts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastmix.bench.cases import tensors
from fastmix.bench.provider import check
from fastmix.bench.run import Row, providers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        names = ("gpu", "gpu_ops", "gpu_report", "gpu_step")
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(ROOT / "bench"))


@pytest.mark.slow
def test_a_dry_run_writes_numbers_that_say_they_mean_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", "ops", "--seconds", "1"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "meaningless" in done.stdout.splitlines()[-1]
    content = json.loads((tmp_path / "ops.json").read_text())
    assert content["meaningless"] and content["roofs"] and content["ops"]
    assert all(row["ms"] > 0 for row in content["ops"] if row["provider"] in ("fastmix cpu", "eager"))
    targets = (tmp_path / "targets.md").read_text()
    assert "every number below is meaningless" in targets and "| met |" not in targets and "| missed |" not in targets
    assert (tmp_path / "ops.csv").read_text().count("\n") == len(content["ops"]) + 1


def test_no_results_without_a_gpu(bench, monkeypatch, capsys):
    gpu, folder = bench.gpu, ROOT / "bench" / "results" / "a-gpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in ((["--dry-run", "--out", str(folder)], "does not write to"), ([], "needs a CUDA device")):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            gpu.main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not folder.exists()


def every_case(gpu_ops):
    generator = torch.Generator().manual_seed(0)
    return [make(generator) for make in gpu_ops.case_makers(gpu_ops.TINY_SIZES)]


def test_what_is_right_passes_and_what_is_wrong_is_named(bench):
    gpu_ops = bench.gpu_ops
    cases = every_case(gpu_ops)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        ours = providers(case, "cpu")[0]
        assert ours.ours and check(case, ours) == ""

        def off_by_a_little(*args, call=ours.call):
            return tuple(1.05 * tensor for tensor in tensors(call(*args)))

        assert "is off by" in check(case, replace(ours, call=off_by_a_little)), case.name


def test_a_wrong_gradient_is_named(bench):
    gpu_ops = bench.gpu_ops
    case = next(case for case in every_case(gpu_ops) if case.wanted)
    ours = providers(case, "cpu")[0]

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 1.2 * grad

    def call(*args):
        return ours.call(*(Wrong.apply(a) if a.requires_grad else a for a in args))

    assert "number 1 of results and gradients is off by" in check(case, replace(ours, call=call))


def made_up(bench):
    """Results in which every target is met, none of them measured."""
    gpu_ops, gpu_step = bench.gpu_ops, bench.gpu_step
    results = bench.gpu_report.Results(True, {"GPU": "none"}, {"copy GB/s": 1000.0}, gpu_ops.SIZES, [], [])
    for case in every_case(gpu_ops):
        for provider in providers(case, "cpu"):
            slower = 30.0 if provider.name == "eager" else 2.0
            name = "fastmix triton" if provider.ours else provider.name
            row = Row(case.name, case.op, bool(case.wanted), "", "", name)
            row.ms = 0.005 if provider.ours else 0.005 * slower
            row.percent_of_copy, row.extra_mb, row.host_us = 95.0, 1.0, 10.0
            results.ops.append(row)
    for feature in gpu_step.FEATURES:
        for name in ("MixUp", *gpu_step.SETTINGS):
            results.steps.append(gpu_step.StepRow(name, feature, ms=1.02, peak_mb=100.0))
        for name in gpu_step.WITH_PASSES:
            results.steps.append(gpu_step.StepRow(gpu_step.PASSES_OF + name, feature, ms=1.0))
    return results


def test_verdicts_follow_the_numbers(bench):
    report, results = bench.gpu_report, made_up(bench)

    def verdicts() -> list[str]:
        return [report.verdict(target.find(results)) for target in report.TARGETS]

    assert verdicts() == ["met"] * 9 + ["not measured"]
    for row in results.ops:
        if row.case == "mask_blend/imagenet-fp32-nhwc" and row.provider == "torch.compile":
            row.ms = 0.007
        if row.case == "pair_attention+grad/tiny-l1-bf16":
            row.extra_mb = 68.0
        if row.case.startswith("blend/small") and row.provider.startswith("fastmix"):
            row.ms = None
    next(step for step in results.steps if step.step == "sequential").peak_mb = 160.0
    assert verdicts() == [
        "missed",
        "met",
        "met",
        "missed",
        "met",
        "not measured",
        "met",
        "met",
        "missed",
        "not measured",
    ]
    results.ops.clear()
    assert verdicts()[:6] == ["not measured"] * 6
    assert report.targets_table(results).count("\n") == 1 + len(report.TARGETS)
