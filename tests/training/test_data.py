import pickle

import numpy as np
import pytest
import torch

from fastmix.train.data import Images, Stream, augment, choose_labelled, open_data
from fastmix.train.digits import mask_measures
from fastmix.train.errors import UserError

pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")


def rows(data):
    return next(iter(data.loader([torch.arange(len(data))], None, 0)))


def test_digits_are_real_divided_and_fixed():
    splits, again = open_data("digits", seed=0), open_data("digits", seed=7)
    assert len(splits.train) == 797 and len(splits.test) == 1000
    images, labels = rows(splits.train)
    assert images.shape == (797, 1, 16, 16) and images.dtype == torch.uint8
    assert torch.equal(images, rows(again.train)[0])
    assert labels.bincount().min() > 60
    # the digits of the two parts are different images
    flat = {bytes(i.numpy().tobytes()) for i in images}
    assert not any(bytes(i.numpy().tobytes()) in flat for i in rows(splits.test)[0])
    pixels = images.float() / 255
    assert splits.mean[0] == pytest.approx(pixels.mean().item()) and splits.image_size == 16


def test_cluttered_digits_keep_the_digit_and_are_fixed_by_the_seed():
    splits, same, other = (open_data("cluttered-digits", seed=s) for s in (0, 0, 1))
    assert splits.image_size == 40 and splits.in_channels == 1
    assert torch.equal(splits.train.images, same.train.images)
    assert not torch.equal(splits.train.images, other.train.images)
    assert torch.equal(splits.test.images, other.test.images)
    ink = (splits.train.object * 255).round()
    images = splits.train.images[:, 0].float()
    assert (images >= ink).all()
    inside = ink > 0
    assert torch.equal(images[inside], ink[inside])  # no fragment lies on a digit
    clutter = (images * ~inside).sum(dim=(1, 2))
    assert (clutter > 0).float().mean() > 0.99
    # the digit is found at many places
    columns = inside.any(dim=1).float().argmax(dim=1)
    assert columns.unique().numel() > 15


def test_mask_measures_by_hand():
    own, partner = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    own[0, 0, :2], partner[0, 3, :2] = 1.0, 1.0
    weight = torch.full((1, 4, 4), 0.25)
    share, mismatch = mask_measures(weight, own, partner, torch.tensor(0.25))
    assert share.item() == pytest.approx(0.5) and mismatch.item() == pytest.approx(0, abs=1e-6)
    weight = torch.ones(1, 4, 4)
    weight[0, 3] = 0  # both objects whole: the visible ratio is 1/2
    share, mismatch = mask_measures(weight, own, partner, torch.tensor(0.75))
    assert share.item() == 1 and mismatch.item() == pytest.approx(0.25)
    share, mismatch = mask_measures(1 - weight, own, partner, torch.tensor(0.9))
    assert share.item() == 0 and mismatch.item() == pytest.approx(0.4)


def test_labelled_choice_is_balanced_and_seeded():
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0))
    chosen = choose_labelled(labels, 7, seed=3)
    assert labels[chosen].bincount().tolist() == [7] * 5 and chosen.unique().numel() == 35
    assert torch.equal(chosen, choose_labelled(labels, 7, seed=3))
    assert not torch.equal(chosen, choose_labelled(labels, 7, seed=4))
    with pytest.raises(UserError, match="--labels-per-class 200: class 0 has only"):
        choose_labelled(labels, 200, seed=0)


def test_stream_visits_every_image_once_in_each_pass():
    stream = Stream(count=10, batch_size=4, seed=0)
    numbers = torch.cat([stream[step] for step in range(5)])
    assert sorted(numbers[:10].tolist()) == list(range(10)) == sorted(numbers[10:].tolist())
    assert numbers[:10].tolist() != numbers[10:].tolist()
    # the position is all there is to know
    assert torch.equal(Stream(10, 4, 0)[3], stream[3])
    assert len(Stream(3, 8, 0)[5]) == 8


def test_ranks_share_one_stream_without_overlap():
    whole = Stream(count=12, batch_size=4, seed=1)
    parts = [Stream(12, 2, 1, rank, 2) for rank in (0, 1)]
    for step in range(6):
        assert torch.equal(torch.cat([p[step] for p in parts]), whole[step])
    keys = {p.key(step) for p in parts for step in range(50)}
    assert len(keys) == 100


def test_augmentation_shifts_and_mirrors_whole_images():
    base = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(64, 1, 5, 5).contiguous()
    out = augment(base, 1, True, np.random.default_rng(0))
    padded = torch.nn.functional.pad(base[0], (1, 1, 1, 1))
    expected = {
        padded[:, y : y + 5, x : x + 5].flip(-1 if mirrored else ()).numpy().tobytes()
        for y in range(3)
        for x in range(3)
        for mirrored in (False, True)
    }
    seen = {image.numpy().tobytes() for image in out}
    assert seen <= expected and len(seen) > 10
    assert torch.equal(augment(base, 0, False, np.random.default_rng(0)), base)


def test_loader_augments_with_its_keys_only():
    data = Images(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4), shift=2)
    batch = [torch.arange(4)]
    one, two, three = (next(iter(data.loader(batch, [key], 0)))[0] for key in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(next(iter(data.loader(batch, None, 0)))[0], data.images)


def write_cifar(folder, kind, classes):
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    content = {}
    for name in names:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, 20)
        content[name] = pixels, labels
        if kind == "python":
            key = b"labels" if classes == 10 else b"fine_labels"
            (folder / name).write_bytes(pickle.dumps({b"data": pixels, key: labels.tolist()}, protocol=2))
        else:
            columns = [labels] if classes == 10 else [labels // 5, labels]
            table = np.concatenate([np.stack(columns, 1).astype(np.uint8), pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(table.tobytes())
    return content


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_files_of_both_kinds(tmp_path, kind, classes):
    sub = {(10, "python"): "cifar-10-batches-py", (100, "binary"): "cifar-100-binary"}.get((classes, kind), "x")
    content = write_cifar(tmp_path / sub, kind, classes)
    place = tmp_path if sub != "x" else tmp_path / sub
    splits = open_data(f"cifar{classes}:{place}")
    pixels = np.concatenate([v[0] for k, v in content.items() if not k.startswith("test")])
    labels = np.concatenate([v[1] for k, v in content.items() if not k.startswith("test")])
    assert np.array_equal(splits.train.images.numpy().reshape(-1, 3072), pixels)
    assert np.array_equal(splits.train.labels.numpy(), labels)
    assert len(splits.test) == 20 and len(splits.classes) == classes
    assert splits.train.mirror and splits.train.shift == 4


def test_cifar_faults_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        open_data(f"cifar10:{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"neither data_batch_1 nor data_batch_1\.bin"):
        open_data(f"cifar10:{tmp_path}")
    write_cifar(tmp_path / "a", "binary", 10)
    (tmp_path / "a" / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"data_batch_3\.bin: 5 bytes"):
        open_data(f"cifar10:{tmp_path}/a")
    write_cifar(tmp_path / "b", "python", 100)
    (tmp_path / "b" / "test").unlink()
    with pytest.raises(UserError, match="b/test: No such file"):
        open_data(f"cifar100:{tmp_path}/b")


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    write_cifar(tmp_path / "a", "python", 100)
    (tmp_path / "a" / "train").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match=r"a/train: damaged or not a CIFAR file \(.*not allowed"):
        open_data(f"cifar100:{tmp_path}/a")
    assert not (tmp_path / "made").exists()


def write_folder(root, classes=("cat", "dog"), count=5, size=(40, 30)):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{k}.png")


def test_folder_holds_out_a_fifth_or_takes_val(tmp_path):
    write_folder(tmp_path / "flat")
    splits = open_data(f"folder:{tmp_path}/flat", image_size=24)
    assert len(splits.train) == 8 and len(splits.test) == 2
    assert not set(splits.train.paths) & set(splits.test.paths)
    assert splits.classes == ["cat", "dog"]
    write_folder(tmp_path / "two" / "train", count=3)
    write_folder(tmp_path / "two" / "val", count=2)
    splits = open_data(f"folder:{tmp_path}/two", image_size=24)
    assert len(splits.train) == 6 and len(splits.test) == 4
    images, labels = rows(splits.test)
    assert images.shape == (4, 3, 24, 24) and labels.tolist() == [0, 0, 1, 1]


def test_folder_batches_do_not_depend_on_the_workers(tmp_path):
    write_folder(tmp_path / "flat")
    data = open_data(f"folder:{tmp_path}/flat", image_size=16).train
    batches, keys = [torch.tensor([0, 5]), torch.tensor([3, 1]), torch.tensor([2, 2])], [1, 2, 3]
    alone, helped = (list(data.loader(batches, keys, workers)) for workers in (0, 2))
    for (x, y), (x2, y2) in zip(alone, helped, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(alone[2][0][0], alone[2][0][1])  # two random crops of one image


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_while_training_is_named(tmp_path, workers):
    write_folder(tmp_path / "flat")
    data = open_data(f"folder:{tmp_path}/flat", image_size=16).train
    data.paths[3].write_bytes(data.paths[3].read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{data.paths[3]}: not a readable image"):
        list(data.loader([torch.arange(len(data))], None, workers))


def test_images_that_cannot_be_read_stop_the_run_or_are_left_out(tmp_path):
    write_folder(tmp_path / "flat", count=17)
    whole = open_data(f"folder:{tmp_path}/flat", image_size=16)
    broken = sorted(tmp_path / "flat" / "cat" / f"{k}.png" for k in range(13))
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        open_data(f"folder:{tmp_path}/flat", image_size=16)
    said = str(caught.value)
    assert said.startswith(f"{broken[0]}: not a readable image (") and "13 of 34 images cannot be read" in said
    assert all(str(path) in said for path in broken[:11]) and "and 2 more; --unreadable skip leaves" in said
    splits = open_data(f"folder:{tmp_path}/flat", image_size=16, unreadable="skip")
    assert [fault.partition(": ")[0] for fault in splits.left_out] == [str(path) for path in broken]
    kept = splits.train.paths + splits.test.paths
    assert sorted(kept) == sorted(set(whole.train.paths + whole.test.paths) - set(broken))
    assert all(
        path.parent.name == splits.classes[label]
        for path, label in zip(splits.train.paths, splits.train.labels, strict=True)
    )
    for k in range(13, 17):
        (tmp_path / "flat" / "cat" / f"{k}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat/0\.png: .*; no image of class cat can be read"):
        open_data(f"folder:{tmp_path}/flat", image_size=16, unreadable="skip")


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_share_the_check_and_agree(tmp_path, world):
    write_folder(tmp_path / "flat", count=6)
    broken = [tmp_path / "flat" / name for name in ("cat/1.png", "cat/2.png", "dog/5.png")]
    for path in broken:
        path.write_bytes(b"")
    torch.multiprocessing.spawn(check_in_a_group, (world, tmp_path), nprocs=world)
    alone = open_data(f"folder:{tmp_path}/flat", image_size=16, unreadable="skip")
    for rank in range(world):
        train, left_out, checked = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert train == alone.train.paths and left_out == alone.left_out and len(left_out) == 3
        assert checked == 12 // world


def check_in_a_group(rank, world, place):
    from fastmix.train import images

    store = torch.distributed.FileStore(str(place / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    unreadable, checked = images.unreadable, []
    images.unreadable = lambda paths, limit: checked.extend(paths) or unreadable(paths, limit)
    splits = open_data(f"folder:{place}/flat", image_size=16, unreadable="skip")
    torch.save((splits.train.paths, splits.left_out, len(checked)), place / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_held_out_images_are_checked_too(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val")
    (tmp_path / "val" / "dog" / "4.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"val/dog/4\.png: not a readable image .*1 of 20 images cannot be read"):
        open_data(f"folder:{tmp_path}", image_size=16)
    splits = open_data(f"folder:{tmp_path}", image_size=16, unreadable="skip")
    assert len(splits.train) == 10 and len(splits.test) == 9


def test_training_reads_as_the_gallery_does(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.fromarray(np.full((20, 20), 257 * 77, dtype=np.uint16)).save(tmp_path / name / f"{k}.png")
    images, _ = rows(open_data(f"folder:{tmp_path}", image_size=16).train)
    assert (images == 77).all()


def test_a_limit_of_pixels_is_an_option(tmp_path):
    write_folder(tmp_path, size=(40, 30))
    with pytest.raises(UserError, match=r"cat/0\.png: too large, 30 x 40 pixels; raise the limit of 1199"):
        open_data(f"folder:{tmp_path}", image_size=16, max_pixels=1199)
    data = open_data(f"folder:{tmp_path}", image_size=16, max_pixels=1200).train
    assert data.subset(torch.arange(2)).max_pixels == 1200


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("moons", "--data moons: unknown data; choose digits, cluttered-digits, cifar10:DIR"),
        ("cifar10", "give the directory, as cifar10:DIR"),
        ("digits:x", "digits takes no directory"),
        ("folder:/nonexistent", "/nonexistent: no such directory"),
    ],
)
def test_wrong_names_are_explained(spec, words):
    with pytest.raises(UserError, match=words):
        open_data(spec)
