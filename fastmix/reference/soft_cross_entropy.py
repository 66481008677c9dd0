from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mix_cross_entropy import pair_of_weights, reduced, without_void
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
    if target_b is None:
        rows = _term(F.log_softmax(z, 1), target, smoothing)
    else:
        weights = pair_of_weights(lam, lam_b, z)
        z, void = without_void(z, weights)
        log_p = F.log_softmax(z, 1)
        rows = sum(
            weight * _kept_term(weight, void, log_p, t, smoothing)
            for weight, t in zip(weights, (target, target_b), strict=True)
        )
    return reduced(rows, torch.ones_like(rows, dtype=torch.bool), reduction)


def _kept_term(weight: Tensor, void: Tensor, log_p: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """The cross entropy of each row; a weight of 0 removes one that is not finite, with its targets."""
    gone = (weight == 0) & (void | ~_term(log_p, target, smoothing).isfinite())
    return torch.where(gone, 0, _term(log_p, torch.where(gone[:, None], 0, target), smoothing))


def _term(log_p: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of each row with the smoothed target; a target of 0 takes no part, whatever the logit."""
    target = target.to(log_p.dtype)
    term = -(target * torch.where(target == 0, 0, log_p)).sum(1)
    return (1 - smoothing) * term - smoothing * log_p.mean(1) if smoothing else term
