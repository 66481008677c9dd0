"""The layout of features, told from the encoder: grid, channels and positions of every kind."""

from __future__ import annotations

import types

import pytest
import torch
from automix_support import TinyNet
from torch import Tensor, nn

from fastmix.train import AutoMix
from fastmix.train.features import Layout, find_layout, grid

PATCH = 4


class Patches(nn.Module):
    """Patches in a layout of one's choice, with class and register tokens before them, of one image size or any."""

    def __init__(
        self, axes: str, prefix: int = 0, channels: int = 12, size: int | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        self.axes, self.prefix, self.size, self.image_size = axes, prefix, size, size or 32
        self.patch = nn.Conv2d(3, channels, PATCH, PATCH)
        self.tokens = nn.Parameter(torch.randn(1, channels, prefix))
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.stage, self.head = nn.Identity(), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.size and tuple(x.shape[2:]) != (self.size, self.size):
            raise AssertionError("of one size")
        x = self.norm(self.patch(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if "l" in self.axes:
            x = torch.cat([self.tokens.expand(len(x), -1, -1), x.flatten(2)], 2)
        forward, back = {
            "nchw": ((0, 1, 2, 3), (0, 1, 2, 3)), "nhwc": ((0, 2, 3, 1), (0, 3, 1, 2)),
            "ncl": ((0, 1, 2), (0, 1, 2)), "nlc": ((0, 2, 1), (0, 2, 1)),
        }[self.axes]  # fmt: skip
        x = self.stage(x.permute(forward)).permute(back)
        return self.head(x.flatten(2).mean(2))

    def positions(self, x: Tensor) -> Tensor:
        """What `grid` must give."""
        return self.norm(self.patch(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


LAYOUTS = [("nchw", 0), ("nhwc", 0), ("nlc", 0), ("nlc", 1), ("nlc", 2), ("nlc", 5), ("ncl", 0), ("ncl", 1)]


@pytest.mark.parametrize("size", [None, 32], ids=["any size", "one size"])
@pytest.mark.parametrize(("axes", "prefix"), LAYOUTS)
def test_layout_is_told_and_read(axes, prefix, size):
    torch.manual_seed(0)
    net = Patches(axes, prefix, size=size)
    assert find_layout(net, "stage") == Layout(axes, prefix)
    automix = AutoMix(net, 10, "stage").train()
    assert automix.mix_block.in_channels == 12
    images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
    out = automix(images, targets)
    assert out.mix_draw.logits.shape == (4, 8, 8)
    # The teacher is still what the student is.
    torch.testing.assert_close(automix._teacher_features(images), net.positions(images))


@pytest.mark.parametrize("height", [16, 48])
@pytest.mark.parametrize(("axes", "prefix"), LAYOUTS)
def test_grids_of_images_that_are_not_square(axes, prefix, height):
    net = Patches(axes, prefix)
    automix = AutoMix(net, 10, "stage").train()
    images = torch.randn(2, 3, height, 32)
    assert automix(images, torch.arange(2)).mix_draw.logits.shape == (2, height // PATCH, 8)
    torch.testing.assert_close(automix._teacher_features(images), net.positions(images))
    by_example = Patches(axes, prefix)
    assert find_layout(by_example, "stage", images) == Layout(axes, prefix)


@pytest.mark.parametrize("axes", ["nchw", "nhwc"])
def test_as_many_channels_as_rows(axes):
    """(N, 8, 8, 8) says nothing; the second size does."""
    assert find_layout(Patches(axes, channels=8), "stage") == Layout(axes)


def test_axes_that_shrink_differently():
    """A map (N, 8, 8, 2) of square images in which height alone moves like the image's at half the pace."""

    class Wide(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last, self.conv = last, nn.Conv2d(3, 8, (4, 16), (4, 16))
            self.stage, self.head = nn.Identity(), nn.Linear(8, 10)

        def forward(self, x):
            x = self.conv(x)
            x = self.stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.stage(x)
            return self.head(x.mean((2, 3)))

    assert find_layout(Wide(False), "stage", torch.zeros(2, 3, 32, 32)) == Layout("nchw")
    assert find_layout(Wide(True), "stage", torch.zeros(2, 3, 32, 32)) == Layout("nhwc")


def test_a_layout_that_cannot_be_told_must_be_given():
    net = Patches("nhwc", channels=8, size=32, norm=False)
    with pytest.raises(ValueError, match=r"'stage' could not be told from its shape \(2, 8, 8, 8\).*feature_layout"):
        AutoMix(net, 10, "stage")
    automix = AutoMix(net, 10, "stage", feature_layout="nhwc")
    assert automix.layout == Layout("nhwc")
    with pytest.raises(ValueError, match="feature_layout must be None or one of nchw, nhwc, nlc, ncl, got 'NHWC'"):
        AutoMix(net, 10, "stage", feature_layout="NHWC")
    with pytest.raises(ValueError, match=r"must give a map or tokens.*got \(2, 8, 8, 8\)"):
        AutoMix(net, 10, "stage", feature_layout="nlc")


def test_what_the_encoder_says_of_its_maps_counts():
    net = Patches("nhwc", channels=8, size=32, norm=False)
    net.output_fmt = "NHWC"
    assert find_layout(net, "stage") == Layout("nhwc")
    tokens = Patches("nlc", 4, size=32)
    tokens.num_prefix_tokens = 4
    assert find_layout(tokens, "stage") == Layout("nlc", 4)


def test_windows_and_lists_are_no_maps():
    class Odd(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind, self.conv, self.head = kind, nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 10)
            self.stage = Returns(kind)

        def forward(self, x):
            x = self.conv(x)
            self.stage(x)
            return self.head(x.mean((2, 3)))

    class Returns(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x):
            windows = x.unflatten(2, (2, -1)).transpose(0, 2).flatten(1, 2).transpose(0, 1)
            return {"windows": windows, "list": [x, x], "alone": (x,)}[self.kind]

    for kind, got in (("windows", r"\("), ("list", "list")):
        with pytest.raises(ValueError, match=f"must give a map or tokens.*got {got}"):
            AutoMix(Odd(kind), 10, "stage")
    assert AutoMix(Odd("alone"), 10, "stage").mix_block.in_channels == 8


@pytest.mark.parametrize(("tokens", "size", "expected"), [(196, (224, 224), (14, 14)), (98, (224, 112), (14, 7)),
                                                          (18, (30, 50), (3, 6)), (28, (30, 50), (4, 7))])  # fmt: skip
def test_tokens_of_a_rounded_grid(tokens, size, expected):
    assert grid(torch.zeros(1, 1 + tokens, 5), size, "x", Layout("nlc", 1)).shape == (1, 5, *expected)


def test_tokens_that_make_no_grid():
    with pytest.raises(ValueError, match=r"'x' must give a map or tokens.*got \(1, 197, 5\) for images of 224x192"):
        grid(torch.zeros(1, 197, 5), (224, 192), "x", Layout("nlc", 1))


class Named(nn.Module):
    """Stages under a name of one's choice."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(count))))
        self.fc = nn.Linear(3, 10)


@pytest.mark.parametrize(
    ("name", "count", "likely"),
    [("blocks", 12, "blocks.8"), ("layers", 4, "layers.2"), ("features", 8, "features.5"), ("stages", 4, "stages.2")],
)
def test_likely_features_are_listed(name, count, likely):
    with pytest.raises(ValueError, match=f"got 'layer3'; likely ones: {likely}, "):
        AutoMix(Named(name, count), 10)


def test_likely_features_of_a_resnet():
    with pytest.raises(ValueError, match="likely ones: layer3, layer2, layer4; close names: layer"):
        AutoMix(TinyNet(), 10, "layer33")


def test_attentivemix_of_the_trainer_reads_the_layout(monkeypatch):
    from fastmix.train import tasks
    from fastmix.train.config import Config
    from fastmix.train.errors import UserError

    net = Patches("nhwc")
    net.head = nn.Identity()
    monkeypatch.setattr(tasks, "build_encoder", lambda *_: (net, 12))
    splits = types.SimpleNamespace(in_channels=3, image_size=32, classes=["a", "b"], mean=(0.5,) * 3, std=(0.5,) * 3)
    task = tasks.MethodTask(Config(method="attentivemix", feature="stage"), splits, torch.device("cpu"), None)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    seen = task._needed(images, torch.zeros(4, dtype=torch.int64))["saliency"]
    torch.testing.assert_close(seen, net.positions(task.exact(images, torch.zeros(4, dtype=torch.int64)).x))
    with pytest.raises(UserError, match="--feature head: feature 'head' must give a map"):
        tasks.MethodTask(Config(method="attentivemix", feature="head"), splits, torch.device("cpu"), None)
