"""The mixing of one AutoMix step by fastmix, the counterpart of `published_mix.published_step`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmix.losses import on_device
from fastmix.nn import MixBlock, mask_loss


def fused_step(
    block: MixBlock,
    z: Tensor,
    images: Tensor,
    draws: tuple[tuple[float | Tensor, Tensor], tuple[float | Tensor, Tensor]],
    gamma: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two masks from one launch, one with gradient, two mixes from another, and the mask loss.

    Same arguments and results as `published_step`, with the block that `load_mix_block` makes of its weights.
    """
    lam = torch.stack([on_device(lam, torch.float64, z.device) for lam, _ in draws])
    index = torch.stack([index for _, index in draws])
    generator, student = block(z, index, lam)
    (mixed_gen, mixed_mix), (mean, _) = block.mix(images, index, (generator, student.detach()))
    return mixed_gen, gamma * mask_loss(mean, draws[0][0]), mixed_mix.detach()
