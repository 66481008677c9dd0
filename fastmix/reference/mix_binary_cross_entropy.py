from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mix_cross_entropy import labelled, one_hot, pair_of_weights, reduced
from .pixels import acc_dtype


def mix_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor | float,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
    ignore_index: int = -100,
    threshold: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Reference of `fastmix.ops.mix_binary_cross_entropy`; stores the mixed targets, (N, K)."""
    z = logits.to(acc_dtype(logits.dtype))
    classes = z.shape[1]
    weights = pair_of_weights(lam, lam_b, z)
    if target.dim() == 2:
        counted = valid = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
        targets = [
            torch.where((_column(weight) == 0) & ~t.isfinite(), 0, t.to(z.dtype)) * (1 - smoothing) + 0.5 * smoothing
            for weight, t in zip(weights, (target, target_b), strict=True)
        ]
    else:
        counts, labels, valid = labelled(z, (target, target_b), ignore_index)
        counted = counts[0] | counts[1]
        weights = [torch.where(count, weight, 0) for weight, count in zip(weights, counts, strict=True)]
        z = torch.where(counted[:, None], z, 0)
        off = smoothing / classes
        on = 1 - smoothing + off
        targets = [torch.where(one_hot(label, z), torch.full_like(z, on), off) for label in labels]
    weights = [_column(weight) for weight in weights]
    if threshold is not None:
        soft = targets[0] * weights[0] + targets[1] * weights[1]
        targets, weights = [(soft > threshold).to(z.dtype)], [torch.ones_like(soft)]
    terms = -F.logsigmoid(-z)
    for weight, t in zip(weights, targets, strict=True):
        # A target or weight of 0 removes an infinite logit.
        terms = terms - weight * (t * torch.where((weight * t == 0) & ~z.isfinite(), 0, z))
    rows = terms.sum(1) if sum_classes else terms.mean(1)
    return reduced(torch.where(valid, rows, torch.nan), counted, reduction)


def _column(weight: Tensor) -> Tensor:
    return weight[:, None] if weight.dim() else weight
