"""`fastmix gallery`: a contact sheet of every method on pictures of any kind."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from fastmix.cli import gallery, main, pictures
from fastmix.methods import METHODS

SEEN = [name for name, method in METHODS.items() if name != "none" and method.needs != "model"]


def run(*arguments: object) -> int:
    return main(["gallery", *map(str, arguments)])


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line of a run that fails."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastmix gallery: error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("fastmix gallery: error: ").rstrip()


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photographs(folder: Path) -> list[Path]:
    """Formats, modes, sizes and shapes that are met in the wild."""
    made = {
        "wide.jpg": Image.fromarray(noise(90, 31)),
        "tall.png": Image.fromarray(noise(20, 77)),
        "grey.png": Image.fromarray(noise(40, 40, 1)),
        "clear.png": Image.fromarray(noise(40, 40, 4)),
        "few.gif": Image.fromarray(noise(30, 30)).convert("P"),
        "deep.png": Image.fromarray(noise(40, 40, 1).astype(np.uint16) * 257),
        "real.tiff": Image.fromarray(noise(40, 40, 1).astype(np.float32) / 7 - 3),
        "print.jpg": Image.fromarray(noise(33, 47)).convert("CMYK"),
        "bits.png": Image.fromarray(noise(40, 40, 1)).convert("1"),
        "dot.webp": Image.fromarray(noise(1, 2)),
    }
    for name, image in made.items():
        image.save(folder / name)
    return [folder / name for name in made]


def test_all_methods_on_our_own_pictures(folder, capsys):
    assert run("--size", 64, "--columns", 3) == 0
    with Image.open("gallery.png") as sheet:
        assert capsys.readouterr().out == (
            f"gallery.png: {sheet.width} x {sheet.height}, {len(SEEN)} methods, 3 pictures\n"
        )
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 100


def test_pictures_of_any_kind(photographs, folder, capsys):
    before = {path: path.read_bytes() for path in photographs}
    assert run(*photographs, "--out", "sheet.webp", "--methods", "cutmix", "--size", 64, "--columns", 4) == 0
    assert f"1 methods, {len(photographs)} pictures" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in photographs} == before


@pytest.mark.parametrize("name", SEEN)
def test_every_method_mixes_the_pair(name):
    index = gallery.partners(list(range(4)))
    given = [pictures.PICTURES[name](64) for name in list(pictures.PICTURES)[:4]]
    mixed = gallery.mix(name, given, index, 0)
    assert mixed.title == METHODS[name].__name__ and mixed.about[0].isupper()
    assert mixed.images.shape == (4, 3, 64, 64) and mixed.weights.shape == (4, 64, 64)
    assert len(mixed.lam) == len(mixed.lam_b) == 4 and all(0 <= lam <= 2 for lam in (*mixed.lam, *mixed.lam_b))
    x = torch.stack([torch.from_numpy(np.array(picture)) for picture in given]).movedim(-1, 1) / 255
    changed = (mixed.images - x).abs().amax((1, 2, 3)) > 0.1
    assert changed.sum() >= 2
    # The mask says which pixels are still the picture's own (unless blocks were moved).
    if name != "puzzlemix":
        own = (mixed.weights == 1).unsqueeze(1).expand_as(x)
        torch.testing.assert_close(mixed.images[own], x[own])


def test_the_seed_decides_all(folder):
    for number, seed in enumerate((3, 3, 4)):
        assert run("--seed", seed, "--size", 64, "--methods", "cutmix,gridmix", "--out", f"{number}.png") == 0
    first, second, third = (Path(f"{number}.png").read_bytes() for number in range(3))
    assert first == second != third


def test_one_picture_gets_a_partner(photographs, folder, capsys):
    assert run(photographs[0], "--methods", "mixup", "--size", 64) == 0
    assert "2 pictures" in capsys.readouterr().out


def test_partners_are_other_pictures():
    assert gallery.partners([0, 1, 2, 0]) == [1, 2, 3, 1]
    assert gallery.partners([0, 1, 0, 1, 0]) == [1, 2, 3, 4, 1]
    assert gallery.partners([0]) == [0]


def test_the_gallery_reads_as_training_does(folder):
    """16-bit greys are scaled, not stretched."""
    Image.fromarray(np.full((20, 20), 257 * 77, dtype=np.uint16)).save("deep.png")
    assert gallery.load([Path("deep.png")], 32)[0][1].getpixel((16, 16)) == (77, 77, 77)


def test_a_picture_is_turned_upright_and_cropped_at_its_centre(folder):
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pixels[:10, 20:40] = (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save("turned.png", exif=exif)
    ((_, image), _) = gallery.load([Path("turned.png")], 32)
    assert image.getpixel((16, 4)) == (0, 255, 0) and image.getpixel((16, 28)) == (255, 255, 255)


def test_transparency_is_white(folder):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save("clear.png")
    assert gallery.load([Path("clear.png")], 32)[0][1].getpixel((16, 16)) == (255, 255, 255)


def test_a_picture_that_exists_is_replaced_only_when_named(photographs, folder, capsys):
    quick = ("--methods", "mixup", "--size", 64)
    Path("gallery.png").write_text("precious")
    assert "gallery.png exists" in error_of(capsys, *quick)
    assert Path("gallery.png").read_text() == "precious"
    assert "one of the pictures, which would be lost" in error_of(
        capsys, photographs[0], *quick, "--out", f"../{folder.name}/{photographs[0].name}"
    )
    assert run(*quick, "--out", "gallery.png") == 0
    assert Image.open("gallery.png").format == "PNG"


def test_files_of_the_system_are_left_out_and_names_of_many_lines_drawn(photographs, folder, capsys):
    Path("._wide.jpg").write_bytes(b"no picture")
    Path("Thumbs.db").write_bytes(b"no picture")
    odd = photographs[0].rename("two\nlines.jpg")
    assert run(odd, "._wide.jpg", "Thumbs.db", photographs[1], "--methods", "mixup", "--size", 64) == 0
    said = capsys.readouterr()
    assert "2 pictures" in said.out
    assert said.err == "".join(
        f"fastmix gallery: left out {name}, a hidden file or one of the system\n"
        for name in ("._wide.jpg", "Thumbs.db")
    )


def test_wrong_use_is_one_line(photographs, folder, capsys):
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes(photographs[1].read_bytes()[:200])
    errors = {
        ("missing.png",): "missing.png: No such file or directory",
        ("text.png",): "text.png: not a readable image (not of a format that Pillow knows, or damaged at its start)",
        ("cut.png",): "cut.png: not a readable image (",
        (photographs[0], "--max-pixels", 9): "too large, 90 x 31 pixels; raise the limit of 9 by --max-pixels",
        ("Thumbs.db",): "Thumbs.db: hidden files and those of the system are no images",
        (".",): ". is a folder; name the pictures in it, as in *.jpg",
        ("--methods", "cutmx"): "--methods: there is no method 'cutmx'; did you mean cutmix?",
        ("--methods", ","): "--methods must name methods",
        ("--methods", "manifoldmix"): "mixes the hidden features of a model",
        ("--size", 100): "--size must be a multiple of 16 from 64 to 512, got 100",
        ("--max-pixels", 0): "--max-pixels must be above 0, got 0",
        ("--columns", 0): "--columns must be from 1 to 32, got 0",
        ("--out", "."): "--out . is a folder",
        ("--out", "no/such/sheet.png"): "there is no folder no/such",
        ("--out", "sheet.txt"): "cannot write .txt; use .png, .jpg or .webp",
        ("--out", "sheet"): "cannot write a file without ending",
    }
    for arguments, message in errors.items():
        assert message in error_of(capsys, *arguments)
    assert not Path("gallery.png").exists()


def test_pillow_is_asked_for_by_name(folder):
    code = "import sys; sys.modules['PIL'] = None; from fastmix.cli import main; raise SystemExit(main(['gallery']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        "fastmix gallery: error: the gallery needs pillow, which is not installed: pip install pillow\n"
    )


def test_no_module_of_the_command_line_imports_one_that_imports_it():
    """Imports inside functions and those for types count."""
    imports = {}
    for path in Path(gallery.__file__).parent.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        imports[path.stem] = {node.module.removeprefix("fastmix.cli.") for node in nodes if node.module}
    TopologicalSorter({name: found & imports.keys() for name, found in imports.items()}).prepare()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_our_pictures_are_pictures(name):
    image = pictures.PICTURES[name](48)
    assert image.size == (48, 48) and image.mode == "RGB"
    assert len(image.getcolors(48 * 48)) > 200
