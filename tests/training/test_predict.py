"""`fastmix predict`: what training measured is what prediction gives, from the files alone."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

from PIL import Image

from fastmix.cli import main
from fastmix.train import files
from fastmix.train.config import Config
from fastmix.train.errors import UserError
from fastmix.train.images import read_image
from fastmix.train.predictor import Predictor
from fastmix.train.trainer import Trainer

COLOURS = {"blue sky": (30, 30, 200), "grass": (30, 200, 30), "red": (200, 30, 30)}
MODEL = {"model": "resnet10", "width": 4, "batch_size": 9, "threads": 1, "tensorboard": False, "feature": "layer2"}
CPU = torch.device("cpu")


def paint(root: Path, count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.normal(colour, 40, (24 + k, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory) -> Path:
    """A run that learned its three colours."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = "--method none --model resnet10 --width 4 --batch-size 9 --steps 40 --image-size 32 --threads 1 --quiet"
    words = ["train", "--data", f"folder:{data}", *options.split(), "--no-tensorboard", "--out", str(out)]
    assert main(words) == 0
    return out


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def table(text: str) -> dict[str, list[tuple[str, float]]]:
    """Name of the picture -> classes with their probabilities in percent."""
    rows = [re.split(r"\s{2,}", line) for line in text.splitlines()[1:]]
    return {
        name: [(cell.split("% ")[1], float(cell.split("%")[0])) for cell in cells] for name, *cells in rows if cells
    }


def error_of(capsys, *words: object) -> str:
    assert predict(*words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("fastmix predict: error: ") and said.err.count("\n") == 1
    return said.err.removeprefix("fastmix predict: error: ").rstrip()


def test_a_folder_is_trained_on_and_named(run_folder, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(data)
    words = ("--csv", tmp_path / "a.csv", "--out", tmp_path / "a.png", "--batch-size", 7)
    assert predict(run_folder / "checkpoint.pt", ".", *words) == 0
    said = capsys.readouterr().out
    *lines, last = said.splitlines()
    assert re.fullmatch(rf"{tmp_path}/a\.png: \d+ x \d+, 30 pictures", last)
    found = table("\n".join(lines))
    assert list(found) == sorted(f"{name}/{k}.png" for name in COLOURS for k in range(10))
    for name, cells in found.items():
        assert cells[0][0] == Path(name).parent.name
        assert {name for name, _ in cells} == set(COLOURS)
        assert sum(share for _, share in cells) == pytest.approx(100, abs=0.2)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert list(rows[0]) == [
        "image", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"
    ]  # fmt: skip
    for row, (name, cells) in zip(rows, found.items(), strict=True):
        assert row["image"] == name and row["class_1"] == cells[0][0]
        assert 100 * float(row["probability_2"]) == pytest.approx(cells[1][1], abs=0.06)
    with Image.open(tmp_path / "a.png") as sheet:
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 100


def test_one_picture_and_one_class(run_folder, data, capsys):
    assert predict(run_folder, data / "red" / "3.png", "--top", 1) == 0
    ((name, cells),) = table(capsys.readouterr().out).items()
    assert name == str(data / "red" / "3.png") and len(cells) == 1 and cells[0][0] == "red"


@pytest.mark.parametrize("method", ["cutmix", "puzzlemix", "automix"])
def test_probabilities_are_those_that_training_measured(data, tmp_path, method):
    trainer = Trainer(Config(**MODEL, data=f"folder:{data}", method=method, steps=3, image_size=32), tmp_path)
    trainer.fit()
    test = trainer.splits.test
    images, targets = next(iter(test.loader([torch.arange(len(test))], None, 0)))
    trainer.task.module.eval()
    with torch.no_grad():
        expected = trainer.task.module(trainer.task.plain(images, targets).x).softmax(1)
    predictor = Predictor(tmp_path, CPU)
    assert predictor.classes == sorted(COLOURS)
    seen = torch.stack([predictor.pixels(read_image(path)) for path in test.paths])
    assert torch.equal(seen, images)
    torch.testing.assert_close(predictor(seen), expected)
    accuracy = 100 * (predictor(seen).argmax(1) == targets).float().mean().item()
    assert accuracy == pytest.approx(trainer.history[-1]["test_accuracy"], abs=1e-4)


def test_grey_pictures_that_are_not_cropped(tmp_path):
    pytest.importorskip("sklearn")
    trainer = Trainer(Config(**MODEL, data="digits", method="mixup", steps=2, labels_per_class=2), tmp_path)
    trainer.fit()
    images, _ = next(iter(trainer.splits.test.loader([torch.arange(5)], None, 0)))
    predictor = Predictor(tmp_path / "checkpoint.pt", CPU)
    assert predictor.classes == [str(digit) for digit in range(10)]
    seen = torch.stack([predictor.pixels(Image.fromarray(image[0].numpy()).convert("RGB")) for image in images])
    assert torch.equal(seen, images)
    wide = predictor.pixels(Image.new("RGB", (90, 31), "white"))
    assert wide.shape == (1, 16, 16) and (wide == 255).all()


def test_pictures_that_cannot_be_read(run_folder, data, tmp_path, capsys):
    good, bad = data / "red" / "0.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    said = error_of(capsys, run_folder, good, bad, "--csv", tmp_path / "a.csv")
    assert said.startswith(f"{bad}: not a readable image (") and said.endswith(
        "--unreadable skip leaves such files out"
    )
    assert not (tmp_path / "a.csv").exists()
    words = ("--unreadable", "skip", "--batch-size", 1)
    assert predict(run_folder, bad, good, *words, "--csv", tmp_path / "a.csv", "--out", tmp_path / "a.png") == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"fastmix predict: left out {bad}: not a readable image (")
    assert said.err.count("\n") == 1 and list(table(said.out)) == [str(good)] and "1 pictures" in said.out
    assert predict(run_folder, bad, *words) == 2
    assert "none of the 1 pictures can be read" in capsys.readouterr().err


def test_hidden_files_and_folders_without_images(run_folder, data, tmp_path, capsys):
    (tmp_path / "._0.png").write_bytes(b"x")
    good = data / "red" / "0.png"
    assert predict(run_folder, tmp_path / "._0.png", good) == 0
    assert "left out" in capsys.readouterr().err
    assert error_of(capsys, run_folder, tmp_path) == f"{tmp_path}: no images in this folder"


def test_names_of_every_kind(run_folder, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["two\nlines.png", 'ä 猫, "x".png', os.fsdecode(b"caf\xe9.png")]
    for name in names:
        try:
            Path(name).write_bytes((data / "red" / "0.png").read_bytes())
        except OSError:
            pytest.skip("the file system takes no such names")
    assert predict(run_folder, *names, "--top", 1, "--csv", "a.csv", "--out", "a.png") == 0
    said = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in said[1:4]] == [r"two\nlines.png", names[1], r"caf\udce9.png"]
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text(), newline="")))
    assert [row["image"] for row in rows] == ["two\nlines.png", names[1], r"caf\udce9.png"]
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert predict(run_folder, names[1]) == 0
    narrow.flush()
    assert rb"\xe4 \u732b" in narrow.buffer.getvalue()


def test_wrong_use_is_one_line(run_folder, data, tmp_path, capsys):
    good = data / "red" / "0.png"
    (tmp_path / "text").write_text("no checkpoint")
    errors = {
        (tmp_path / "missing.pt", good): "missing.pt: no such checkpoint",
        (tmp_path, good): f"{tmp_path}/checkpoint.pt: no such checkpoint",
        (tmp_path / "text", good): "text: damaged checkpoint",
        (run_folder, tmp_path / "missing.png"): "missing.png: No such file or directory",
        (run_folder, good, "--top", 0): "--top must be above 0, got 0",
        (run_folder, good, "--top", 4): "--top 4: the model has 3 classes",
        (run_folder, good, "--batch-size", 0): "--batch-size must be above 0, got 0",
        (run_folder, good, "--max-pixels", 9): "too large, 40 x 24 pixels; raise the limit of 9 by --max-pixels",
        (run_folder, good, "--device", "cuda:99"): "--device cuda:99: cannot be used",
        (run_folder, good, "--out", good): "is one of the pictures, which would be lost",
        (run_folder, good, "--out", "sheet.txt"): "cannot write .txt; use .png, .jpg or .webp",
        (run_folder, good, "--csv", tmp_path): "is a folder, or there is no folder",
        (run_folder, good, "--csv", tmp_path / "no" / "a.csv"): f"there is no folder {tmp_path}/no",
        (run_folder / "checkpoint.pt", good, "--csv", run_folder / "checkpoint.pt"): "is one of the inputs",
    }
    for words, message in errors.items():
        assert message in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": None}, "holds no names of classes, since an older fastmix wrote it"),
        ({"class_names": "abc"}, "damaged checkpoint, what it says of its data is wrong"),
        ({"class_names": ["a", 1, "c"]}, "damaged checkpoint, what it says of its data is wrong"),
        ({"class_names": ["a", "b"]}, "damaged checkpoint, its model cannot be built"),
        ({"mean": [0.5]}, "damaged checkpoint, what it says of its data is wrong"),
        ({"mean": 0.5}, "damaged checkpoint, what it says of its data is wrong"),
        ({"std": [0.5, 0.5, "x"]}, "damaged checkpoint, what it says of its data is wrong"),
        ({"std": [0.5, 0.5, 0.0]}, "damaged checkpoint, what it says of its data is wrong"),
        ({"image_size": -3}, "damaged checkpoint, what it says of its data is wrong"),
        ({"config": None}, "damaged checkpoint, it holds no settings"),
        ({"config": {"width": "x"}}, "damaged checkpoint, its settings are wrong: --width must be a whole number"),
        ({"config": {"zebra": 1}}, "unknown setting zebra"),
        ({"module": {}}, "damaged checkpoint, its model cannot be built"),
        ({"module": None}, "damaged checkpoint, its model cannot be built"),
        ({"module": [1]}, "damaged checkpoint, its model cannot be built"),
    ],
)
def test_checkpoints_that_are_old_or_changed(run_folder, data, tmp_path, capsys, changes, words):
    state = files.load_checkpoint(run_folder / "checkpoint.pt")
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = {**state[name], **value} if name == "config" else value
    files.save_checkpoint(tmp_path / "a.pt", state)
    assert words in error_of(capsys, tmp_path / "a.pt", data / "red" / "0.png")


def test_weights_that_are_not_finite(run_folder, data, tmp_path):
    state = files.load_checkpoint(run_folder / "checkpoint.pt")
    state["module"]["head.bias"][0] = float("nan")
    files.save_checkpoint(tmp_path / "a.pt", state)
    with pytest.raises(UserError, match="values that are not finite"):
        Predictor(tmp_path / "a.pt", CPU)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
