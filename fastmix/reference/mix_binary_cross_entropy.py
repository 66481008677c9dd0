from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mix_cross_entropy import labelled, pair_of_weights, reduced
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
        own, partner = (t.to(z.dtype) * (1 - smoothing) + 0.5 * smoothing for t in (target, target_b))
    else:
        counts, labels, valid = labelled(z, (target, target_b), ignore_index)
        counted = counts[0] | counts[1]
        weights = [weight * count for weight, count in zip(weights, counts, strict=True)]
        off = smoothing / classes
        on = 1 - smoothing + off
        one_hot = (F.one_hot(label, classes).bool() for label in labels)
        own, partner = (torch.where(hot, torch.full_like(z, on), torch.full_like(z, off)) for hot in one_hot)
    soft = own * _column(weights[0]) + partner * _column(weights[1])
    if threshold is not None:
        soft = (soft > threshold).to(z.dtype)
    # A target of 0 takes no part in the product, whatever the logit.
    terms = -F.logsigmoid(-z) - soft * torch.where(soft == 0, 0, z)
    rows = terms.sum(1) if sum_classes else terms.mean(1)
    return reduced(torch.where(valid, rows, torch.nan), counted, reduction)


def _column(weight: Tensor) -> Tensor:
    return weight[:, None] if weight.dim() else weight
