"""Calls of timm's and torchvision's objects by number, and the real objects where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

SEEDS = 1000
CLASSES = 7
_library = None


def load_timm() -> ModuleType | None:
    """timm's `data/mixup.py` by its path: importing timm takes torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        return None
    path = Path(found.submodule_search_locations[0], "data", "mixup.py")
    spec = importlib.util.spec_from_file_location("timm_data_mixup", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_torchvision() -> ModuleType | None:
    """torchvision's `transforms.v2`, also of a build for CUDA beside a torch for the CPU, which lacks its operators."""
    global _library
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.transforms.v2")


def checksum(*tensors: Tensor) -> int:
    """Of shapes, dtypes and bytes."""
    total = 0
    for tensor in tensors:
        plain = tensor.detach().contiguous()
        total = zlib.crc32(f"{plain.dtype} {tuple(plain.shape)}".encode(), total)
        total = zlib.crc32(plain.flatten().view(torch.uint8).numpy().tobytes(), total)
    return total


def numpy_state() -> int:
    _, key, position, *_ = np.random.get_state()
    return zlib.crc32(f"{position}".encode(), zlib.crc32(key.tobytes()))


def timm_case(seed: int) -> tuple[dict, Tensor, Tensor]:
    """Options of both objects, but for the mode, an image batch and its labels."""
    r = np.random.RandomState(10_000 + seed)
    n, (height, width) = 2 * r.randint(1, 5), r.randint(4, 20, 2)
    alphas = [(0.2, 0.0), (0.0, 1.0), (1.0, 0.3), (0.8, 1.0)][r.randint(4)]
    options = {
        "mixup_alpha": alphas[0],
        "cutmix_alpha": alphas[1],
        "cutmix_minmax": [None, None, (0.3, 0.9)][r.randint(3)],
        "prob": [1.0, 0.7][r.randint(2)],
        "switch_prob": r.rand(),
        "mode": ["batch", "pair", "elem"][r.randint(3)],
        "correct_lam": bool(r.randint(2)),
        "label_smoothing": [0.0, 0.1][r.randint(2)],
        "num_classes": CLASSES,
        "multi_label": r.rand() < 0.2,
    }
    images = torch.from_numpy(r.rand(n, 3, height, width).astype(np.float32))
    if options["mode"] == "batch" and alphas[0] == 0:
        # What is only cut may have any dtype.
        kind = [torch.float32, torch.uint8, torch.float16, torch.bfloat16][r.randint(4)]
        images = (200 * images).to(kind)
    if options["multi_label"]:
        labels = torch.from_numpy((r.rand(n, CLASSES) < 0.3).astype(np.float32))
    else:
        labels = torch.from_numpy(r.randint(0, CLASSES, n))
    return options, images, labels


def collate_case(seed: int) -> tuple[dict, list[tuple]]:
    """Options and samples: numpy arrays, or tensors, with labels."""
    options, images, labels = timm_case(seed)
    r = np.random.RandomState(20_000 + seed)
    options["mode"] = ["batch", "pair", "elem", "half"][r.randint(4)]
    pixels = [r.randint(0, 256, images.shape[1:]).astype(np.uint8) for _ in images]
    if r.randint(2):
        pixels = [torch.from_numpy(image) for image in pixels]
    return options, list(zip(pixels, labels.unbind() if labels.dim() == 2 else labels.tolist(), strict=True))


def box_case(seed: int) -> tuple[tuple[int, int, int], float, tuple | None, bool]:
    """Arguments of `cutmix_bbox_and_lam`."""
    r = np.random.RandomState(30_000 + seed)
    shape = (3, *(int(side) for side in r.randint(5, 300, 2)))
    return shape, r.rand(), [None, (0.2, 0.8)][r.randint(2)], bool(r.randint(2))


def run_timm(module: ModuleType, seed: int) -> dict[str, object]:
    """What both objects and the box give for a seed, in numbers that can be compared."""
    options, images, labels = timm_case(seed)
    np.random.seed(seed)
    mixed, target = module.Mixup(**options)(images.clone(), labels)
    found = {"mixup": [checksum(mixed), checksum(target), numpy_state()]}
    options, samples = collate_case(seed)
    np.random.seed(seed)
    # The original writes to the arrays that it collates.
    copies = [(image.copy() if isinstance(image, np.ndarray) else image.clone(), label) for image, label in samples]
    mixed, target = module.FastCollateMixup(**options)(copies)
    found["collate"] = [checksum(mixed), checksum(target), numpy_state()]
    np.random.seed(seed)
    box, lam = module.cutmix_bbox_and_lam(*box_case(seed))
    return found | {"box": [int(end) for end in box], "lam": float(lam)}


def torchvision_case(seed: int) -> tuple[str, dict, Tensor, Tensor]:
    """Class, options, images and labels."""
    r = np.random.RandomState(40_000 + seed)
    name = ["MixUp", "CutMix"][seed % 2]
    n, (height, width) = r.randint(1, 8), r.randint(1, 24, 2)
    kinds = [torch.float32, torch.float64, torch.uint8, torch.float16, torch.int64, torch.bool]
    kind = kinds[r.randint(len(kinds) if name == "CutMix" else 2)]
    images = torch.from_numpy(r.rand(n, 3, height, width) * 255).to(kind)
    if r.randint(2):
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(r.randint(0, CLASSES, n))
    if r.randint(3) == 0:
        labels = torch.from_numpy(r.rand(n, CLASSES).astype(np.float32))
    return name, {"alpha": [0.2, 1.0, 3.0][r.randint(3)], "num_classes": CLASSES}, images, labels


def run_torchvision(module: ModuleType, seed: int) -> dict[str, object]:
    name, options, images, labels = torchvision_case(seed)
    transform = getattr(module, name)(**options)
    torch.manual_seed(seed)
    params = transform.make_params([images])
    torch.manual_seed(seed)
    mixed, target = transform(images, labels)
    state = zlib.crc32(torch.get_rng_state().numpy().tobytes())
    return {
        "mixed": [checksum(mixed), checksum(target), state],
        "box": list(params.get("box", (0, 0, 0, 0))),
        "lam": params["lam"] if name == "MixUp" else params["lam_adjusted"],
    }
