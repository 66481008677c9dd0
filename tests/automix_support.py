"""What the tests of the Mix Block and of AutoMix share: stored vectors, the oracle, a small encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared" / "vectors" / "automix"


class Vectors:
    """One stored .npz: arrays as tensors, options as a dict."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            pytest.skip(f"no stored vectors {path.name}: the released code's vectors lie outside the repository")
        self._arrays = np.load(path)
        self.names = self._arrays.files
        self.options = json.loads(str(self._arrays["options"]))

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[name]))

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self.names if name.startswith(prefix)}


def error(got: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    assert got.numel() == expected.numel(), (got.shape, expected.shape)
    got, expected = got.detach().double().flatten(), expected.double().flatten()
    scale = expected.abs().max().clamp_min(1e-30)
    return ((got - expected).abs().max() / scale).item()


class TinyEncoder(nn.Module):
    """Four blocks of convolution, batch norm and ReLU: the encoder of the stored steps; returns a feature
    map."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 8, 16, 16, 24), (1, 2, 2, 2)
        for i in range(4):
            self.add_module(f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], 3, strides[i], 1, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
            self.add_module(f"relu{i + 1}", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return x


class TinyNet(nn.Module):
    """A small residual classifier with the module names of torchvision's ResNets."""

    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        for i in range(1, 5):
            c = width * (1 if i == 1 else 2 ** (i - 2)), width * 2 ** (i - 1)
            self.add_module(f"layer{i}", Residual(*c, 1 if i == 1 else 2))
        self.fc = nn.Linear(width * 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn(self.conv(x)) + self.skip(x))


RENAMED = {
    "backbone_q.": "student.encoder.",
    "head_one_q.fc.": "student.one_hot.",
    "head_mix_q.fc.": "student.mix.",
    "backbone_k.": "teacher.encoder.",
    "head_one_k.fc.": "teacher.one_hot.",
    "head_mix_k.fc.": "teacher.mix.",
    "mix_block.query.conv.": "mix_block.query.",
    "mix_block.value.": "mix_block.value.",
}


def from_released(state: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """State of the released pipeline in the names and shapes of `AutoMix`; its aliases are left out."""
    renamed = {}
    for name, value in state.items():
        for old, new in RENAMED.items():
            if name.startswith(old):
                value = value.flatten(1) if old.startswith("mix_block") and value.dim() == 4 else value
                renamed[name.replace(old, new, 1)] = value.to(dtype) if value.is_floating_point() else value
    return renamed
