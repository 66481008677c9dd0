"""Checks an op against its float64 reference on your own machine and backend.

Example:
    >>> from fastmix.testing import assert_matches
    >>> assert_matches("blend", images, index, lam, backend="triton")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from . import ops, reference

__all__ = ["assert_matches", "poisoned"]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory from `torch.empty` with NaN, so that an output that is not fully written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def assert_matches(op: str, *args, backend: str | None = None, seed: int = 0, **options) -> None:
    """Compare `fastmix.ops.<op>(*args, **options)` with the reference in float64: results and every gradient.

    The error may be at most twice that of the reference computed in the dtypes given, plus a few roundings of the
    accumulation type; a uint8 result must be the exact value rounded. Gradients are taken with respect to every
    argument that is a floating tensor with `requires_grad`, for a random cotangent drawn with `seed`. Arguments must
    come back unchanged, outputs are poisoned with NaN before the kernel runs.

    Args:
        op: name of an op in `fastmix.ops`.
        *args, **options: its arguments; tensors of any dtype and device that the op takes.
        backend: which backend to check; default: the one a call would take.
        seed: of the random cotangents.

    Raises:
        AssertionError: naming op, backend, the result or gradient that is off, the worst element and the bound.
    """
    before = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    with poisoned():
        actual = _results(getattr(ops, op), args, dict(options, backend=backend), seed)
    for given, kept in zip(args, before, strict=True):
        if isinstance(given, Tensor):
            assert torch.equal(given.nan_to_num(), kept.nan_to_num()), f"fastmix.{op} wrote to one of its arguments"
    exact = _results(getattr(reference, op), *_doubled(args, options), seed)
    plain = _results(getattr(reference, op), args, options, seed)
    assert actual.keys() == exact.keys(), f"fastmix.{op}: got {sorted(actual)}, expected {sorted(exact)}"
    for name, value in actual.items():
        where = f"fastmix.{op} ({backend or 'default backend'}), {name}"
        assert value.shape == exact[name].shape, f"{where}: shape {tuple(value.shape)}, not {tuple(exact[name].shape)}"
        assert value.dtype is plain[name].dtype, f"{where}: dtype {value.dtype}, not {plain[name].dtype}"
        _compare(where, value, exact[name], plain[name])


def _results(function, args: tuple | list, options: dict, seed: int) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    args = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
    outputs = _tensors(function(*args, **options))
    found = {f"result {i}": o.detach() for i, o in enumerate(outputs)}
    leaves = {i: a for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad}
    differentiable = [o for o in outputs if o.requires_grad]
    if leaves and differentiable:
        generator = torch.Generator().manual_seed(seed)
        # Drawn in bfloat16, so that the cotangent is the same number in every dtype.
        cotangents = [
            torch.randn(o.shape, generator=generator).bfloat16().to(o.device, o.dtype) for o in differentiable
        ]
        gradients = torch.autograd.grad(differentiable, list(leaves.values()), cotangents, allow_unused=True)
        found |= {f"gradient of argument {i}": g for i, g in zip(leaves, gradients, strict=True) if g is not None}
    return found


def _tensors(result: Tensor | tuple) -> list[Tensor]:
    """All tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in _tensors(part)]


def _doubled(args: tuple, options: dict) -> tuple[list, dict]:
    """The same call in float64, with the result left unrounded."""
    from_bytes = isinstance(args[0], Tensor) and args[0].dtype is torch.uint8
    options = dict(options)
    if options.pop("dtype", None) is not None or from_bytes:
        options["dtype"] = torch.float64
    if from_bytes and options.get("normalize") is not None:
        mean, std = (torch.as_tensor(part, dtype=torch.float64) for part in options["normalize"])
        options["normalize"] = (mean * 255, std * 255)
    keep = (torch.int64, torch.int32)
    return [
        a.detach().double().requires_grad_(a.requires_grad) if isinstance(a, Tensor) and a.dtype not in keep else a
        for a in args
    ], options


def _compare(where: str, value: Tensor, exact: Tensor, plain: Tensor) -> None:
    if value.numel() == 0:
        return
    if value.dtype is torch.uint8:
        exact = exact.clamp(0, 255)
    error = (value.double() - exact).abs()
    same_nonfinite = (value.double() == exact) | (value.isnan() & exact.isnan())
    error = torch.where(same_nonfinite, 0.0, error)
    finite = exact[exact.isfinite()]
    size = finite.abs().max().item() if finite.numel() else 0.0
    if value.dtype is torch.uint8:
        allowed = 0.5 + 1e-4
    else:
        plain_error = torch.where(plain.isfinite(), (plain.double() - exact).abs(), 0.0).nan_to_num()
        accumulation = torch.finfo(torch.float64 if value.dtype is torch.float64 else torch.float32).eps
        allowed = 2 * plain_error.max().item() + 32 * accumulation * max(size, 1e-30)
    worst = error.nan_to_num(nan=torch.inf).argmax().item()
    found = error.flatten()[worst].item()
    assert found <= allowed, (
        f"{where}: error {found:.3g} exceeds {allowed:.3g} (largest value {size:.3g}) at element {worst} of shape "
        f"{tuple(value.shape)}: got {value.flatten()[worst].item()}, expected {exact.flatten()[worst].item()}"
    )
