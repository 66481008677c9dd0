"""Other tensors of the batch, mixed by the plan of the images."""

import pytest
import torch
from method_cases import NAMES, SIZE, build, generator, images, needed

from fastmix import methods
from fastmix.batch import MixBatch

N = 7
LABELS = torch.randint(0, 200, (N, *SIZE), generator=generator(3))


def mixed(name: str, mode: str = "sample", **options) -> tuple[MixBatch, torch.Tensor]:
    x, y = images(N)
    return build(name, mode=mode, **options)(x, y, generator(), **needed(name, x)), x


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("name", NAMES)
def test_images_themselves_mix_to_the_same(name, mode):
    batch, x = mixed(name, mode)
    if batch.layer is None:
        torch.testing.assert_close(batch.apply(x, "bilinear"), batch.x)
        torch.testing.assert_close(batch.apply(x), batch.x)
    weight = batch.pixel_weight()
    assert weight.shape == (len(batch), *SIZE)
    torch.testing.assert_close(weight.mean((1, 2)), batch.lam.expand(len(batch)))
    if name not in ("resizemix", "puzzlemix") and batch.layer is None:
        own = x.repeat(len(batch) // N, 1, 1, 1)
        torch.testing.assert_close(batch.x, weight[:, None] * own + (1 - weight[:, None]) * x[batch.index])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resizemix", "puzzlemix")])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16, torch.bool, torch.float32])
def test_label_maps_are_copied_from_the_heavier_image(name, dtype):
    batch, _ = mixed(name)
    labels = LABELS.to(dtype)
    own = labels.repeat(len(batch) // N, 1, 1)
    expected = torch.where(batch.pixel_weight() >= 0.5, own, labels[batch.index])
    for t in (labels, labels.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(batch.apply(t, "nearest"), expected)
    if dtype is not torch.float32:
        assert torch.equal(batch.apply(labels), expected)
    several = torch.stack((labels, labels.flip(1), labels.flip(2)), dim=1)
    assert torch.equal(batch.apply(several, "nearest")[:, 0], expected)


def test_a_resized_paste_of_labels():
    x, y = images(N)
    batch = methods.ResizeMix(mode="sample", resize="bilinear")(x, y, generator())
    found = batch.apply(LABELS * 10**12)  # beyond float32
    for n, (y0, x0, y1, x1) in enumerate(batch.box.tolist()):
        expected, partner = LABELS[n].clone(), LABELS[batch.index[n]]
        for row in range(y0, y1):
            for column in range(x0, x1):
                expected[row, column] = partner[(row - y0) * SIZE[0] // (y1 - y0), (column - x0) * SIZE[1] // (x1 - x0)]
        assert torch.equal(found[n], expected * 10**12)


def test_moved_blocks_of_labels():
    batch, x = mixed("puzzlemix")
    places = torch.arange(x[0, 0].numel()).view(1, *SIZE) + 1000 * torch.arange(N).view(-1, 1, 1)
    found = batch.apply(places)
    hard = (batch.pixel_weight() == 1) | (batch.pixel_weight() == 0)
    assert hard.any()
    values = x[:, 0].flatten()[(found // 1000) * x[0, 0].numel() + found % 1000]
    torch.testing.assert_close(values[hard], batch.x[:, 0][hard])


@pytest.mark.parametrize("name", NAMES)
def test_dense_targets_are_mixed_by_lam(name):
    batch, _ = mixed(name)
    for t in (torch.rand(N, 5), torch.rand(N), torch.rand(N, 2).double()):
        own = t.repeat(len(batch) // N, *[1] * (t.dim() - 1))
        lam = batch.lam.expand(len(batch)).view(-1, *[1] * (t.dim() - 1))
        torch.testing.assert_close(batch.apply(t), (lam * own + (1 - lam) * t[batch.index]).to(t.dtype))
    chosen = torch.where(batch.lam >= 0.5, batch.y, batch.y_b)
    assert torch.equal(batch.apply(images(N)[1]), chosen)


def test_one_dimensional_batches_and_videos():
    x, y = torch.rand(N, 3, 20), images(N)[1]
    batch = methods.CutMix(mode="sample")(x, y, generator())
    t = torch.randint(0, 9, (N, 20))
    assert torch.equal(batch.apply(t), torch.where(batch.pixel_weight()[:, 0] == 1, t, t[batch.index]))
    video = torch.rand(N, 4, 3, *SIZE)
    batch = methods.CutMix(mode="sample")(video, y, generator())
    t = torch.randint(0, 9, (N, 4, *SIZE))
    assert torch.equal(batch.apply(t), torch.where(batch.pixel_weight()[:, None] == 1, t, t[batch.index]))


def test_a_batch_made_by_hand_can_be_applied():
    x, y = images(2)
    index, t = torch.tensor([1, 0]), torch.rand(2, *SIZE)
    box = torch.tensor([[0, 0, 4, 4], [2, 2, 12, 16]], dtype=torch.int32)
    flat = MixBatch(x, y, y[index], torch.tensor(0.25), index)
    torch.testing.assert_close(flat.apply(t), 0.25 * t + 0.75 * t[index])
    cut = MixBatch(x, y, y[index], torch.tensor([0.9, 0.3]), index, box=box)
    assert torch.equal(cut.apply(t)[0, :4, :4], t[1, :4, :4]) and torch.equal(cut.apply(t)[0, 4:], t[0, 4:])
    half = MixBatch(x, y, y[index], torch.tensor(0.5), index, mask=torch.full((2, 1, 1), 0.5))
    torch.testing.assert_close(half.apply(t), (t + t[index]) / 2)


@pytest.mark.parametrize(
    ("t", "mode", "error", "words"),
    [
        (torch.zeros(N - 1, *SIZE), None, ValueError, r"t must have shape \(7, ...\)"),
        (torch.zeros(N, 5, 5), None, ValueError, "as the images"),
        (torch.zeros(N, *SIZE), "cubic", ValueError, "mode must be"),
        (torch.zeros(N, *SIZE, dtype=torch.int32), "bilinear", TypeError, "use mode='nearest'"),
        ([0] * N, None, ValueError, "got list"),
    ],
)
def test_wrong_arguments_are_named(t, mode, error, words):
    with pytest.raises(error, match=words):
        mixed("cutmix")[0].apply(t, mode)
