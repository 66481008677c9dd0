"""Stored results of the released PuzzleMix, where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "vectors" / "puzzlemix"
NAMES = [
    "c01_cifar_B2_L3_t4",
    "c02_cifar_B4_L3_t4",
    "c03_cifar_B8_L2_t4",
    "c04_cifar_B16_L3_t4",
    "c06_cifar_B8_L3_peaky",
    "c10_imagenet_B8_L3",
    "c11_ties_B4_L2_flat",
    "c13_overflow_B16_L2",
]


class Stored:
    """One file: arrays as tensors, scalars as numbers."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"no stored results {path.name}: those of the released code lie outside the repository")
        self.arrays = np.load(path)

    def __getitem__(self, name: str):
        array = self.arrays[name]
        return torch.from_numpy(array) if array.shape else array.item()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays.files

    @property
    def images(self) -> Tensor:
        """Normalised, as the network saw them."""
        if "images" in self:
            return self["images"]
        mean, std = (self[name].view(1, -1, 1, 1) for name in ("mean", "std"))
        return (self["images_u8"].float() / 255 - mean) / std

    @property
    def block_saliency(self) -> Tensor:
        """Shares of the mask's blocks in the saliency, by the released code's own operations."""
        pooled = F.avg_pool2d(self["saliency"], self["images_u8"].shape[-1] // self["block_num"])
        return pooled / pooled.flatten(1).sum(1).view(-1, 1, 1)

    @property
    def settings(self) -> dict[str, float]:
        """Keyword arguments of `ops.puzzle_energy`."""
        names = {name: name for name in ("n_labels", "beta", "gamma", "eta", "mean", "std")}
        return {key: self[name] for key, name in {**names, "neighborhood": "neigh_size"}.items()}
