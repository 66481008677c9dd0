"""Writes the stored Mix Block vectors beside this file: `python tests/data/make_mix_block.py`.

The numbers come from `fastmix/bench/published_mix.py`, the literal composition (partner gathered, lambda
concatenated, two projections, stored attention matrix), in float64. Names and meaning of the arrays are those
of the vectors made with the released code: `loss = sum(mask * R)` has gradients `grad.*`, `sum(blended * R[:,
:1])` has `gradB.*`, and the mask loss with margin 0 and lam 0.93 has `gradL1.*`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmix.bench.published_mix import PublishedMixBlock, published_blend, published_mask_loss

HERE = Path(__file__).resolve().parent

CASES = {
    "mix_block_nearest": dict(N=5, C=16, h=4, s=4, mode="nearest", lam=0.5, lam_embed="none", spread=1.0),
    "mix_block_lam": dict(N=4, C=12, h=5, s=3, mode="bilinear", lam=0.13, lam_embed="qkv", spread=1.0),
    "mix_block_lam_value": dict(N=3, C=10, h=3, s=6, mode="bicubic", lam=0.87, lam_embed="v", spread=1.0),
    "mix_block_peaky": dict(N=4, C=14, h=4, s=2, mode="bilinear", lam=1.0, lam_embed="qkv", spread=6.0),
}


def make(name: str, seed: int) -> None:
    case = CASES[name]
    n, c, h, size = case["N"], case["C"], case["h"], case["h"] * case["s"]
    g = torch.Generator().manual_seed(seed)
    block = PublishedMixBlock(c, lam_embed=case["lam_embed"], mode=case["mode"]).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * case["spread"] / c**0.5)
    z = torch.randn(n, c, h, h, generator=g).relu()
    index = torch.randint(0, n, (n,), generator=g)
    x_int8 = torch.randint(-128, 128, (n, 3, size, size), generator=g, dtype=torch.int8)
    r_int8 = torch.randint(-128, 128, (n, 2, size, size), generator=g, dtype=torch.int8)
    x, r = x_int8.double() / 64, r_int8.double() / 128

    leaf = z.double().requires_grad_()
    logits = block.logits(leaf, case["lam"], index)
    mask = block(leaf, case["lam"], index, case["s"])
    blended = published_blend(x, mask, index)
    losses = {
        "grad": (mask * r).sum(),
        "gradB": (blended * r[:, :1]).sum(),
        "gradL1": published_mask_loss(mask, 0.93, 0.0),
    }
    arrays = dict(
        z=z, index=index, lam=np.float64(case["lam"]), scale_factor=np.int64(case["s"]),
        x_int8=x_int8, x_scale=np.float64(1 / 64), R_int8=r_int8, R_scale=np.float64(1 / 128),
        low_logits=logits, mask_j=mask[:, 1], mask_mean_i=mask[:, 0].mean(), blended=blended,
        blended_stride=np.int64(1), options=json.dumps(case),
    )  # fmt: skip
    names = [key for key, _ in block.named_parameters()]
    arrays |= {f"w.{key}": parameter.float() for key, parameter in block.named_parameters()}
    for prefix, loss in losses.items():
        gradients = torch.autograd.grad(loss, [leaf, *block.parameters()], retain_graph=True)
        arrays[f"{prefix}_z"] = gradients[0]
        arrays |= {f"{prefix}.{key}": value for key, value in zip(names, gradients[1:], strict=True)}
    arrays = {key: value.detach().numpy() if isinstance(value, Tensor) else value for key, value in arrays.items()}
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        make(name, seed)
