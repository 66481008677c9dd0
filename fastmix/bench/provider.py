"""Who computes a case, and whether what it computes is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

import torch
from torch import Tensor

from fastmix import dispatch
from fastmix.bench.cases import Case, first, tensors

FASTMIX = "fastmix "  # begins the names of our own providers
NOT_THE_OP = ("copy_", "QK^T")  # providers that do less, to compare with


@dataclass
class Provider:
    """Someone who computes a case: `result(call(*prepare(*args)))` is the op's result. Without `prepare` the call takes
    the op's own arguments.

    `wanted` are the positions of the prepared arguments that a gradient is taken to, and `cotangent` turns the case's
    cotangent into that of the call. `agree` takes the place of the check against the eager code: it says what is wrong
    with a result, nothing if it is right. `package` is the peer's name; where it is not installed the provider is
    listed as absent.
    """

    name: str
    call: Callable
    wanted: tuple[int, ...] = ()
    prepare: Callable | None = None
    result: Callable = lambda out: out
    cotangent: Callable = lambda grad: grad
    agree: Callable[[Any, Case], str] | None = None
    package: str = ""

    @property
    def ours(self) -> bool:
        return self.name.startswith(FASTMIX)

    @property
    def version(self) -> str:
        """Of the package; empty where that is not installed."""
        try:
            return installed(self.package or ("fastmix" if self.ours else "torch"))
        except PackageNotFoundError:
            return ""

    def results(self, *args: Any) -> Any:
        return self.result(self.call(*self.prepared(*args)))

    def prepared(self, *args: Any) -> tuple:
        return args if self.prepare is None else self.prepare(*args)

    def timed(self, case: Case) -> Callable:
        """The call to be timed: forward, or forward and backward where the case is about gradients."""
        return self.both(case) if case.wanted else self.forward(case)

    def forward(self, case: Case) -> Callable:
        """The call to be timed for a case without gradients."""
        with torch.set_grad_enabled(case.records):
            args = self.prepared(*case.args)

        def call() -> Any:
            with torch.set_grad_enabled(case.records):
                return self.call(*args)

        return call

    def backward(self, case: Case) -> Callable:
        """Runs the forward pass; the call to be timed is the backward pass alone."""
        args, result = self._recorded(case)
        leaves, grad = [args[i] for i in self.wanted], self.cotangent(case.inputs[-1])
        return lambda: torch.autograd.grad(result, leaves, grad, retain_graph=True)

    def both(self, case: Case) -> Callable:
        """Forward and backward pass in one call."""
        grad = self.cotangent(case.inputs[-1])

        def call() -> tuple:
            args, result = self._recorded(case)
            return result.detach(), torch.autograd.grad(result, [args[i] for i in self.wanted], grad)

        return call

    def _recorded(self, case: Case) -> tuple[list, Tensor]:
        args = [t.detach() if isinstance(t, Tensor) else t for t in self.prepared(*case.args)]
        for i in self.wanted:
            args[i].requires_grad_()
        return args, first(self.call(*args))


def our_backends(case: Case, device: str) -> list[Provider]:
    """fastmix's kernels for the case, each backend, and the first one into a given output where the op takes one."""
    backends = [b for b in dispatch.ORDER[case.op][device] if b != "reference"]
    found = [Provider(FASTMIX + b, partial(case.fast, backend=b), case.wanted) for b in backends]
    if case.takes_out and not case.wanted and device == "cpu":
        found.insert(0, _into_output(FASTMIX + f"{backends[0]} out=", partial(case.fast, backend=backends[0])))
    return found


def _into_output(name: str, call: Callable) -> Provider:
    return Provider(
        name, lambda out, *args: call(*args, out=out), prepare=lambda x, *rest: (torch.empty_like(x), x, *rest)
    )


def plain_torch(case: Case, compiler: str = "inductor") -> list[Provider]:
    """The obvious PyTorch code, `torch.compile` of it by a backend unless that is "", and a plain copy where the op is
    about as much work."""
    if case.eager is None:
        return []
    found = [Provider("eager", case.eager, case.wanted)]
    if compiler and case.compiles:
        compiled = torch.compile(case.eager, dynamic=False, backend=compiler)
        found.append(Provider("torch.compile", compiled, case.wanted))
    if not case.wanted and case.takes_out:
        found.append(
            Provider(NOT_THE_OP[0], lambda x, out: out.copy_(x), prepare=lambda x, *_: (x, torch.empty_like(x)))
        )
    return found


def check(case: Case, provider: Provider) -> str:
    """What is wrong with a provider's results, against the eager code in float64; nothing if they are right.

    Ours may be off by twice what eager PyTorch is off in this dtype, a peer by eight times that. Of `pair_attention`
    some pairs are looked at, since the float64 matrix of all would not fit. Gradients are looked at where they are
    those of the op's own arguments. A case or a provider with `agree` has a judge of its own.
    """
    if provider.name in NOT_THE_OP:
        return ""
    agree = provider.agree or case.agree
    if agree is not None:
        with torch.set_grad_enabled(case.records):
            return agree(provider.results(*case.args), case)
    rows = _closed_rows(case) if case.op == "pair_attention" else None
    wanted = case.wanted if provider.prepare is None else ()
    inputs = case.inputs if rows is None else _of_rows(case.inputs, rows)
    doubled = tuple(t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs)
    exact, plain = (_outcome(case.eager, given, wanted, len(case.args)) for given in (doubled, inputs))
    found = _outcome(provider.results, case.inputs, wanted, len(case.args))
    for i, (got, true, rounded) in enumerate(zip(found, exact, plain, strict=False)):
        got, rounded = (got if rows is None else got[rows]).double(), rounded.double()
        floor = 32 * torch.finfo(torch.float32).eps * true.abs().max().item()
        allowed = (2 if provider.ours else 8) * (rounded - true).abs().max().item() + floor
        error = (got - true).abs().nan_to_num(nan=math.inf).max().item()
        if not error <= allowed:
            return f"number {i} of results and gradients is off by {error:.3g}, {allowed:.3g} allowed"
    return ""


def _outcome(function: Callable, inputs: tuple, wanted: tuple[int, ...], count: int) -> list[Tensor]:
    """All results for the first `count` inputs, or the first result and the gradients for the last input."""
    if not wanted:
        with torch.no_grad():
            return tensors(function(*inputs[:count]))
    args = [t.detach().requires_grad_() if i in wanted else t for i, t in enumerate(inputs[:count])]
    result = first(function(*args))
    grad = inputs[-1].to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, [args[i] for i in wanted], grad)]


def _closed_rows(case: Case, count: int = 4) -> list[int]:
    """Some samples, first and last among them, whose partners are among them too."""
    index = case.inputs[2].tolist()
    rows: dict[int, None] = {}
    for row in (0, len(index) - 1, *range(len(index))):
        if len(rows) < count:
            rows |= {row: None, index[row]: None}
    return list(rows)


def _of_rows(inputs: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
    """The inputs of some samples alone."""
    place = {row: i for i, row in enumerate(rows)}

    def part(tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.int64:
            return torch.tensor([place[row] for row in tensor[rows].tolist()], device=tensor.device)
        return tensor[rows]

    return tuple(map(part, inputs))
