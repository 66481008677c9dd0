from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mix_cross_entropy import pair_of_weights, reduced, weighted
from .pixels import acc_dtype


def soft_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor | None = None,
    lam: Tensor | float | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
    *,
    lam_b: Tensor | float | None = None,
) -> Tensor:
    """Reference of `fastmix.ops.soft_cross_entropy`; stores the log-probabilities."""
    z = logits.to(acc_dtype(logits.dtype))
    log_p = F.log_softmax(z, 1)
    if target_b is None:
        rows = _term(log_p, target, smoothing)
    else:
        weights = pair_of_weights(lam, lam_b, z)
        own, partner = (_term(log_p, t, smoothing) for t in (target, target_b))
        rows = weighted(weights[0], own) + weighted(weights[1], partner)
    return reduced(rows, torch.ones_like(rows, dtype=torch.bool), reduction)


def _term(log_p: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of each row with the smoothed target; a target of 0 takes no part, whatever the logit."""
    target = target.to(log_p.dtype)
    term = -(target * torch.where(target == 0, 0, log_p)).sum(1)
    return (1 - smoothing) * term - smoothing * log_p.mean(1) if smoothing else term
