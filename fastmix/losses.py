"""Cross entropies for mixed targets: two class numbers and one weight, never a dense label tensor."""

from __future__ import annotations

import torch
from torch import Tensor

_REDUCTIONS = ("mean", "sum", "none")


def mix_cross_entropy(
    logits: Tensor,
    target: Tensor,
    target_b: Tensor,
    lam: Tensor | float,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of a mixed sample, ``lam * CE(target) + (1 - lam) * CE(target_b)``.

    For one row ``z`` of the logits with ``K`` classes and label smoothing ``e`` (the convention of timm and of
    ``torch.nn.functional.cross_entropy``)::

        lse(z) - (1 - e) * (lam * z[target] + (1 - lam) * z[target_b]) - e * mean(z)

    which is the mixup loss of Zhang et al. 2018 (equation 2 of the AutoMix paper) and equals the soft-target
    cross entropy with the two smoothed one-hot labels mixed. The logits are read by one log-sum-exp and one
    gather of two columns; no ``(N, K)`` label tensor exists.

    Args:
        logits: ``(N, K)`` floating point; half precision is computed in float32.
        target, target_b: ``(N,)`` int64 class numbers in ``[0, K)`` of the own image and of its partner.
        lam: weight of the own image's label in ``[0, 1]``, a float or a tensor ``()`` or ``(N,)``; may need a
            gradient.
        smoothing: label smoothing ``e`` in ``[0, 1)``.
        reduction: ``"mean"`` over the rows, ``"sum"`` or ``"none"``.

    Returns:
        A float32 tensor (float64 for float64 logits), ``()`` or, with ``"none"``, ``(N,)``.

    Raises:
        TypeError: logits not floating point or a target not int64.
        ValueError: a wrong shape, a smoothing outside ``[0, 1)`` or an unknown reduction.

    Example:
        >>> logits, y = torch.zeros(2, 10), torch.tensor([1, 2])
        >>> mix_cross_entropy(logits, y, y.flip(0), 0.3)
        tensor(2.3026)
    """
    _check(logits, target, target_b, lam, smoothing, reduction)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    lam = on_device(lam, logits.dtype, logits.device)
    pair = logits.gather(1, torch.stack((target, target_b), dim=1))  # [N, 2]
    picked = lam * pair[:, 0] + (1 - lam) * pair[:, 1]
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * logits.mean(dim=1)
    loss = logits.logsumexp(dim=1) - picked  # [N]
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def on_device(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A weight as a tensor; a number is filled in by the device, which `torch.as_tensor` would wait for."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


def _check(logits, target, target_b, lam, smoothing, reduction) -> None:
    where = "fastmix.mix_cross_entropy"
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{where}: logits must be a floating point tensor, got {got}")
    if logits.dim() != 2:
        raise ValueError(f"{where}: logits must have shape (N, K), got {tuple(logits.shape)}")
    rows = logits.shape[0]
    for name, value in (("target", target), ("target_b", target_b)):
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{where}: {name} must be int64 of shape ({rows},), got {got}")
        if value.shape != (rows,):
            raise ValueError(f"{where}: {name} must be int64 of shape ({rows},), got shape {tuple(value.shape)}")
    if isinstance(lam, Tensor) and lam.shape not in ((), (rows,)):
        raise ValueError(f"{where}: lam must have shape () or ({rows},), got {tuple(lam.shape)}")
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"{where}: smoothing must be in [0, 1), got {smoothing}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{where}: reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
