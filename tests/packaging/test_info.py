"""`python -m fastmix info`: a report that never raises, with an exit code that tells."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest

from fastmix import __version__, dispatch, ops
from fastmix.cli import info


@pytest.fixture(scope="module")
def report() -> dict:
    return info.collect()


def main(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    info.add_arguments(parser)
    return info.main(parser.parse_args(arguments))


def test_the_command_prints_json_and_succeeds() -> None:
    command = [sys.executable, "-m", "fastmix", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["healthy"] is True


def test_versions_and_build_are_told(report: dict) -> None:
    assert report["versions"]["fastmix"] == report["build"]["version"] == __version__
    assert report["versions"]["torch"] == report["torch"]["version"]
    assert report["build"]["isa in use"] in report["build"]["isa_levels"].split()
    assert report["build"]["compiler"]
    assert report["system"]["cores"] >= 1


def test_every_op_has_every_backend_with_its_reason(report: dict) -> None:
    assert set(report["backends"]) == set(dispatch.ORDER)
    for op, devices in report["backends"].items():
        for device, reasons in devices.items():
            assert list(reasons) == list(dispatch.BACKENDS)
            assert reasons["reference"] is None
            for backend, reason in reasons.items():
                assert reason == dispatch.can_run(op, backend, device, dispatch.usual_dtype(op))


def test_every_usable_backend_was_checked(report: dict) -> None:
    usable = {
        (op, backend, device)
        for op, devices in report["backends"].items()
        for device, reasons in devices.items()
        for backend, reason in reasons.items()
        if reason is None
    }
    assert {(c["op"], c["backend"], c["device"]) for c in report["self_check"]} == usable
    assert [c for c in report["self_check"] if c["error"] is not None] == []


def test_text_names_every_op_and_ends_with_the_verdict(report: dict) -> None:
    text = info.render(report)
    for op in dispatch.ORDER:
        assert f"{op} on cpu" in text
    assert text.endswith("fastmix is healthy")


@pytest.mark.parametrize("op", list(dispatch.ORDER))
def test_a_wrong_kernel_fails_the_check(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(ops, op)

    def wrong(*args, backend: str, **kwargs):
        result = right(*args, backend=backend, **kwargs)
        if backend != "cpu":
            return result
        return tuple(y * 1.001 for y in result) if isinstance(result, tuple) else result * 1.001

    monkeypatch.setattr(ops, op, wrong)
    errors = {(c["op"], c["backend"]): c["error"] for c in info.self_check()}
    assert "is off by" in errors.pop((op, "cpu"))
    assert set(errors.values()) == {None}


def test_a_raising_kernel_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.blend

    def broken(*args, backend: str, **kwargs):
        if backend == "cpu":
            raise RuntimeError("kernel exploded")
        return right(*args, backend=backend, **kwargs)

    monkeypatch.setattr(ops, "blend", broken)
    errors = {(c["op"], c["backend"]): c["error"] for c in info.self_check()}
    assert errors["blend", "cpu"] == "RuntimeError: kernel exploded"


def test_a_failed_check_sets_the_exit_code(report: dict, monkeypatch, capsys) -> None:
    failed = [{"op": "blend", "backend": "cpu", "device": "cpu", "error": "output 0 is off"}]
    sections = {name: report[name] for name in ("torch", "build", "backends")} | {"self_check": failed}
    monkeypatch.setattr(info, "_run_probe", lambda: sections)
    assert main() == 1
    assert "FAILED: output 0 is off" in capsys.readouterr().out


def test_a_crash_is_reported_and_what_came_before_it_kept(monkeypatch, capsys) -> None:
    crash = "import json, os; print(json.dumps({'torch': {'version': '9.9'}}), flush=True); os.abort()"
    monkeypatch.setattr(info, "PROBE", crash)
    assert main("--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["torch"] == {"version": "9.9"}
    assert printed["self_check"] == {"error": "the process died of SIGABRT"}
    assert main() == 1
    assert "SIGABRT" in capsys.readouterr().out


def test_a_broken_torch_is_reported(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    command = [sys.executable, "-m", "fastmix", "info"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert "hint: torch does not work here" in done.stdout
    assert "libcudart.so.12" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_missing_native_module_is_a_hint_not_an_illness(report: dict) -> None:
    error = {"error": "RuntimeError: fastmix: the compiled module is not available"}
    slow = report | {"build": error, "slow": {"cpu": "blend: cpu: the compiled module is not available"}}
    slow["hints"] = info._hints(slow)
    assert [hint for hint in slow["hints"] if "without the native module" in hint]
    assert info.render(report).endswith("\nfastmix is healthy")
    assert info.render(slow).endswith("\nfastmix works, but SLOWLY: kernels are missing, see the hints above")


def test_a_stale_native_module_is_told(report: dict) -> None:
    hints = info._hints(report | {"build": report["build"] | {"version": "0.0.1"}})
    assert [hint for hint in hints if "another version" in hint]


@pytest.mark.parametrize(
    ("nvcc", "driver", "wanted"),
    [
        ("/usr/bin/nvcc", False, ["pip install . here"]),
        (None, True, ["where nvcc is installed"]),
        (None, False, []),
    ],
)
def test_cuda_kernels_that_were_not_built_are_told(report: dict, nvcc, driver, wanted) -> None:
    tools = report["toolchain"] | {"nvcc": nvcc, "nvidia driver": driver}
    build = report["build"] | {"version": report["versions"]["fastmix"], "cuda_archs": ""}
    hints = [hint for hint in info._hints(report | {"toolchain": tools, "build": build}) if "FASTMIX_CUDA=1" in hint]
    assert len(hints) == len(wanted) and all(text in hint for text, hint in zip(wanted, hints, strict=True))
    built = report | {"toolchain": tools, "build": build | {"cuda_archs": "90-real"}}
    assert not [hint for hint in info._hints(built) if "FASTMIX_CUDA=1" in hint]


def test_triton_without_a_compiler_is_told(report: dict) -> None:
    tools = report["toolchain"] | {"c compiler": None, "Python.h": None}
    hints = info._hints(report | {"toolchain": tools})
    assert [hint for hint in hints if "c compiler and Python.h: apt install build-essential python3-dev" in hint]


def test_environment_in_force_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMIX_BACKEND", "reference")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert info._environment().items() >= {"FASTMIX_BACKEND": "reference", "OMP_NUM_THREADS": "1"}.items()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["methods"], ["info"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastmix", *words], stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert done.stderr == "" and done.returncode in (141, 0)  # argparse itself overlooks it
