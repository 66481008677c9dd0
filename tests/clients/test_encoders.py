"""AutoMix around torchvision's and timm's models: features, classifiers, and names in errors."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from automix_support import error
from compat_support import load_torchvision
from torch import nn

from fastmix.train import AutoMix
from fastmix.train.features import Layout, find_submodule

pytestmark = pytest.mark.usefixtures("one_thread")


def torchvision_models() -> ModuleType:
    if load_torchvision() is None:
        pytest.skip("torchvision is not installed")
    return importlib.import_module("torchvision.models")


def build(library: str, name: str, **options: Any) -> nn.Module:
    models = torchvision_models()
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, **{"num_classes": 10, **options})
    options = {"num_classes": 10, **options}
    if name == "vit":  # vit_b_16, but small
        return models.VisionTransformer(64, 16, 12, 2, 24, 48, **options)
    return getattr(models, name)(**options)


# model, feature, pixels, classifiers, layout, channels, grid
TORCHVISION = [
    ("resnet18", "layer3", 64, ("fc",), Layout("nchw"), 256, 4),
    ("swin_t", "features.5", 64, ("head",), Layout("nhwc"), 384, 4),
    ("swin_v2_t", "features.5", 64, ("head",), Layout("nhwc"), 384, 4),
    ("convnext_tiny", "features.5", 64, ("classifier.2",), Layout("nchw"), 384, 4),
    ("vit", "encoder.layers.encoder_layer_8", 64, ("heads.head",), Layout("nlc", 1), 24, 4),
    ("efficientnet_b0", "features.6", 64, ("classifier.1",), Layout("nchw"), 192, 2),
    ("squeezenet1_1", "features.9", 64, ("classifier.1",), Layout("nchw"), 384, 3),
    ("mobilenet_v3_small", "features.8", 64, ("classifier.3",), Layout("nchw"), 48, 4),
    ("densenet121", "features.denseblock3", 64, ("classifier",), Layout("nchw"), 1024, 4),
]
TIMM = [
    ("resnet18", "layer3", 64, ("fc",), Layout("nchw"), 256, 4),
    ("deit_tiny_patch16_224", "blocks.8", 224, ("head",), Layout("nlc", 1), 192, 14),
    ("deit_tiny_distilled_patch16_224", "blocks.8", 224, ("head", "head_dist"), Layout("nlc", 2), 192, 14),
    ("swin_tiny_patch4_window7_224", "layers.2", 224, ("head.fc",), Layout("nhwc"), 384, 14),
    ("convnext_atto", "stages.2", 64, ("head.fc",), Layout("nchw"), 160, 4),
    ("levit_128s", "stages.1", 224, ("head.linear", "head_dist.linear"), Layout("nlc"), 256, 7),
    ("efficientformer_l1", "stages.2", 224, ("head", "head_dist"), Layout("nchw"), 224, 14),
]
CASES = [("torchvision", *case) for case in TORCHVISION] + [("timm", *case) for case in TIMM]


@pytest.mark.parametrize(
    ("library", "name", "feature", "pixels", "classifiers", "layout", "channels", "side"),
    CASES,
    ids=[f"{library}-{name}" for library, name, *_ in CASES],
)
def test_feature_and_classifier(library, name, feature, pixels, classifiers, layout, channels, side):
    torch.manual_seed(0)
    model = build(library, name)
    keys = model.state_dict().keys()
    images = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        expected = model.eval()(images)
    automix = AutoMix(model, 10, feature)
    assert (automix.classifiers, automix.layout) == (classifiers, layout)
    assert automix.mix_block.in_channels == channels
    assert automix._teacher_features(images).shape == (2, channels, side, side)
    automix.eval()
    with torch.no_grad():
        assert model.state_dict().keys() == keys and torch.equal(model(images), expected)
        for head in ("student_one_hot", "teacher_mix"):
            assert error(automix(images, head=head), expected) < 1e-5


@pytest.mark.parametrize(("library", "name", "feature"), [("timm", "deit_tiny_distilled_patch16_224", "blocks.8"),
                                                          ("torchvision", "swin_t", "features.5")])  # fmt: skip
def test_a_step_trains_the_model(library, name, feature):
    torch.manual_seed(0)
    model = build(library, name)
    before = {key: p.clone() for key, p in model.named_parameters()}
    automix = AutoMix(model, 10, feature).train()
    automix(torch.randn(2, 3, 224, 224), torch.arange(2)).loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    heads = [f"{name}.weight" for name in automix.classifiers]
    assert heads and all(not torch.equal(model.get_parameter(key), before[key]) for key in heads)


@pytest.mark.parametrize(
    ("library", "name", "feature", "message"),
    [
        ("torchvision", "googlenet", "inception4e", "got GoogLeNetOutputs; auxiliary classifiers must be off"),
        ("timm", "deit_tiny_distilled_patch16_224", "blocks.8", "got tuple; auxiliary .* distilled_training=False"),
    ],
)
def test_several_outputs_in_training_are_refused(library, name, feature, message):
    model = build(library, name, **({"init_weights": False} if name == "googlenet" else {}))
    if library == "timm":
        model.set_distilled_training(True)
    automix = AutoMix(model, 10, feature).train()
    pixels = 224 if library == "timm" else 64
    with pytest.raises(ValueError, match=message):
        automix(torch.randn(2, 3, pixels, pixels), torch.arange(2))


@pytest.mark.parametrize(
    ("library", "name", "likely"),
    [
        ("torchvision", "vit", r"encoder\.layers\.encoder_layer_8"),
        ("torchvision", "swin_t", r"features\.5"),
        ("torchvision", "convnext_tiny", r"features\.5"),
        ("timm", "deit_tiny_patch16_224", r"blocks\.8"),
        ("timm", "swin_tiny_patch4_window7_224", r"layers\.2"),
        ("timm", "convnext_atto", r"stages\.2"),
    ],
)
def test_likely_features_are_listed(library, name, likely):
    with torch.device("meta"):
        model = build(library, name)
    with pytest.raises(ValueError, match=f"got 'layer3'; likely ones: {likely},"):
        find_submodule(model, "layer3")
