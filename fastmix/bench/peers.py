"""Other people's solvers and attentions for single ops. What mixes whole batches is in `mixing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from fastmix.bench.cases import Case, first
from fastmix.bench.plans import plan_costs
from fastmix.bench.provider import NOT_THE_OP, Provider


def peers(case: Case, device: str) -> list[Provider]:
    """The peers of the case's op; those that are not installed say so by an empty version."""
    return _PEERS[case.op](case, device) if case.op in _PEERS else []


def attention_peers(case: Case, device: str) -> list[Provider]:
    """Attention kernels on keys already gathered and values already padded by zeros, which favours them.

    The value has one column; a peer gets the fewest columns that it takes: those of the queries for FlashAttention
    and cuDNN, 8 for the memory efficient kernel, 16 for FlexAttention.
    """
    d, dtype = case.inputs[0].shape[2], case.inputs[0].dtype

    def peer(name: str, call: Callable, columns: int) -> Provider:
        def prepare(q: Tensor, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            value = F.pad(v.to(q.dtype).unsqueeze(2), (0, columns - 1))
            return q.unsqueeze(1), q[index].unsqueeze(1), value.unsqueeze(1)  # [N, 1, r, d or columns]

        return Provider(
            f"{name}, {columns} value columns",
            call,
            wanted=(0, 1, 2) if case.wanted else (),
            prepare=prepare,
            result=lambda out: first(out)[:, 0, :, 0],
            cotangent=lambda grad: F.pad(grad.to(dtype).unsqueeze(2), (0, columns - 1)).unsqueeze(1),
        )

    def sdpa(backend: SDPBackend) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    found = [peer("SDPA flash", sdpa(SDPBackend.FLASH_ATTENTION), d)]
    if device == "cuda":
        found += [
            peer("SDPA efficient", sdpa(SDPBackend.EFFICIENT_ATTENTION), 8),
            peer("SDPA cuDNN", sdpa(SDPBackend.CUDNN_ATTENTION), d),
            peer("FlexAttention", torch.compile(flex_attention, dynamic=False), 16),
        ]
    if not case.wanted:
        found.append(Provider(NOT_THE_OP[1], torch.bmm, prepare=lambda q, v, index: (q, q[index].transpose(1, 2))))
    return found


def _cut_peers(case: Case, device: str) -> list[Provider]:
    """The solver that PuzzleMix's published code calls, one grid after another. Its energies are not always least."""
    if device != "cpu":
        return []
    levels = torch.linspace(0, 1, case.inputs[0].shape[3])
    distance = ((levels[:, None] - levels) ** 2).numpy()

    def call(*costs: Any) -> list:
        import gco

        return [
            gco.cut_grid_graph(unary, distance, *weights, n_iter=-1, algorithm="swap")
            for unary, *weights in zip(*costs, strict=True)
        ]

    def agree(found: list, case: Case) -> str:
        from fastmix import ops

        wanted = ops.grid_cut(*case.args, "swap")[0].flatten(1)
        got = torch.stack([torch.as_tensor(labels).int() for labels in found])
        return "" if torch.equal(got, wanted) else "labels differ from those of grid_cut's solver 'swap'"

    return [
        Provider("gco", call, prepare=lambda *costs: [c.numpy() for c in costs], agree=agree, package="gco-wrapper")
    ]


def _transport_peers(case: Case, device: str) -> list[Provider]:
    """scipy gets its cost matrices ready-made and leaves out hidden targets."""
    if device != "cpu" or not case.name.startswith("transport/exact"):
        return []

    def call(costs: list) -> list:
        from scipy.optimize import linear_sum_assignment

        return [linear_sum_assignment(cost) for cost in costs]

    return [
        Provider("scipy", call, prepare=lambda *maps: [plan_costs(*maps)], agree=lambda out, case: "", package="scipy")
    ]


_PEERS: dict[str, Callable[[Case, str], list[Provider]]] = {
    "pair_attention": attention_peers,
    "grid_cut": _cut_peers,
    "transport": _transport_peers,
}
