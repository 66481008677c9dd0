"""Nothing on the way of a training step waits for the device: no value is read, no host data copied to it.

The step runs on "meta" tensors, which have no values, with kernels that do nothing: what would read a value raises by
itself. Two modes forbid the rest, tensors made of host data and tensors that lie on the host.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from automix_support import TinyNet
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmix import _checks, dispatch, methods
from fastmix.losses import mix_cross_entropy
from fastmix.methods import MixMethod
from fastmix.ops import common
from fastmix.train import AutoMix

FROM_HOST_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)


class NoHostData(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in FROM_HOST_DATA and not isinstance(args[-1], Tensor):
            raise AssertionError(f"{function.__name__} copies from the host")
        return function(*args, **(kwargs or {}))


class NoHostTensor(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device.type != "meta":
                raise AssertionError(f"{op} touches a tensor on {value.device}")
        return result


@contextmanager
def on_the_device_alone():
    with NoHostData(), NoHostTensor():
        yield


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """Names of the kernels launched: the ops take the way of a GPU, up to kernels that do nothing."""
    names: list[str] = []

    class Kernels:
        def __getattr__(self, name):
            return lambda *_args: names.append(name)

    monkeypatch.setattr(dispatch, "_current_choice", lambda *_args: "cuda")
    # The modes that watch here, and tensors without memory, would send every call through the registered ops.
    for module in (dispatch, common, _checks):
        monkeypatch.setattr(module, "plain", lambda *_tensors: True)
    for op in dispatch.ORDER:
        monkeypatch.setattr(sys.modules[f"fastmix.ops.{op}"], "kernels", lambda *_args: Kernels())
    # Autocast does not know the device; it moves no data.
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_options: nullcontext())
    return names


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    images = torch.empty(8, 3, 16, 16, dtype=dtype, device="meta")
    return images, torch.empty(8, dtype=torch.int64, device="meta")


NORMALIZE = {
    "none": None,
    "lists": ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]),
    "tensors": (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])),
}


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("mode", methods.MODES)
@pytest.mark.parametrize("pairing", methods.PAIRINGS)
# PuzzleMix draws its block size, a Python number, on the host.
@pytest.mark.parametrize("name", [name for name in methods.METHODS if name != "puzzlemix"])
def test_methods(name, mode, pairing, normalize, launches):
    method = methods.create(name, mode=mode, pairing=pairing, normalize=NORMALIZE[normalize])
    images, targets = batch(torch.uint8)
    needed = {"saliency": torch.empty(8, 4, 2, 2, device="meta")} if method.needs == "features" else {}
    if method.needs == "model":
        needed = {"layer": "input"}  # the layer too is a number drawn on the host
    masks = torch.empty(8, 16, 16, dtype=torch.int64, device="meta")
    method(images, targets, **needed)  # the constants of the normalisation are copied once
    with on_the_device_alone():
        for options in ({}, {"lam": 0.3}):
            mixed = method(images, targets, **options, **needed)
            logits = torch.empty(len(mixed), 10, device="meta", requires_grad=True)
            mixed.loss(logits, smoothing=0.1).backward()
            mixed.soft(10, 0.1)
            mixed.accuracy(logits)
            mixed.apply(masks)
            mixed.pixel_weight()
    assert mixed.x.device.type == "meta"


def test_a_mixer_of_all_kinds(launches):
    method = methods.Mixer(["mixup", "cutmix", "resizemix", "smoothmix", "randomgrids"], [0.1] * 5)
    with on_the_device_alone():
        method(*batch())
    assert sorted(launches) == ["box_paste", "mask_blend"]


def test_loss_with_a_number_for_lam(launches):
    _, targets = batch()
    with on_the_device_alone():
        mix_cross_entropy(torch.empty(8, 10, device="meta"), targets, targets, 0.3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequential": True},
        {"per_sample": True, "mask_loss_per_sample": True},
        {"convention": "transposed", "smoothing": 0.1},
        {"convention": "paper", "lam_embed": "v"},
        {"lam_embed": "none", "teacher_buffers": "student"},
        {"teacher_buffers": "own", "truncate_teacher": False, "clean_loss": False},
    ],
    ids=str,
)
def test_automix(options, launches):
    automix = AutoMix(TinyNet(), 10, **options).to("meta")
    images, targets = batch()
    gamma, momentum = (torch.empty((), dtype=dtype, device="meta") for dtype in (torch.float32, torch.float64))
    optimizer = torch.optim.SGD(automix.param_groups(0.1), momentum=0.9, foreach=True)
    for live in ({}, {"gamma": gamma}):
        with on_the_device_alone():
            out = automix(images, targets, **live)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            automix.update_teacher(momentum=momentum if live else None)


def test_both_draws_share_the_launches_and_the_students_costs_no_backward(launches):
    automix = AutoMix(TinyNet(), 10, gen_every=2).to("meta")
    out = automix(*batch())
    assert mixing(launches) == ["pair_attention", "mask_blend"]
    out.loss.backward()
    assert mixing(launches)[2:] == ["mask_blend_grad_mask", "pair_attention_grad"]
    launches.clear()
    automix.update_teacher()
    out = automix(*batch())
    out.loss.backward()
    assert out.gen_draw is None and mixing(launches) == ["pair_attention", "mask_blend"]


def mixing(launches: list[str]) -> list[str]:
    """Those that are not of a loss."""
    return [name for name in launches if "entropy" not in name]


class Waits(MixMethod):
    """A method that waits for the device in one of the usual ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def plan(self, x, draw):
        lam, index = draw.lam, draw.index
        return {
            "item": lambda: lam.item(),
            "if": lambda: 1 if lam > 0.5 else 0,
            "float": lambda: float(lam),
            "mask": lambda: x[index > 2],
            "nonzero": lambda: index.nonzero(),
            "equal": lambda: torch.equal(index, index),
            "tolist": lambda: index.tolist(),
            "cpu": lambda: x.cpu(),
            "tensor": lambda: torch.tensor([0.1], device=x.device),
            "as_tensor": lambda: torch.as_tensor(0.3, device=x.device),
            "new_tensor": lambda: x.new_tensor([1.0]),
            "drawn on the host": lambda: torch.randperm(len(x)).to(x.device),
            "host index": lambda: x[torch.arange(len(x))],
            "host scalar": lambda: x * torch.ones(()),
        }[self.way]()


WAYS = [
    "item", "if", "float", "mask", "nonzero", "equal", "tolist", "cpu", "tensor", "as_tensor", "new_tensor",
    "drawn on the host", "host index", "host scalar",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_method_that_waits_is_found(way, launches):
    with on_the_device_alone(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        Waits(way)(*batch())
