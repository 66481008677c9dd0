"""One reader of images for training, prediction and the gallery: pixel values, limits, damaged and hostile files."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastmix.train.errors import UserError, printable

pytest.importorskip("PIL")

from PIL import Image

from fastmix.train.images import MAX_PIXELS, read_image, unreadable

GREYS = np.array([[0, 1, 128, 129, 257], [1000, 30000, 65279, 65534, 65535]], dtype=np.uint16)
GREYS8 = np.rint(GREYS / 257).astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def pixels(path: Path, **options) -> np.ndarray:
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(path: Path) -> np.ndarray:
    values = pixels(path)
    assert (values == values[..., :1]).all()
    return values[..., 0]


def saved(place: Path, image: Image.Image | np.ndarray, name: str, **options) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(place / name, **options)
    return place / name


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, sample_format: int, photometric: int = 1, width: int | None = None) -> bytes:
    """One uncompressed row."""
    content, width = values.tobytes(), width or values.size
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 279: len(content)}
    tags |= {339: sample_format, 273: 8 + 2 + 12 * 10 + 4}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    assert np.array_equal(grey(saved(tmp_path, GREYS, name)), GREYS8)
    (tmp_path / "a.pgm").write_bytes(b"P5 5 2 65535\n" + GREYS.astype(">u2").tobytes())
    assert np.array_equal(grey(tmp_path / "a.pgm"), GREYS8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_of_both_byte_orders_and_of_32_bit_integers(tmp_path, order):
    saved(tmp_path, Image.frombytes("I;16" if order == "<" else "I;16B", (5, 2), GREYS.astype(order + "u2")), "a.tif")
    assert np.array_equal(grey(tmp_path / "a.tif"), GREYS8)
    assert np.array_equal(grey(saved(tmp_path, GREYS.astype(np.int32), "b.tif")), GREYS8)


def test_integers_outside_16_bits_span_black_to_white(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.array([-100, 0, 155], dtype="<i4"), 32, 2))
    assert grey(path).tolist() == [[0, 100, 255]]
    path.write_bytes(tiff(np.array([0, 2**31, 2**32 - 1], dtype="<u4"), 32, 1))
    assert grey(path).tolist() == [[0, 128, 255]]


def test_12_bits_have_a_white_of_their_own(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.array([0x00, 0x0F, 0xFF, 0x80, 0x00], dtype=np.uint8), 12, 1, width=3))
    assert grey(tmp_path / "a.tif").tolist() == [[0, 255, 128]]


def test_a_tiff_whose_white_is_zero(tmp_path):
    for values, bits, kind in (
        (np.array([0, 100, 255], dtype="u1"), 8, 1),
        (np.array([0, 25700, 65535], dtype="<u2"), 16, 1),
        (np.array([0, 100 / 255, 1], dtype="<f4"), 32, 3),
    ):
        (tmp_path / "a.tif").write_bytes(tiff(values, bits, kind, photometric=0))
        assert grey(tmp_path / "a.tif").tolist() == [[255, 155, 0]]


def test_floats_of_0_to_1_keep_their_meaning_and_others_span_black_to_white(tmp_path):
    values = np.array([[0.25, 0.5, 0.75]], dtype=np.float32)
    assert grey(saved(tmp_path, values, "a.tif")).tolist() == [[64, 128, 191]]
    assert grey(saved(tmp_path, values * 40 - 20, "b.tif")).tolist() == [[0, 128, 255]]
    assert grey(saved(tmp_path, np.float32([[-3e38, 0, 3e38]]), "c.tif")).tolist() == [[0, 128, 255]]
    assert grey(saved(tmp_path, np.float32([[7, 7]]), "d.tif")).tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_an_error(tmp_path, bad):
    path = saved(tmp_path, np.float32([[0, bad]]), "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: not a readable image \(it holds NaN or infinite values\)"):
        read_image(path)
    assert list(unreadable([path])) == [path]


def test_16_bit_colour(tmp_path):
    row = b"\0" + struct.pack(">6H", 0, 255, 256, 30000, 65279, 65535)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, row))
    assert pixels(tmp_path / "a.png").tolist() == [[[0, 0, 1], [117, 254, 255]]]


def test_cmyk(tmp_path):
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8).repeat(8, axis=1)
    image = Image.fromarray(inks.repeat(8, axis=0), "CMYK")
    wanted = [[0, 255, 255], [255, 0, 255], [0, 0, 0], [255, 255, 255]]
    assert pixels(saved(tmp_path, image, "a.tif"))[4, 4::8].tolist() == wanted
    # Adobe's programs store the inks of a JPEG inverted, as Pillow does
    path = saved(tmp_path, image, "a.jpg", quality=100, subsampling=0)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels(path)[4, 4::8].astype(int) - wanted).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_what_is_transparent_is_white(tmp_path, name):
    values = np.array([[[200, 0, 100, 0], [200, 0, 100, 255], [200, 0, 100, 51]]], dtype=np.uint8)
    path = saved(tmp_path, values, name, **({"lossless": True} if name == "a.webp" else {}))
    assert pixels(path).tolist() == [[[255, 255, 255], [200, 0, 100], [244, 204, 224]]]


def test_transparency_of_every_kind(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    saved(tmp_path, palette, "index.png", transparency=0)
    saved(tmp_path, palette, "shares.png", transparency=bytes([0, 255]))
    saved(tmp_path, palette, "index.gif", transparency=0)
    for name in ("index.png", "shares.png", "index.gif"):
        assert pixels(tmp_path / name).tolist() == [[[255, 255, 255], [0, 0, 255]]], name
    saved(tmp_path, Image.fromarray(np.array([[[9, 0], [9, 255]]], dtype=np.uint8), "LA"), "la.png")
    (tmp_path / "colour.png").write_bytes(
        png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    )
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 5, 2570), chunk(b"tRNS", b"\0\5")))
    assert pixels(tmp_path / "la.png").tolist() == [[[255] * 3, [9] * 3]]
    assert pixels(tmp_path / "colour.png").tolist() == [[[255] * 3, [4, 5, 6]]]
    assert pixels(tmp_path / "deep.png").tolist() == [[[255] * 3, [10] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.webp", "deep.png"])
def test_every_orientation_is_turned_upright(tmp_path, name, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = 60, 120, 240
    seen = {  # how a camera that is held so sees it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    seen = np.ascontiguousarray(seen[..., 0].astype(np.uint16) * 257 if name == "deep.png" else seen)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, seen, name, exif=exif, **({"quality": 100} if name in ("a.jpg", "a.webp") else {}))
    assert np.abs(pixels(path).astype(int) - upright).max() <= (3 if name in ("a.jpg", "a.webp") else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_leaves_the_pixels_alone(tmp_path):
    for content in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"):
        path = saved(tmp_path, COLOURS, "a.png", exif=content)
        assert np.array_equal(pixels(path), COLOURS)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_many(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (pixels(path) == (255, 0, 0)).all()


def test_other_modes(tmp_path):
    bits = np.array([[True, False, True]])
    assert grey(saved(tmp_path, bits, "bits.png")).tolist() == [[255, 0, 255]]
    assert grey(saved(tmp_path, GREYS8, "grey.bmp")).tolist() == GREYS8.tolist()
    for lightness, shade in ((255, 255), (137, 128), (0, 0)):  # L* of 100, 53.7 and 0
        lab = pixels(saved(tmp_path, Image.new("LAB", (1, 1), (lightness, 128, 128)), "lab.tif"))
        assert np.abs(lab.astype(int) - shade).max() <= 1
    luma = saved(tmp_path, Image.new("YCbCr", (1, 1), (100, 90, 200)), "luma.tif")
    # of JFIF: R = Y + 1.402 (Cr - 128) and so on
    assert np.abs(pixels(luma)[0, 0] - np.array([100 + 1.402 * 72, 100 + 0.344 * 38 - 0.714 * 72, 100 - 1.772 * 38])
                  ).max() < 1.1  # fmt: skip


def test_the_content_decides_and_not_the_name(tmp_path):
    for kind in ("PNG", "BMP", "GIF"):
        path = saved(tmp_path, Image.new("RGB", (3, 2), (255, 0, 0)), f"{kind}.jpg", format=kind)
        assert (pixels(path) == (255, 0, 0)).all()
    assert pixels(saved(tmp_path, COLOURS[:1, :1], "dot.PNG")).shape == (1, 1, 3)


def test_a_limit_of_pixels_that_can_be_raised(tmp_path, monkeypatch):
    rows = bytes(1 + 19000 // 8) * 19000
    (tmp_path / "huge.png").write_bytes(png(19000, 19000, 1, 0, rows))
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "huge.png")
    wanted = f"huge.png: too large, 19000 x 19000 pixels; raise the limit of {MAX_PIXELS} by --max-pixels"
    assert str(caught.value).endswith(wanted)
    for name in ("a.png", "a.tif", "a.gif", "a.jpg"):
        path = saved(tmp_path, COLOURS, name)
        assert pixels(path, max_pixels=54).shape == COLOURS.shape
        with pytest.raises(UserError, match="too large, 9 x 6 pixels; raise the limit of 53"):
            read_image(path, max_pixels=53)
        # ours counts, whatever Pillow's is, and that stays as it is
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        assert pixels(path).shape == COLOURS.shape
        assert Image.MAX_IMAGE_PIXELS == 5
        monkeypatch.undo()


def test_many_threads_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    paths = [saved(tmp_path, np.roll(COLOURS, k, axis=0), f"{k}.png") for k in range(6)]
    wrong = []

    def read(k: int) -> None:
        for _ in range(20):
            if not np.array_equal(pixels(paths[k]), np.roll(COLOURS, k, axis=0)):
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and Image.MAX_IMAGE_PIXELS == 5


def hostile(place: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images or damaged ones, each with what is said of it."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    files = {"empty.jpg": (b"", r"not a readable image \(the file is empty\)")}
    files["text.jpg"] = b"no picture", r"not a readable image \(not of a format that Pillow knows"
    files["nought.png"] = png(0, 0, 8, 0, b""), "not a readable image"
    files["nought.ppm"] = b"P6 0 1 255\n", "not a readable image"
    files["notes.png"] = (
        png(1, 1, 8, 0, b"\0\1", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000)))),
        r"not a readable image \((?i:decompressed data too large)",
    )
    drawn = saved(place, noise, "drawn.eps").read_bytes()
    files["program.jpg"] = drawn, r"not a readable image \(PostScript is a program, which is not run\)"
    files["checksum.png"] = png(1, 1, 8, 0, b"\0\1")[:-20] + bytes(4) + chunk(b"IEND", b""), "not a readable image"
    files["lies.png"] = png(5000, 5000, 8, 2, b"\0\1"), "not a readable image"
    files["magic.tif"], files["magic.webp"] = (b"II*\0\xff\xff\xff\xff", "not a"), (b"RIFF\x10\0\0\0WEBPVP8 ", "not a")
    for name in ("cut.png", "cut.jpg", "cut.gif", "cut.webp", "cut.tif", "cut.bmp", "cut.ppm"):
        content = saved(place, noise, f"whole{name[3:]}").read_bytes()
        files[name] = content[: len(content) * 2 // 3], "not a readable image"
    for name, (content, _) in files.items():
        (place / name).write_bytes(content)
    return {name: (place / name, words) for name, (_, words) in files.items()}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_files_are_named_with_the_reason_and_found_beforehand(tmp_path):
    files = hostile(tmp_path)
    for name, (path, words) in files.items():
        with pytest.raises(UserError, match=f"{name}: {words}") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    good = [saved(tmp_path, COLOURS, f"good{k}.jpg") for k in range(3)]
    bad = [path for path, _ in files.values()]
    assert list(unreadable([good[0], *bad, *good[1:]])) == bad


def test_a_large_text_beside_the_pixels_is_no_fault(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 0, b"\0\7", chunk(b"tEXt", b"k\0" + b"a" * 3_000_000)))
    assert grey(tmp_path / "a.png").tolist() == [[7]]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere", "itself"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "missing", "itself": "a.png"}[kind])
    said = {"nowhere": "No such file", "itself": "Too many levels", "folder": "a folder"}.get(
        kind, "not a regular file"
    )
    with pytest.raises(UserError, match=rf"a\.png: {said}"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "shown"), [("ä 猫.png", "ä 猫.png"), ("a\nb.png", r"a\nb.png"), ("\x1b[31m.png", r"\x1b[31m.png")]
)
def test_names_are_one_line_of_what_they_are(tmp_path, name, shown):
    assert printable(name) == shown
    assert np.array_equal(pixels(saved(tmp_path, COLOURS, name)), COLOURS)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / name)
    assert f"{shown}: not a readable image" in str(caught.value)


def test_a_name_of_broken_bytes_can_be_said(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert r"caf\udce9.png: not a readable image" in str(caught.value)
    str(caught.value).encode()
