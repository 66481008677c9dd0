"""The trained classifier of a run as plain weights, by the names of the library that the model is from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastmix.train.config import Config
from fastmix.train.errors import UserError, printable
from fastmix.train.models import build_whole
from fastmix.train.predictor import DataFacts, load_trained


class Exported(NamedTuple):
    """Weights that a model of their library takes with ``strict=True``.

    Attributes:
        weights: contiguous tensors on the CPU, none of which shares memory with another.
        code: Python that makes ``model``, without the weights.
        config: settings of the run.
        data: names of the classes, size and statistics of the images.
    """

    weights: dict[str, Tensor]
    code: str
    config: Config
    data: DataFacts


@torch.no_grad()
def export(path: Path, weights: str | None = None) -> Exported:
    """The weights in a checkpoint, or in that of the folder of a run.

    Args:
        path: the checkpoint or folder.
        weights: of AutoMix ``"teacher"``, ``"student"``, or one of their heads such as ``"student_mix"``; by default
            those by which the run measured its test accuracy.

    Raises:
        UserError: no checkpoint, a damaged one, weights that it does not have, or a model whose parts do not fit the
            library's whole.

    Example:
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> model.load_state_dict(export(Path("runs/folder-cutmix-1")).weights)
    """
    device = torch.device("cpu")
    config, facts, task = load_trained(path, device)
    encoder, head = task.trained(weights)
    whole = build_whole(config.model, facts.in_channels, facts.image_size, config.width, len(facts.classes))
    # The whole's own values remain where the encoder has no such part, such as an identity before the classifier.
    state = whole.model.state_dict()
    prefix = "" if ":" in config.model else "encoder."
    found = {prefix + name: value for name, value in encoder.state_dict().items()}
    for name in whole.classifiers:
        found |= {f"{name}.{kind}": value for kind, value in head.state_dict().items()}
    if odd := found.keys() - state.keys():
        raise UserError(f"{printable(path)}: cannot be exported: {config.model} with a head has no {min(odd)}")
    state |= {name: value.reshape(state[name].shape) for name, value in found.items()}
    whole.model.load_state_dict(state)
    images = torch.randn(2, facts.in_channels, facts.image_size, facts.image_size)
    expected, got = head(encoder(images)), whole.model.eval()(images)
    if expected.shape != got.shape or not torch.allclose(expected, got, rtol=1e-3, atol=1e-4 * expected.abs().max()):
        raise UserError(f"{printable(path)}: cannot be exported: {config.model} with a head computes something else")
    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return Exported(plain, whole.code, config, facts)
