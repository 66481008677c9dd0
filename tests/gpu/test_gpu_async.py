"""Streams, graph capture and host waits: every op on a GPU only ever queues work on the current stream."""

from __future__ import annotations

import pytest
import torch
from support import Call, assert_same_bits, bits, call, capture, each_op, no_host_wait
from torch import Tensor

from fastmix.testing import poisoned

pytestmark = pytest.mark.gpu
every_backend = pytest.mark.parametrize(("op", "device", "backend"), each_op("cuda"))
one_draw_or_two = pytest.mark.parametrize("draws", [None, 2])
HALF_A_SECOND = 900_000_000  # cycles of a clock below 2 GHz


def test_the_debug_mode_sees_a_host_wait():
    with no_host_wait(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones((), device="cuda").item()


@every_backend
@one_draw_or_two
def test_the_host_never_waits(op, device, backend, draws):
    calls = [call(op, device, draws=draws), call(op, device, draws=draws, grad=False)]
    if op != "pair_attention":
        normalized = call(op, device, draws=draws, shape=(5, 3, 16, 24), layout="channels_last")
        normalized.options |= {"normalize": ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), "dtype": torch.bfloat16}
        calls.append(normalized)
    for given in calls:
        given.run(backend)
        with no_host_wait():
            given.run(backend)


@every_backend
def test_a_busy_default_stream_is_not_waited_for(op, device, backend):
    given, side = call(op, device, draws=2), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())

    def found_again(expected: list[Tensor]) -> Tensor:
        # Results start as NaN: a part that another stream still has to write shows.
        with poisoned():
            found = given.run(backend)
        return torch.stack([(bits(a) == bits(b)).all() for a, b in zip(found, expected, strict=True)]).all()

    with torch.cuda.stream(side):
        expected = given.run(backend)
        # Code is loaded and memory is cached by now, either of which makes the device wait.
        assert all(found_again(expected).item() for _ in range(3))
    torch.cuda.synchronize()
    torch.cuda._sleep(HALF_A_SECOND)
    with torch.cuda.stream(side):
        assert found_again(expected).item()
    assert not torch.cuda.default_stream().query(), "the result came after the work of the default stream"


@every_backend
@one_draw_or_two
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
def test_a_captured_call_serves_new_inputs(op, device, backend, draws, layout):
    if op == "pair_attention" and layout != "contiguous":
        pytest.skip("it takes no images")
    inputs = [call(op, device, torch.bfloat16, layout, draws=draws, seed=seed) for seed in range(3)]
    static = call(op, device, torch.bfloat16, layout, draws=draws)
    graph, found = capture(lambda: static.run(backend))
    for given in (*inputs[1:], inputs[0]):
        with torch.no_grad():
            for kept, new in zip(static.tensors, given.tensors, strict=True):
                kept.copy_(new)
        graph.replay()
        for replayed, expected in zip(found, given.run(backend), strict=True):
            assert_same_bits(replayed, expected)


@every_backend
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_partner_out_of_range_spoils_its_own_row_alone(op, device, backend, dtype):
    if op == "pair_attention" and dtype is torch.uint8:
        pytest.skip("it takes no bytes")
    given = call(op, device, dtype)
    expected = given.run(backend)
    n, bad = given.tensors[0].shape[0], [1, 3]
    good = [row for row in range(n) if row not in bad]
    index = next(tensor for tensor in given.tensors if tensor.dtype is torch.int64)
    index[bad] = torch.tensor([n, -(2**40)], device=device)
    found = given.run(backend)
    results = len(found) - len(given.leaves)
    own = [i for i, leaf in enumerate(given.leaves) if not any(leaf is tensor for tensor in given.shared)]
    for i in (*range(results), *(results + i for i in own)):
        spoilt = found[i][bad]
        assert (spoilt == 0).all() if spoilt.dtype is torch.uint8 else spoilt.isnan().all()
        assert_same_bits(found[i][good], expected[i][good])


@every_backend
def test_runs_on_a_device_that_is_not_the_current_one(op, device, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    there = call(op, "cuda:1")
    here = Call(op, tuple(_moved(a) for a in there.args), there.options)
    assert torch.cuda.current_device() == 0
    for a, b in zip(there.run(backend), here.run(backend), strict=True):
        assert a.device == torch.device("cuda:1")
        assert_same_bits(a.to(b.device), b)
    assert torch.cuda.current_device() == 0


def _moved(value):
    return value.detach().to("cuda:0").requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
