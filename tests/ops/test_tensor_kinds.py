"""Tensors that are not strided: a clear TypeError or ValueError for every tensor argument of every op."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from op_cases import op_cases
from torch import Tensor

from fastmix import ops

CASES = op_cases()


def nested(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(value))


def jagged(value: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(value), layout=torch.jagged)


def mkldnn(value: Tensor) -> Tensor | None:
    return value.to_mkldnn() if value.dtype is torch.float32 else None


def quantized(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8)


def compressed(value: Tensor) -> Tensor | None:
    return value.to_sparse_csr() if value.dim() > 1 and value.dim() < 4 else None


KINDS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "sparse": Tensor.to_sparse,
    "sparse_csr": compressed,
    "mkldnn": mkldnn,
    "nested": nested,
    "jagged": jagged,
    "quantized": quantized,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_every_argument_of_another_kind_is_named(name, kind):
    function, tensors = CASES[name]
    for argument, value in tensors.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                given = KINDS[kind](value)
        except (RuntimeError, NotImplementedError):
            continue  # no such tensor of this dtype or shape
        if given is None:
            continue
        with pytest.raises((TypeError, ValueError), match=rf"fastmix\.{name.split()[0]}: .*\b{argument}\b"):
            function(*(tensors | {argument: given}).values())


@pytest.mark.parametrize("op", ["blend", "box_blend", "flip_blend", "mask_blend"])
def test_an_output_of_another_kind_is_named(op):
    _, tensors = CASES[op]
    for kind in (Tensor.to_sparse, Tensor.to_mkldnn, nested):
        with pytest.raises(TypeError, match=f"fastmix.{op}: out must be a strided tensor"):
            getattr(ops, op)(*tensors.values(), out=kind(tensors["x"]))
