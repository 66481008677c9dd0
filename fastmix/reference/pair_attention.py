from __future__ import annotations

import torch
from torch import Tensor

from .pixels import acc_dtype, handed_out, no_autocast


def pair_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    transpose: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Reference of `fastmix.ops.pair_attention`; stores the matrix P, (N, r, r) or (D, N, r, r)."""
    acc = acc_dtype(q.dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with no_autocast(q):
        scores = scale * (q.to(acc) @ k.to(acc)[index].mT)  # [..., N, p, s]
        if key_bias is not None:
            scores = scores + key_bias.to(acc).unsqueeze(-2)
        p = torch.softmax(scores, -1)
        out = (p.mT if transpose else p) @ v.to(acc).unsqueeze(-1)
    return handed_out(out.squeeze(-1).to(v.dtype), index)
