"""What every compiled backend of every op must do. The same bodies run on the CPU kernels, where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from support import assert_same_bits, backends, bits, call, each_op, random_call

from fastmix import ops
from fastmix.testing import assert_matches

HALVES = [torch.float16, torch.bfloat16]
FLOATS = [*HALVES, torch.float32]
every_backend = pytest.mark.parametrize(("op", "device", "backend"), each_op())
one_draw_or_two = pytest.mark.parametrize("draws", [None, 2])


@every_backend
@pytest.mark.parametrize("seed", range(16))
def test_random_calls_match_the_reference(op, device, backend, seed):
    given = random_call(op, device, seed)
    assert_matches(given.op, *given.args, **given.options, backend=backend)


@every_backend
@pytest.mark.parametrize("dtype", FLOATS)
def test_draws_are_the_single_calls(op, device, backend, dtype):
    both = call(op, device, dtype, draws=2)
    found, singles = both.run(backend), [both.draw(d).run(backend) for d in range(2)]
    results = len(found) - len(both.leaves)
    for d in range(2):
        for together, alone in zip(found[d:results:2], singles[d], strict=False):
            assert_same_bits(together, alone)
    for i, leaf in enumerate(both.leaves):
        gradient, parts = found[results + i], [single[results // 2 + i] for single in singles]
        if any(leaf is tensor for tensor in both.shared):
            # Whether the parts are rounded before they are added is left open.
            expected, roundings = sum(part.double() for part in parts), 2 * torch.finfo(dtype).eps
            bound = roundings * expected.abs().max().item()
            torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=bound)
        else:
            assert_same_bits(gradient, torch.stack(parts))


@every_backend
@one_draw_or_two
def test_a_thousand_runs_give_the_same_bits(op, device, backend, draws):
    # Large enough for reductions over several blocks.
    shape = (3, 300, 48) if op == "pair_attention" else (3, 3, 200, 210)
    given = call(op, device, torch.bfloat16, shape=shape, draws=draws)
    first = [bits(t) for t in given.run(backend)]
    differing = torch.zeros((), dtype=torch.int64, device=device)
    for _ in range(1000 if device == "cuda" else 5):
        for kept, again in zip(first, given.run(backend), strict=True):
            differing += (kept != bits(again)).sum()
    assert differing == 0


@every_backend
@one_draw_or_two
def test_a_second_derivative_is_the_reference_s(op, device, backend, draws):
    given = call(op, device, draws=draws)
    found = []
    for each in (backend, "reference"):
        loss = sum(r.square().sum() for r in given.results(each))
        gradients = torch.autograd.grad(loss, given.leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), given.leaves))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@every_backend
def test_a_graph_kept_gives_the_same_gradient_twice(op, device, backend):
    given = call(op, device)
    results = given.results(backend)
    cotangents = [r.detach().sin() for r in results]
    first = torch.autograd.grad(results, given.leaves, cotangents, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(results, given.leaves, cotangents), strict=True):
        assert_same_bits(a, b)


@every_backend
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_changes_nothing(op, device, backend, dtype):
    """An op computes in the dtype of its images, queries and keys: whoever calls it has chosen that."""
    given = call(op, device)
    plain = given.run(backend)
    with torch.autocast(device, dtype=dtype):
        found = given.run(backend)
    for a, b in zip(found, plain, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(("device", "backend"), backends("pair_attention", reference=False))
def test_under_autocast_queries_come_in_half_precision(device, backend):
    features, weight = torch.randn(3, 20, 24, device=device), torch.randn(16, 24, device=device, requires_grad=True)
    index, v = torch.tensor([1, 2, 0], device=device), torch.randn(3, 20, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        q = torch.nn.functional.linear(features, weight)
        out = ops.pair_attention(q, q, v, index, backend=backend)
    out.sum().backward()
    assert q.dtype is torch.bfloat16 and out.dtype is torch.float32
    assert weight.grad.dtype is torch.float32 and weight.grad.isfinite().all()


@every_backend
@one_draw_or_two
def test_compiles_into_one_graph(op, device, backend, draws):
    torch.compiler.reset()
    given = call(op, device, draws=draws)
    compiler = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(lambda *leaves: given.results(backend, *leaves), fullgraph=True, backend=compiler)
    found = compiled(*given.leaves)
    gradients = torch.autograd.grad(found, given.leaves, [r.detach().cos() for r in found])
    for a, b in zip((*found, *gradients), given.run(backend), strict=True):
        torch.testing.assert_close(a.detach(), b)
