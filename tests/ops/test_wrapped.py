"""Wrapped tensors: what a kernel would read at their address is not what they hold.

Every op under every wrapper must be right, or raise one RuntimeError that names it. A process of its own runs the
table, line by line, so that a crash fails a test instead of ending the run.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from op_cases import differentiable, op_cases
from support import flat
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, jvp, linearize, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fastmix import ops

CASES = op_cases()


class Logger(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def close(found: object, expected: object) -> None:
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype is b.dtype, f"{a.dtype} {tuple(a.shape)}"
        torch.testing.assert_close(torch.Tensor(a) if type(a) is Subclass else a, b, rtol=1e-4, atol=1e-5)


def run_functionalize(function, tensors):
    close(functionalize(function)(*tensors), function(*tensors))


def recorded(name: str, graph: torch.fx.GraphModule) -> None:
    targets = [str(node.target) for node in graph.graph.nodes]
    assert any(target.startswith("fastmix.") for target in targets), f"{name}: no kernel in {targets}"


def run_make_fx(mode: str, **options) -> Callable:
    def run(function, tensors):
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(lambda *given: function(*given), tracing_mode=mode, **options)(*tensors)
        recorded(mode, graph)
        others = [t.flip(0).contiguous() for t in tensors] if all(t.shape[:1] == (4,) for t in tensors) else tensors
        close(graph(*tensors), function(*tensors))
        close(graph(*others), function(*others))

    return run


def run_jit_trace(function, tensors):
    traced = torch.jit.trace(function, tuple(tensors))
    assert "fastmix::" in str(traced.inlined_graph)
    close(traced(*tensors), function(*tensors))


def run_zero(function, tensors):
    for i, tensor in enumerate(tensors):
        given, plain = list(tensors), list(tensors)
        plain[i] = torch.zeros_like(tensor)
        # The second lies at an offset, which is all that its address says.
        for zeros in torch._efficientzerotensor((2, *tensor.shape), dtype=tensor.dtype):
            given[i] = zeros
            close(function(*given), function(*plain))


def run_negated(function, tensors):
    for i, tensor in enumerate(tensors):
        if tensor.dtype in (torch.bool, torch.uint8):
            continue
        given = list(tensors)
        given[i] = torch._neg_view(-tensor)
        close(function(*given), function(*tensors))


def run_conjugated(function, tensors):
    for i, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            given = list(tensors)
            given[i] = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
            assert given[i].is_neg()
            close(function(*given), function(*tensors))


def run_functional_wrapper(function, tensors):
    wrapped = [torch._to_functional_tensor(tensor) for tensor in tensors]
    found = flat(function(*wrapped))
    assert all(map(torch._is_functional_tensor, found))
    close([torch._from_functional_tensor(result) for result in found], function(*tensors))


def run_no_storage(function, tensors):
    # The first alone: torch itself reads the address of what it has to convert.
    first = tensors[0].clone()
    first.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        function(first, *tensors[1:])


def run_vmap(function, tensors):
    stacked = [torch.stack((tensor, tensor.flip(0))) for tensor in tensors]
    found = flat(vmap(function)(*stacked))
    for b in range(2):
        close([part[b] for part in found], function(*(part[b].contiguous() for part in stacked)))


def run_vmap_each(function, tensors):
    for i, tensor in enumerate(tensors):
        given, dims = list(tensors), [None] * len(tensors)
        given[i], dims[i] = torch.stack((tensor, tensor.flip(0))), 0
        found = flat(vmap(function, tuple(dims))(*given))
        for b in range(2):
            given[i] = (tensor, tensor.flip(0).contiguous())[b]
            close([part[b] for part in found], function(*given))


def run_fake(function, tensors):
    from torch._subclasses.fake_tensor import FakeTensorMode

    expected = flat(function(*tensors))
    with FakeTensorMode() as mode:
        found = flat(function(*map(mode.from_tensor, tensors)))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype is b.dtype and a.stride() == b.stride()


def run_meta(function, tensors):
    found = flat(function(*(tensor.to("meta") for tensor in tensors)))
    for a, b in zip(found, flat(function(*tensors)), strict=True):
        assert a.device.type == "meta" and a.shape == b.shape and a.dtype is b.dtype


def run_logger(function, tensors):
    expected = function(*tensors)
    with Logger() as log:
        close(function(*tensors), expected)
    assert any(name.startswith("fastmix.") for name in log.seen), log.seen


def run_subclass(function, tensors):
    close(function(*(tensor.as_subclass(Subclass) for tensor in tensors)), function(*tensors))


def run_inference(function, tensors):
    expected = function(*tensors)
    with torch.inference_mode():
        inside = [tensor.clone() for tensor in tensors]
        close(function(*inside), expected)
    with torch.no_grad():
        close(function(*inside), expected)


def run_export(function, tensors):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    program = torch.export.export(Module(), tuple(tensors), strict=False)
    close(program.module()(*tensors), function(*tensors))


WRAPPERS: dict[str, Callable] = {
    "functionalize": run_functionalize,
    "make_fx real": run_make_fx("real"),
    "make_fx above autograd": run_make_fx("real", pre_dispatch=True),
    "make_fx fake": run_make_fx("fake"),
    "make_fx symbolic": run_make_fx("symbolic"),
    "jit.trace": run_jit_trace,
    "zero tensor": run_zero,
    "negated view": run_negated,
    "conjugated view": run_conjugated,
    "functional wrapper": run_functional_wrapper,
    "no storage": run_no_storage,
    "vmap": run_vmap,
    "vmap over one argument": run_vmap_each,
    "fake": run_fake,
    "meta": run_meta,
    "dispatch mode": run_logger,
    "subclass": run_subclass,
    "inference": run_inference,
    "export": run_export,
}


def scalar(result: object) -> Tensor:
    """A number whose derivative by each result is another."""
    return sum((r.square() * torch.linspace(1, 2, r.numel()).view_as(r)).sum() for r in flat(result))


def derivatives(name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each of `torch.func` and forward mode against what reverse mode says of float64 tensors."""
    function, tensors = CASES[name]
    names, values = list(tensors), [t.double() if t.dtype is torch.float32 else t for t in tensors.values()]
    asked = [i for i, key in enumerate(names) if differentiable(name, key, values[i])]
    points = [values[i] for i in asked]

    def of(*given: Tensor) -> Tensor:
        filled = list(values)
        for i, value in zip(asked, given, strict=True):
            filled[i] = value
        return scalar(function(*filled))

    leaves = [point.clone().requires_grad_() for point in points]
    expected = torch.autograd.grad(of(*leaves), leaves)
    slope = sum((g * p).sum() for g, p in zip(expected, points, strict=True))

    def by_dual_numbers():
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(of(*(forward_ad.make_dual(p, p) for p in points))).tangent
        assert tangent is not None, "the tangent was dropped"
        torch.testing.assert_close(tangent, slope)

    def by_functionalize():
        close(functionalize(of)(*points), of(*points))
        torch.autograd.grad(functionalize(of)(*leaves), leaves)

    def compiled_func_grad():
        torch.compiler.reset()
        compiled = torch.compile(torch.func.grad(of, tuple(range(len(points)))), backend="eager")
        close(compiled(*points), expected)

    def batched():
        result = of(*leaves)
        twice = torch.autograd.grad(result, leaves, torch.tensor([1.0, 2.0], dtype=result.dtype), is_grads_batched=True)
        close(list(twice), [torch.stack((g, 2 * g)) for g in expected])

    def gradient_penalty():
        argnums = tuple(range(len(points)))
        slopes = torch.autograd.grad(of(*leaves), leaves, create_graph=True)
        found = torch.autograd.grad(sum(g.square().sum() for g in slopes), leaves)
        penalty = torch.func.grad(lambda *p: sum(g.square().sum() for g in torch.func.grad(of, argnums)(*p)), argnums)
        close(list(found), list(penalty(*points)))

    yield "gradient penalty", gradient_penalty
    yield "func.grad", lambda: close(torch.func.grad(of, tuple(range(len(points))))(*points), expected)
    yield "jvp", lambda: torch.testing.assert_close(jvp(of, tuple(points), tuple(points))[1], slope)
    yield "linearize", lambda: torch.testing.assert_close(linearize(of, *points)[1](*points), slope)
    yield "dual level", by_dual_numbers
    yield "grad through functionalize", by_functionalize
    yield "compiled func.grad", compiled_func_grad
    yield "batched gradients", batched


def outputs(name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """`out=` in a wrapper."""
    function, tensors = CASES[name]
    expected = function(*tensors.values())
    stacked = torch.stack(expected) if name == "blend draws" else flat(expected)[0]

    def into(out: Tensor) -> Tensor:
        options = {"activation": "sigmoid"} if name == "mask_blend" else {}
        getattr(ops, name.split()[0])(*tensors.values(), out=out, **options)
        return out

    yield "out, negated view", lambda: close(into(torch._neg_view(torch.empty_like(stacked))), stacked)
    yield "out, zero tensor", lambda: close(into(torch._efficientzerotensor(stacked.shape)), stacked)
    yield (
        "out, functionalize",
        lambda: close(functionalize(lambda o: into(o.clone()))(stacked.clone().zero_()), stacked),
    )

    def in_mode():
        with Logger() as log:
            close(into(torch.empty_like(stacked)), stacked)
        assert any(seen.startswith("fastmix.") for seen in log.seen)

    yield "out, dispatch mode", in_mode

    def of_inference():
        with torch.inference_mode():
            out = torch.empty_like(stacked)
        with torch.no_grad():
            close(into(out), stacked)

    yield "out, inference tensor", of_inference


OUTPUTS = ("blend", "blend draws", "box_blend", "box_blend lam", "flip_blend", "mask_blend")


# What imports and traces with the whole of Dynamo takes longer than all others together.
SLOW = ("make_fx fake", "make_fx symbolic", "export", "compiled func.grad")


def rows() -> Iterator[tuple[str, str, Callable[[], None]]]:
    """The table: case, wrapper, check."""
    for name, (function, tensors) in CASES.items():
        values = list(tensors.values())
        for wrapper, check in WRAPPERS.items():
            yield name, wrapper, lambda check=check, function=function, values=values: check(function, values)
        if any(differentiable(name, key, value) for key, value in tensors.items()):
            for wrapper, check in derivatives(name):
                yield name, wrapper, check
        if name in OUTPUTS:
            for wrapper, check in outputs(name):
                yield name, wrapper, check


def report(slow: bool) -> None:
    """Print what came of each row, before it and after, so that a crash has a name."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, wrapper, check in rows():
        if (wrapper in SLOW) is not slow:
            continue
        print(json.dumps([name, wrapper, "crashed"]), flush=True)
        try:
            check()
            outcome = "right"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps([name, wrapper, outcome]), flush=True)


@functools.cache
def outcomes(slow: bool) -> dict[tuple[str, str], str]:
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-c", f"import test_wrapped; test_wrapped.report({slow})"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=600)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert found, done.stderr
    return {(name, wrapper): outcome for name, wrapper, outcome in found}


CLEAR = ("RuntimeError: fastmix.", "ValueError: fastmix.")


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "slow"])
@pytest.mark.parametrize("name", CASES)
def test_right_or_a_clear_error_under_every_wrapper(name, slow):
    mine = {wrapper: outcome for (case, wrapper), outcome in outcomes(slow).items() if case == name}
    due = {wrapper for wrapper in WRAPPERS if (wrapper in SLOW) is slow}
    assert set(mine) >= due, f"the process ended before {sorted(due - set(mine))}"
    wrong = {w: o for w, o in mine.items() if o != "right" and not o.startswith(CLEAR)}
    assert not wrong, "\n".join(f"{w}: {o}" for w, o in wrong.items())


def test_a_trace_keeps_the_scale_of_float64():
    q, v, index = torch.rand(3, 6, 5, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64), torch.arange(3)
    traced = torch.jit.trace(lambda q, v: ops.pair_attention(q, q, v, index), (q.flip(0), v))
    torch.testing.assert_close(traced(q, v), ops.pair_attention(q, q, v, index), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in CASES if not any(differentiable(name, *i) for i in CASES[name][1].items())]
)
def test_ops_without_derivatives_are_constants_of_forward_mode(name):
    function, tensors = CASES[name]
    for i, tensor in enumerate(tensors.values()):
        if not tensor.is_floating_point():
            continue
        given = list(tensors.values())
        with forward_ad.dual_level():
            given[i] = forward_ad.make_dual(tensor, torch.ones_like(tensor))
            found = [forward_ad.unpack_dual(result) for result in flat(function(*given))]
        assert all(result.tangent is None for result in found)
        close([result.primal for result in found], function(*tensors.values()))


def test_every_op_is_in_the_table():
    assert {name.split()[0] for name in CASES} == set(ops.__all__)
