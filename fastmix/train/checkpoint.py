"""What a checkpoint holds of a run, and whether it fits the run that goes on from it.

A checkpoint is a file from elsewhere: it is checked whole before any of it is used, so that a damaged one ends in one
line and a run never goes on with wrong numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmix.train.config import Config
from fastmix.train.data import Dataset, Images, Splits
from fastmix.train.errors import UserError, printable

_NAMED = 3


class Damaged(Exception):
    """Something in a checkpoint is not as it was written; the text says what."""


def expect(holds: bool, what: str) -> None:
    """Raise `Damaged` unless something holds."""
    if not holds:
        raise Damaged(what)


def is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return type(value) is int and value >= 0


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value of the floating ones is infinite or not a number."""
    found = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not found or bool(torch.stack(found).all())


def trained_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What a step that diverges makes infinite: the weights, running statistics and the optimiser's state."""
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return [*module.parameters(), *running_statistics(module), *state]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Of the normalisation layers; other buffers are constants, of which some are infinite on purpose."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    both = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    return [value for value in both if value is not None]


def settings(path: Path, state: dict[str, Any]) -> Config:
    """The settings in a checkpoint's state.

    Raises:
        UserError: there are none, or wrong ones.
    """
    saved = state.get("config")
    if not isinstance(saved, dict):
        raise UserError(f"{printable(path)}: damaged checkpoint, it holds no settings")
    try:
        return Config.from_dict(saved)
    except UserError as error:
        raise UserError(f"{printable(path)}: damaged checkpoint, its settings are wrong: {error}") from None


def check_module(module: nn.Module, saved: object) -> None:
    """That ``saved`` is a state dict of ``module``, by names, shapes and dtypes, and finite where it was trained."""
    own = module.state_dict()
    expect(isinstance(saved, dict), "it holds no weights")
    missing, odd = own.keys() - saved.keys(), saved.keys() - own.keys()
    expect(not missing, f"{len(missing)} of its weights are missing, such as {_first(missing)}")
    expect(not odd, f"{len(odd)} of its weights are not of this model, such as {_first(odd)}")
    for name, value in own.items():
        if isinstance(value, Tensor):
            _check_tensor(name, saved[name], value.shape, value.dtype)
        else:
            expect(_same_kind(value, saved[name]), f"{name} is wrong")
    trained = [saved[name] for name, _ in module.named_parameters()]
    expect(finite(trained), "its weights hold values that are not finite")


def check_optimizer(optimizer: torch.optim.Optimizer, saved: object, started: bool) -> None:
    """That the momenta in ``saved`` are those of the optimiser's parameters; its settings must be those of the run."""
    own = optimizer.state_dict()
    right = isinstance(saved, dict) and saved.keys() == own.keys() and isinstance(saved["state"], dict)
    expect(right and isinstance(saved["param_groups"], list), "the optimiser's state is missing")
    groups = [group.get("params") if isinstance(group, dict) else None for group in saved["param_groups"]]
    expect(groups == [group["params"] for group in own["param_groups"]], "the optimiser's parameters differ")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expect(bool(saved["state"]) or not started, "the optimiser's momenta are missing")
    for number, entry in saved["state"].items():
        expect(is_count(number) and number < len(parameters), f"the optimiser has no parameter {number!r}")
        expect(isinstance(entry, dict) and entry.keys() == {"momentum_buffer"}, "the optimiser's momenta are wrong")
        if (momentum := entry["momentum_buffer"]) is not None:
            parameter = parameters[number]
            _check_tensor(f"the optimiser's momentum {number}", momentum, parameter.shape, parameter.dtype)
            expect(finite([momentum]), "the optimiser's momenta are not finite")


def check_scaler(scaler: torch.amp.GradScaler, saved: object) -> None:
    """That ``saved`` can be the state of an enabled loss scaler."""
    if not scaler.is_enabled():
        return
    right = isinstance(saved, dict) and saved.keys() == scaler.state_dict().keys()
    expect(right and all(_is_number(value) and value >= 0 for value in saved.values()), "the loss scaler is wrong")
    expect(saved["scale"] > 0, "the loss scaler is wrong")


def check_progress(state: dict[str, Any], epoch_steps: int, total_steps: int, columns: list[str]) -> None:
    """That step, log and sums of losses are those of one moment of a run of ``total_steps``.

    ``columns`` are the losses of a step.
    """
    step, history, sums = state["step"], state["history"], state["sums"]
    expect(is_count(step), f"its step is {str(step)[:40]}")
    expect(step <= total_steps, f"its step is {step}, the run has {total_steps}")
    rows = math.ceil(step / epoch_steps) if step == total_steps else step // epoch_steps
    expect(isinstance(history, list) and len(history) == rows, f"its log has not the {rows} epochs of step {step}")
    for number, row in enumerate(history, start=1):
        right = isinstance(row, dict) and {"epoch", "step", "test_accuracy", "ms_per_step", *columns} <= row.keys()
        expect(right and all(_is_number(value, True) for value in row.values()), f"epoch {number} of its log is wrong")
        expect(row.keys() == history[0].keys(), f"epoch {number} of its log is wrong")
        ended = (row["epoch"], row["step"]) == (number, min(number * epoch_steps, total_steps))
        expect(ended, f"epoch {number} of its log is wrong")
    if step == total_steps or step % epoch_steps == 0:
        expect(sums is None, "it has sums of losses between two epochs")
    else:
        _check_tensor("the sum of losses", sums, torch.Size([len(columns)]), torch.float32)


def fingerprint(splits: Splits) -> dict[str, Any]:
    """What tells one data set from another, and not from its copy at another place.

    Class names, and of image files their names, sizes and checksums, of arrays the SHA-256 of their bytes.
    """
    both = splits.train, splits.test
    print_of: dict[str, Any] = {"classes": list(splits.classes)}
    if all(hasattr(part, "paths") for part in both):
        packed = zlib.compress(json.dumps(_listing(both), sort_keys=True).encode(), 6)
        print_of["files"] = torch.from_numpy(np.frombuffer(packed, np.uint8).copy())
    elif all(isinstance(part, Images) for part in both):
        print_of["arrays"] = {name: _digest(part) for name, part in zip(("training", "test"), both, strict=True)}
    else:
        print_of["counts"] = {name: len(part) for name, part in zip(("training", "test"), both, strict=True)}
    return print_of


def check_data(saved: object, now: dict[str, Any]) -> None:
    """That the data are those of the checkpoint.

    Raises:
        UserError: they changed, with what changed first.
    """
    if (change := _data_change(saved, now)) is not None:
        raise UserError(
            f"the data changed since the checkpoint: {change}; --allow-changed-data goes on with what is there now"
        )


def _data_change(saved: object, now: dict[str, Any]) -> str | None:
    expect(isinstance(saved, dict) and _are_names(saved.get("classes")), "what it says of its data is wrong")
    before, classes = saved["classes"], now["classes"]
    if before != classes:
        gone, new = [n for n in before if n not in classes], [n for n in classes if n not in before]
        if not gone and not new:
            return "the classes are in another order"
        return _both("class", gone, new)
    if saved.keys() != now.keys():
        return "they are of another kind"
    if "files" in now:
        old, files = _unpacked(saved["files"]), _unpacked(now["files"])
        if old.keys() != files.keys():
            return _both("image", sorted(old.keys() - files.keys()), sorted(files.keys() - old.keys()))
        if changed := sorted(name for name in files if files[name] != old[name]):
            more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"image {printable(changed[0])} has other content{more}"
        return None
    for part in ("arrays", "counts"):
        if part in now and saved[part] != now[part]:
            expect(isinstance(saved[part], dict), "what it says of its data is wrong")
            names = [name for name, value in now[part].items() if saved[part].get(name) != value]
            return f"other {' and '.join(names)} images" if names else "they are of another kind"
    return None


def _both(noun: str, gone: list[str], new: list[str]) -> str:
    """``class cat is gone, 2 classes are new (dog, emu)``."""
    parts = []
    for names, what in ((gone, "gone"), (new, "new")):
        if len(names) == 1:
            parts.append(f"{noun} {printable(names[0])} is {what}")
        elif names:
            plural = noun + ("es" if noun.endswith("s") else "s")
            more = ", ..." if len(names) > _NAMED else ""
            parts.append(f"{len(names)} {plural} are {what} ({', '.join(map(printable, names[:_NAMED]))}{more})")
    return ", ".join(parts)


def _listing(parts: Iterable[Dataset]) -> dict[str, str]:
    """Size and checksum of every file, by its path below the folder that holds them all.

    Pictures of one size, such as those of one colour, have files of one size.
    """
    paths = [os.path.abspath(path) for part in parts for path in part.paths]
    root = os.path.commonpath(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip((os.path.relpath(path, root) for path in paths), pool.map(_checksum, paths), strict=True))


def _checksum(path: str) -> str:
    content = Path(path).read_bytes()
    return f"{len(content)} {zlib.crc32(content):08x}"


def _unpacked(packed: object) -> dict[str, str]:
    try:
        files = json.loads(zlib.decompress(packed.numpy().tobytes()))
    except (AttributeError, TypeError, ValueError, RuntimeError, zlib.error):
        raise Damaged("what it says of its data is wrong") from None
    expect(isinstance(files, dict), "what it says of its data is wrong")
    return files


def _digest(part: Images) -> str:
    digest = hashlib.sha256()
    for array in (part.images, part.labels):
        digest.update(f"{array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.contiguous().numpy())
    return digest.hexdigest()


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _check_tensor(name: str, value: object, shape: torch.Size, dtype: torch.dtype) -> None:
    plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    expect(plain, f"{name} is no tensor")
    expect(value.shape == shape, f"{name} has shape {tuple(value.shape)}, not {tuple(shape)}")
    expect(value.dtype == dtype, f"{name} is {value.dtype}, not {dtype}")


def _same_kind(own: object, saved: object) -> bool:
    """Whether a module's extra state, a dictionary of counts, has the same names."""
    if isinstance(own, dict):
        return isinstance(saved, dict) and own.keys() == saved.keys() and all(map(is_count, saved.values()))
    return type(own) is type(saved)


def _is_number(value: object, any_value: bool = False) -> bool:
    return type(value) in (int, float) and (any_value or math.isfinite(value))


def _first(names: Iterable[object]) -> str:
    return printable(min(map(str, names), default=""))[:80]
