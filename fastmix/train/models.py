"""Encoders for the trainer: a small CIFAR-style ResNet, or any torchvision or timm model that is installed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix.train.errors import UserError, need

_DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_AUXILIARY = ("googlenet", "inception_v3")  # have further classifiers that answer in training


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images (He et al. 2016, the CIFAR form: a 3x3 first convolution).

    ``layer1`` ... ``layer4`` have strides 1, 2, 2, 2 and ``width * (1, 2, 4, 8)`` channels; ``stem_stride`` 2 makes
    the first convolution strided, 4 adds a max pooling to that. ``forward(x (N, C, H, W))`` returns the pooled
    features ``(N, num_features)``.

    Example:
        >>> encoder = ResNet((2, 2, 2, 2), in_channels=3)
        >>> encoder(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 512])
    """

    def __init__(self, depths: tuple[int, ...], in_channels: int = 3, width: int = 64, stem_stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, min(stem_stride, 2), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity()
        inputs = width
        for stage, depth in enumerate(depths):
            outputs = width << stage
            blocks = [BasicBlock(inputs, outputs, 1 if stage == 0 else 2)]
            blocks += [BasicBlock(outputs, outputs, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


class Classifier(nn.Module):
    """An encoder with a linear head: what the methods without a Mix Block train."""

    def __init__(self, encoder: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def build_encoder(name: str, in_channels: int = 3, image_size: int = 32, width: int = 64) -> tuple[nn.Module, int]:
    """An encoder without its classification head, and its number of features.

    Args:
        name: ``resnet10``, ``resnet18`` or ``resnet34`` (built in), ``torchvision:NAME`` or ``timm:NAME``.
        image_size: side of the images; the first layer of the built-in ones has stride 1 up to 36 pixels, 2 up to
            64 and 4 above.
        width: channels of ``layer1`` of the built-in ones.

    Raises:
        UserError: an unknown name, a library that is not installed, a model that does not take these images.
    """
    library, _, model = name.rpartition(":")
    if not library and model in _DEPTHS:
        stem_stride = 1 if image_size <= 36 else 2 if image_size <= 64 else 4
        encoder = ResNet(_DEPTHS[model], in_channels, width, stem_stride)
        return encoder, encoder.num_features
    if library == "torchvision":
        encoder = _torchvision(model, in_channels)
        encoder.set_submodule(_last_linear(model, encoder), nn.Identity())
    elif library == "timm":
        encoder = _timm(model, in_channels, 0)
    else:
        close = _close(name, [*_DEPTHS, "torchvision:NAME", "timm:NAME"])
        raise UserError(
            f"--model {name}: unknown model{close}; choose {', '.join(_DEPTHS)}, torchvision:NAME or timm:NAME"
        )
    return encoder, _num_features(name, encoder, in_channels, image_size)


class Whole(NamedTuple):
    """A classifier as its library makes it, new, with the names of its last linear layers and the code that makes it.

    More than one layer classifies where the means of their logits count, as in distilled vision transformers.
    """

    model: nn.Module
    classifiers: tuple[str, ...]
    code: str


def build_whole(name: str, in_channels: int, image_size: int, width: int, num_classes: int) -> Whole:
    """The classifier whose encoder `build_encoder` gives."""
    library, _, model = name.rpartition(":")
    if library == "torchvision":
        whole = _torchvision(model, in_channels, num_classes)
        extra = ", aux_logits=False" if model in _AUXILIARY else ""
        code = f"import torchvision\nmodel = torchvision.models.get_model({model!r}, num_classes={num_classes}{extra})"
        return Whole(whole, (_last_linear(model, whole),), code)
    if library == "timm":
        whole = _timm(model, in_channels, num_classes)
        names = whole.default_cfg["classifier"]
        code = f"import timm\nmodel = timm.create_model({model!r}, num_classes={num_classes}, in_chans={in_channels})"
        return Whole(whole, (names,) if isinstance(names, str) else tuple(names), code)
    encoder, features = build_encoder(name, in_channels, image_size, width)
    code = (
        "from fastmix.train.models import Classifier, build_encoder\n"
        f"model = Classifier(*build_encoder({name!r}, {in_channels}, {image_size}, {width}), {num_classes})"
    )
    return Whole(Classifier(encoder, features, num_classes), ("head",), code)


def _torchvision(model: str, in_channels: int, num_classes: int = 1000) -> nn.Module:
    models = need("torchvision.models", "torchvision", f"--model torchvision:{model}")
    if in_channels != 3:
        raise UserError(f"--model torchvision:{model}: takes colour images, the data has {in_channels} channel")
    known = models.list_models(module=models)
    if model not in known:
        raise UserError(
            f"--model torchvision:{model}: torchvision has no such classification model{_close(model, known)}"
        )
    options = {"aux_logits": False, "init_weights": True} if model in _AUXILIARY else {}
    return models.get_model(model, weights=None, num_classes=num_classes, **options)


def _last_linear(name: str, model: nn.Module) -> str:
    """Of torchvision's classifiers, all of which have one of these parts."""
    for part in ("fc", "classifier", "head", "heads"):
        if hasattr(model, part):
            layers = [n for n, m in getattr(model, part).named_modules(prefix=part) if isinstance(m, nn.Linear)]
            if layers:
                return layers[-1]
    raise UserError(f"--model torchvision:{name}: its last layer is not linear")


def _timm(model: str, in_channels: int, num_classes: int) -> nn.Module:
    timm = need("timm", "timm", f"--model timm:{model}")
    if not timm.is_model(model):
        raise UserError(f"--model timm:{model}: timm has no such model{_close(model, timm.list_models())}")
    try:
        return timm.create_model(model, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    except RuntimeError as error:  # such as an unknown tag behind a dot
        raise UserError(f"--model timm:{model}: {' '.join(str(error).split())}") from None


def _close(name: str, known: Iterable[str]) -> str:
    """``; did you mean resnet18, resnet10?``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _num_features(name: str, encoder: nn.Module, in_channels: int, image_size: int) -> int:
    encoder.eval()
    try:
        with torch.no_grad():
            shape = encoder(torch.zeros(1, in_channels, image_size, image_size)).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--model {name}: does not take {image_size}x{image_size} images: {text}") from None
    finally:
        encoder.train()
    if len(shape) != 2:
        raise UserError(f"--model {name}: gives features of shape {tuple(shape)}, not (N, features)")
    return shape[1]
