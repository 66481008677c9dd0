"""pytest plugin: in its process CPU tensors run on emulated CUDA kernels, as backend "cuda".

FASTMIX_CUDA_EMULATOR names the module to load. Tests of other backends are deselected. Kernels work on copies of their
tensors, in guarded memory, and are called twice: the order of threads differs, the bits may not.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import random
import sys
import types

import pytest
import torch
from cuda_emulator.guarded import guarded
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

STREAM = 0x5EED
PACKET = 16


def _load(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("fastmix._C", path)
    module = sys.modules["fastmix._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


controls = ctypes.CDLL(_load(os.environ["FASTMIX_CUDA_EMULATOR"]).__file__)

# Only now: these import the module that has been replaced.
from fastmix import dispatch  # noqa: E402
from fastmix.kernels import images  # noqa: E402

OPS = [op for op, orders in dispatch.ORDER.items() if "cuda" in orders["cuda"]]
# Where a copy lies: up to the page that faults, from it on, aligned like the original, or one value further.
END, START, SHIFTED = range(3)
_random = random.Random(0)


def guarded_copy(tensor: Tensor, place: int = END) -> Tensor:
    """A copy with the same strides next to a page that faults."""
    if tensor.numel() == 0:
        return tensor
    item = tensor.element_size()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    slack = {END: 0, START: tensor.data_ptr() % PACKET, SHIFTED: item}[place]
    memory = torch.frombuffer(guarded(extent * item + slack, at_end=place == END)[slack:], dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def guarded_twice(function):
    """`function`, called twice on guarded copies of its tensors, which the second time must become the same."""

    @functools.wraps(function)
    def call(*args):
        given, packing = tree_flatten(args)
        places = _random.choice([[END], [START], [END, START, SHIFTED]])
        copies = [guarded_copy(a, _random.choice(places)) if isinstance(a, Tensor) else a for a in given]
        function(*tree_unflatten(copies, packing))
        first = [(a, b, b.clone()) for a, b in zip(given, copies, strict=True) if isinstance(a, Tensor)]
        function(*tree_unflatten(copies, packing))
        for original, copy, before in first:
            assert torch.equal(bits(copy), bits(before)), f"{function.__name__} depends on the order of threads"
            original.data.copy_(copy)  # unseen by autograd, as what the kernel writes

    return call


def _workspace(*args):
    scratch = images.workspace(*args)
    return None if scratch is None else guarded_copy(scratch.fill_(torch.nan))


images.place = lambda x: (0, STREAM)
dispatch._PREDICATES["cuda"] = lambda op, device, dtype: (
    None if op in OPS and dtype in dispatch._DTYPES[op] else f"has no kernel for {dtype}"
)
for op in OPS:
    dispatch.ORDER[op]["cpu"] = ("cuda", "reference")
    kernels = dispatch.kernels(op, "cuda")
    kernels.workspace = _workspace
    for name, value in list(vars(kernels).items()):
        if isinstance(value, types.FunctionType) and value.__module__ == kernels.__name__:
            setattr(kernels, name, guarded_twice(value))


from support import bits  # noqa: E402  which lists the backends of each device


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        ours = (given.get("device"), given.get("backend"), given.get("op", OPS[0])) in [("cpu", "cuda", o) for o in OPS]
        # The kernels leave float64 to the reference, and see a sliced image as the contiguous copy that it becomes.
        ours = ours and given.get("dtype") is not torch.float64 and given.get("layout") != "sliced"
        wanted = ours or item.path.name == "cuda_cases.py"
        (kept if wanted else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
