from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixels import acc_dtype


def mix_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor | float,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
    ignore_index: int = -100,
    decouple: float = 0.0,
) -> Tensor:
    """Reference of `fastmix.ops.mix_cross_entropy`; stores the log-probabilities."""
    z = logits.to(acc_dtype(logits.dtype))
    counts, labels, valid = labelled(z, (target, target_b), ignore_index)
    weights = [
        torch.where(count, weight, 0) for weight, count in zip(pair_of_weights(lam, lam_b, z), counts, strict=True)
    ]
    z, void = without_void(z, weights)
    log_p = F.log_softmax(z, 1)
    rows = 0
    for weight, count, label in zip(weights, counts, labels, strict=True):
        term = (smoothing - 1) * picked(log_p, label)
        if smoothing:
            term = term - smoothing * log_p.mean(1)
        rows = rows + weighted(weight, torch.where(count & ~void, term, 0))
    if decouple:
        mixed = (labels[0] != labels[1]) & (weights[0] != 0) & (weights[1] != 0)
        for label, other in (labels, labels[::-1]):
            without = z.masked_fill(one_hot(other, z) & mixed[:, None], -torch.inf)
            rows = rows + decouple * torch.where(mixed, without.logsumexp(1) - picked(z, label), 0)
    return reduced(torch.where(valid, rows, torch.nan), counts[0] | counts[1], reduction)


def labelled(z: Tensor, targets: tuple[Tensor, Tensor], ignore_index: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Which labels of a pair count, the labels with 0 for the others, and the rows without a label out of range."""
    counts = [target != ignore_index for target in targets]
    inside = [(target >= 0) & (target < z.shape[1]) for target in targets]
    labels = [torch.where(ok, target, 0) for ok, target in zip(inside, targets, strict=True)]
    return counts, labels, (inside[0] | ~counts[0]) & (inside[1] | ~counts[1])


def pair_of_weights(lam: Tensor | float, lam_b: Tensor | float | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the own and the partner's label in the dtype of `z`, each () or (N,)."""
    own = torch.as_tensor(lam, device=z.device).to(z.dtype)
    return own, 1 - own if lam_b is None else torch.as_tensor(lam_b, device=z.device).to(z.dtype)


def without_void(z: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`z` with 0 in rows that no weight looks at and that have no probabilities, and which rows, (N,), those are.

    Nothing comes of such a row, neither of its NaN to its gradient.
    """
    void = (weights[0] == 0) & (weights[1] == 0) & ~z.amax(1).isfinite()
    return torch.where(void[:, None], 0, z), void


def one_hot(label: Tensor, z: Tensor) -> Tensor:
    """(N, K) bool; unlike that of PyTorch it reads no values, so that `vmap` can follow."""
    return label[:, None] == torch.arange(z.shape[1], device=z.device)


def picked(z: Tensor, label: Tensor) -> Tensor:
    """`z[n, label[n]]`."""
    return z.gather(1, label[:, None])[:, 0]


def weighted(weight: Tensor, term: Tensor) -> Tensor:
    """Their product; a weight of 0 removes a term that is not finite."""
    return weight * torch.where((weight == 0) & ~term.isfinite(), 0, term)


def reduced(rows: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Rows that are not counted are 0, and the mean is that of the others."""
    rows = torch.where(counted, rows, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / counted.sum()
