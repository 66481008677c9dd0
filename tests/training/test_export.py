"""What is exported loads into the library's model and gives the logits of the run's own evaluation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_support
import torch
from compat_support import load_torchvision

pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from fastmix.cli import main
from fastmix.train import files
from fastmix.train.config import METHODS, Config
from fastmix.train.data import Images, Splits
from fastmix.train.export import export
from fastmix.train.models import Classifier, build_encoder
from fastmix.train.trainer import Trainer

TINY = run_support.TINY | {"steps": 2}


def colours(size: int) -> Splits:
    def images(count: int) -> Images:
        g = torch.Generator().manual_seed(count)
        pixels = torch.randint(0, 256, (count, 3, size, size), generator=g, dtype=torch.uint8)
        return Images(pixels, torch.arange(count) % 3)

    return Splits(images(12), images(6), ["a", "b", "c"], (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def evaluated(trainer: Trainer, head: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised test images and the logits by which the trainer measures its accuracy."""
    images, targets = next(iter(trainer.splits.test.loader([torch.arange(6)], None, 0)))
    x = trainer.task.plain(images, targets).x
    module = trainer.task.module.eval()
    with torch.no_grad():
        return x, module(x) if head is None else module.classify(x, head)


def said_by(capsys, *words: object) -> str:
    assert main(["export", *map(str, words)]) == 0
    return capsys.readouterr().out


def error_of(capsys, *words: object) -> str:
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("fastmix export: error: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_exports_what_it_evaluates(tmp_path, capsys, method):
    trainer = Trainer(Config(**TINY, method=method), tmp_path)
    trainer.fit()
    said = said_by(capsys, tmp_path, tmp_path / "w.pt")
    x, logits = evaluated(trainer)
    model = Classifier(*build_encoder("resnet10", 1, 16, 2), 10)
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(value.is_contiguous() for value in state.values())
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), logits)
    assert "images: grey in [0, 1], 16 x 16" in said


def test_what_is_printed_runs(tmp_path, capsys):
    trainer = Trainer(Config(**TINY, method="cutmix"), tmp_path)
    trainer.fit()
    said = said_by(capsys, tmp_path / "checkpoint.pt", tmp_path / "w.pth")
    code = said.split("\n\n")[1]
    x, logits = evaluated(trainer)
    torch.save(x, tmp_path / "x")
    code += f"\ntorch.save(model(torch.load({str(tmp_path / 'x')!r})).detach(), {str(tmp_path / 'y')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    torch.testing.assert_close(torch.load(tmp_path / "y"), logits)


@pytest.mark.parametrize("clean_loss", [True, False])
@pytest.mark.parametrize("weights", ["teacher", "student", "teacher_mix", "student_mix", "student_one_hot"])
def test_weights_of_automix(tmp_path, capsys, weights, clean_loss):
    trainer = Trainer(Config(**TINY, method="automix", clean_loss=clean_loss), tmp_path)
    trainer.fit()
    if "one_hot" in weights and not clean_loss:
        assert "that head was not trained" in error_of(capsys, tmp_path, tmp_path / "w.pt", "--weights", weights)
        return
    head = weights if "_" in weights else f"{weights}_{'one_hot' if clean_loss else 'mix'}"
    x, logits = evaluated(trainer, head)
    model = Classifier(*build_encoder("resnet10", 1, 16, 2), 10)
    model.load_state_dict(export(tmp_path, weights).weights)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), logits)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "alexnet", "densenet121"])
def test_torchvision_models(tmp_path, capsys, name):
    if load_torchvision() is None:
        pytest.skip("torchvision is not installed")
    import torchvision

    size = 64 if name == "alexnet" else 32
    options = {**TINY, "model": f"torchvision:{name}", "labels_per_class": None, "batch_size": 4, "lr": 0.001}
    trainer = Trainer(Config(**options, method="cutmix"), tmp_path, splits=colours(size))
    trainer.fit()
    said = said_by(capsys, tmp_path, tmp_path / "w.pt")
    x, logits = evaluated(trainer)
    model = torchvision.models.get_model(name, num_classes=3)
    model.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), logits, rtol=1e-3, atol=1e-4)
    assert f"torchvision.models.get_model('{name}', num_classes=3)" in said


@pytest.mark.parametrize(
    ("name", "method"), [("resnet10t", "automix"), ("deit_tiny_distilled_patch16_224", "none"), ("levit_128s", "none")]
)
def test_timm_models(tmp_path, capsys, name, method):
    timm = pytest.importorskip("timm")
    options = {**TINY, "model": f"timm:{name}", "labels_per_class": None, "batch_size": 4, "lr": 0.001, "steps": 1}
    size = 32 if name == "resnet10t" else 224
    trainer = Trainer(Config(**options, method=method), tmp_path, splits=colours(size))
    trainer.fit()
    said_by(capsys, tmp_path, tmp_path / "w.pt")
    x, logits = evaluated(trainer)
    model = timm.create_model(name, num_classes=3)
    model.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), logits, rtol=1e-3, atol=1e-4)


def test_safetensors(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    trainer = Trainer(Config(**TINY, method="none"), tmp_path)
    trainer.fit()
    assert "load_file" in said_by(capsys, tmp_path, tmp_path / "w.safetensors")
    model = Classifier(*build_encoder("resnet10", 1, 16, 2), 10)
    model.load_state_dict(safetensors.load_file(tmp_path / "w.safetensors"))
    x, logits = evaluated(trainer)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), logits)


def test_wrong_use_is_one_line(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    Trainer(Config(**TINY, method="cutmix"), run).fit()
    saved = (run / "checkpoint.pt").read_bytes()
    cases = {
        (tmp_path / "no.pt", tmp_path / "w.pt"): "no.pt: no such checkpoint",
        (run / "log.csv", tmp_path / "w.pt"): "damaged checkpoint",
        (run, tmp_path / "w.onnx"): "w.onnx: must end in .pt, .pth or .safetensors",
        (run, tmp_path / "no" / "w.pt"): f"there is no folder {tmp_path}/no",
        (run, run / "checkpoint.pt"): "is the checkpoint, which would be lost",
        (run, tmp_path / "w.pt", "--weights", "teacher"): "only automix has several, a run of cutmix has one",
    }
    for words, message in cases.items():
        assert message in error_of(capsys, *words)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in error_of(capsys, run, tmp_path / "w.safetensors")
    assert (run / "checkpoint.pt").read_bytes() == saved and [p.name for p in tmp_path.iterdir()] == ["run"]
    state = files.load_checkpoint(run / "checkpoint.pt")
    state["module"]["head.bias"] = torch.zeros(3)
    files.save_checkpoint(tmp_path / "odd.pt", state)
    assert re.search(
        r"head\.bias has shape \(3,\), not \(10,\)", error_of(capsys, tmp_path / "odd.pt", tmp_path / "w.pt")
    )
