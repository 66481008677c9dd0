"""Times the drop-ins, and the methods that kornia also has, beside the installed originals.

    python bench/compat_cases.py [--threads T] [--seconds S] [--json FILE]

Of timm only the file of its mixup is loaded. A drop-in is timed only after its result was found to be bit-equal to the
original's for the same seed. Both take turns, each time with the same seed; `mix in place` keeps mixing its own batch.
Milliseconds a batch: medians of wall time and of the CPU time of all threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from compare import machine
from torch import Tensor

from fastmix import methods, ops
from fastmix.compat import timm, torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from compat_support import load_timm, load_torchvision

SHAPE = (64, 3, 224, 224)
CLASSES = 1000
ALPHAS = {"mixup": (1.0, 0.0), "cutmix": (0.0, 1.0), "switch": (0.8, 1.0)}


@dataclass(frozen=True)
class Pair:
    """Two calls that compute the same; `check`: bit for bit, given the same seed."""

    name: str
    fast: Callable
    peer: Callable
    check: bool = True


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator)
    return (255 * x).to(dtype) if dtype is torch.uint8 else x, torch.arange(SHAPE[0]) * 7


def timm_pairs(theirs: ModuleType) -> Iterator[Pair]:
    for mode in ("batch", "pair", "elem"):
        for kind, alphas in ALPHAS.items():
            x, y = images()
            other = x.clone()
            fast, peer = (module.Mixup(*alphas, mode=mode) for module in (timm, theirs))
            yield Pair(
                f"timm.Mixup {kind} {mode}, in place",
                lambda f=fast, x=x, y=y: f(x, y),
                lambda f=peer, x=other, y=y: f(x, y),
            )
    x, y = images()
    out, index, peer = torch.empty_like(x), torch.arange(len(x)).flip(0), theirs.Mixup()
    yield Pair("timm.Mixup mixup batch, in place; ops.blend out=", lambda: ops.blend(x, index, 0.3, out=out),
               lambda: peer(x, y), check=False)  # fmt: skip
    pixels, y = images(torch.uint8)
    samples = list(zip(pixels.numpy(), y.tolist(), strict=True))
    for mode in ("batch", "elem"):
        for kind in ("mixup", "cutmix"):
            fast, peer = (module.FastCollateMixup(*ALPHAS[kind], mode=mode) for module in (timm, theirs))
            yield Pair(f"timm.FastCollateMixup {kind} {mode}", lambda f=fast: f(samples), lambda f=peer: f(samples))


def torchvision_pairs(theirs: ModuleType) -> Iterator[Pair]:
    x, y = images()
    for name in ("MixUp", "CutMix"):
        fast, peer = (getattr(module, name)(num_classes=CLASSES) for module in (torchvision, theirs))
        yield Pair(f"torchvision.{name}, new memory", lambda f=fast: f(x, y), lambda f=peer: f(x, y))


def kornia_pairs(theirs: ModuleType) -> Iterator[Pair]:
    x, y = images()
    peers = {"MixUp": theirs.RandomMixUpV2(data_keys=["input", "class"])}
    peers["CutMix"] = theirs.RandomCutMixV2(data_keys=["input", "class"], use_correct_lambda=True)
    for name, peer in peers.items():
        fast = getattr(methods, name)(mode="sample")
        yield Pair(f"kornia {name} a sample, new memory", lambda f=fast: f(x, y), lambda f=peer: f(x, y), check=False)


def measure(pair: Pair, seconds: float) -> dict[str, float]:
    calls = {"fastmix": pair.fast, "peer": pair.peer}
    if pair.check:
        fast, peer = (_seeded(call, 1) for call in calls.values())
        if not all(torch.equal(a, b) for a, b in zip(fast, peer, strict=True)):
            raise SystemExit(f"{pair.name}: the result is wrong, not timed")
    wall, cpu = ({name: [] for name in calls} for _ in range(2))
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or number < 9:
        for name, call in calls.items():
            np.random.seed(number)
            torch.manual_seed(number)
            before, used = time.perf_counter(), time.process_time()
            result = call()
            wall[name].append(time.perf_counter() - before)
            cpu[name].append(time.process_time() - used)
            del result
        number += 1
    row = {f"{name} {what}": 1e3 * statistics.median(times[name][2:])
           for what, times in (("wall", wall), ("cpu", cpu)) for name in calls}  # fmt: skip
    return row | {f"{what} ratio": row[f"peer {what}"] / row[f"fastmix {what}"] for what in ("wall", "cpu")}


def _seeded(call: Callable, seed: int) -> tuple[Tensor, ...]:
    np.random.seed(seed)
    torch.manual_seed(seed)
    return tuple(part.clone() for part in call())


def pairs() -> Iterator[Pair]:
    kornia = importlib.util.find_spec("kornia") and importlib.import_module("kornia.augmentation")
    for theirs, make in ((load_timm(), timm_pairs), (load_torchvision(), torchvision_pairs), (kornia, kornia_pairs)):
        if theirs is None:
            print(f"{make.__name__.removesuffix('_pairs')} is not installed")
        else:
            yield from make(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2, help="time for each pair")
    parser.add_argument("--only", default="", help="only pairs with this in their name")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {"machine": machine(), "pairs": {}}
    for key, value in found["machine"].items():
        print(f"{key}: {value}")
    for pair in pairs():
        if args.only not in pair.name:
            continue
        row = found["pairs"][pair.name] = measure(pair, args.seconds)
        print(f"{pair.name:<48}" + "".join(f"  {name} {value:7.2f}" for name, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
