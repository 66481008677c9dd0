from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def saliency_pool(grad: Tensor, blocks: int | tuple[int, int]) -> Tensor:
    """Reference of `fastmix.ops.saliency_pool`, computed in float64."""
    rows, columns = (blocks, blocks) if isinstance(blocks, int) else blocks
    g = grad.detach().double()
    g = g / g.abs().amax((1, 2, 3), keepdim=True)  # the result does not depend on the scale, but squares overflow
    saliency = g.square().mean(1, keepdim=True).sqrt()
    pooled = F.avg_pool2d(saliency, (g.shape[2] // rows, g.shape[3] // columns)).squeeze(1)
    share = pooled / pooled.sum((1, 2), keepdim=True)
    usable = share.isfinite().all(2, keepdim=True).all(1, keepdim=True)
    return torch.where(usable, share, 1 / (rows * columns)).float()
