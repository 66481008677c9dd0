"""Which files of a folder are images: leftovers of systems, links, loops, and the order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fastmix.train.data import open_data
from fastmix.train.errors import UserError
from fastmix.train.listing import images_in, named_images, passed_over, subfolders

LEFTOVERS = (
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
    ".ipynb_checkpoints",
    ".git",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name / "more").mkdir(parents=True)
        for k, place in enumerate(("0.png", "1.PNG", "2.Jpeg", "more/3.png", "more/4.tif")):
            Image.new("RGB", (8, 8), (50 * k, 0, 0)).save(tmp_path / name / place)
    return tmp_path


def listed(splits) -> list[Path]:
    return sorted(splits.train.paths + splits.test.paths)


def test_what_systems_leave_behind_is_no_data(data):
    before = open_data(f"folder:{data}", image_size=16)
    for place in (data, data / "cat", data / "cat" / "more"):
        (place / "._0.jpg").write_bytes(b"Mac OS X")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"x")
        for name in LEFTOVERS:
            shutil.copytree(data / "dog", place / name)
    after = open_data(f"folder:{data}", image_size=16)
    assert after.classes == before.classes == ["cat", "dog"]
    assert (after.train.paths, after.test.paths) == (before.train.paths, before.test.paths)


def test_the_root_itself_may_be_hidden(data):
    shutil.copytree(data, data / ".cache" / "__MACOSX")
    assert len(listed(open_data(f"folder:{data}/.cache/__MACOSX", image_size=16))) == 10


def test_names():
    for name in (".a", "._0.jpg", "THUMBS.DB", "thumbs.db", "__macosx", "$Recycle.Bin"):
        assert passed_over(name)
    for name in ("a.jpg", "_a", "__init", "@", "Thumbs", "0"):
        assert not passed_over(name)


def test_the_order_is_that_of_the_names(data, monkeypatch):
    expected = [data / "cat" / name for name in ("0.png", "1.PNG", "2.Jpeg", "more/3.png", "more/4.tif")]
    assert list(images_in(data / "cat").values()) == expected
    scan = os.scandir

    class Backwards:
        def __init__(self, place):
            with scan(place) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_error):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert list(images_in(data / "cat").values()) == expected
    assert subfolders(data) == [data / "cat", data / "dog"]


def test_links_are_followed_once_and_loops_end(data):
    expected = listed(open_data(f"folder:{data}", image_size=16))
    cat = data / "cat"
    (cat / "up").symlink_to("..")
    (cat / "here").symlink_to(".")
    (cat / "more" / "back").symlink_to("../../cat")
    (cat / "itself").symlink_to("itself")
    (cat / "twice.png").symlink_to("0.png")
    (cat / "whole").symlink_to("more")
    (data / "all").symlink_to(".")
    (data / "above").symlink_to("..")
    splits = open_data(f"folder:{data}", image_size=16)
    assert splits.classes == ["cat", "dog"]
    assert listed(splits) == expected


def test_linked_classes_and_folders_count(data, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "emu"
    shutil.copytree(data / "dog", elsewhere)
    (data / "emu").symlink_to(elsewhere)
    (data / "fox").mkdir()
    shutil.copytree(data / "dog", elsewhere.parent / "fox")
    (data / "fox" / "part").symlink_to(elsewhere.parent / "fox")
    splits = open_data(f"folder:{data}", image_size=16)
    assert splits.classes == ["cat", "dog", "emu", "fox"]
    assert len(listed(splits)) == 20


def test_a_file_of_two_classes_is_an_error(data):
    (data / "cat" / "x.png").symlink_to("../dog/0.png")
    with pytest.raises(UserError, match=r"cat/x\.png and .*dog/0\.png are one file of two classes"):
        open_data(f"folder:{data}", image_size=16)


def test_links_to_nowhere_pipes_and_folders_with_endings(data):
    (data / "cat" / "gone.png").symlink_to("missing")
    os.mkfifo(data / "dog" / "pipe.png")
    (data / "dog" / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"cat/gone\.png: No such file or directory; 2 of 12 .*dog/pipe\.png"):
        open_data(f"folder:{data}", image_size=16)
    splits = open_data(f"folder:{data}", image_size=16, unreadable="skip")
    assert len(listed(splits)) == 10 and len(splits.left_out) == 2


def test_empty_classes_are_named(data):
    (data / "emu").mkdir()
    (data / "emu" / ".hidden.png").write_bytes((data / "cat" / "0.png").read_bytes())
    with pytest.raises(UserError, match="emu: class folder without images"):
        open_data(f"folder:{data}", image_size=16)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(data):
    (data / "cat" / "more").chmod(0)
    try:
        with pytest.raises(UserError, match="cat/more: Permission denied"):
            open_data(f"folder:{data}", image_size=16)
    finally:
        (data / "cat" / "more").chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_named(data, monkeypatch):
    """The same for those who may read everything."""
    scan = os.scandir

    def refuse(place):
        if Path(place).name == "more":
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cat/more: Permission denied"):
        open_data(f"folder:{data}", image_size=16)


def test_named_files_and_folders(data):
    cat, dog = data / "cat", data / "dog"
    (cat / "._0.png").write_bytes(b"x")
    chosen, left_out = named_images([dog / "1.PNG", cat, cat / "0.png", cat / "._0.png", data / "odd.name"])
    assert chosen == [dog / "1.PNG", *images_in(cat).values(), data / "odd.name"] and left_out == [cat / "._0.png"]
    assert named_images([]) == ([], [])
    (data / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        named_images([cat, data / "empty"])
    with pytest.raises(UserError, match="hidden files"):
        named_images([cat / "._0.png"])
