"""The mixing of one AutoMix step by fastmix, the counterpart of `published_mix.published_step`."""

from __future__ import annotations

from torch import Tensor

from fastmix.nn import MixBlock, mask_loss


def fused_step(
    block: MixBlock,
    z: Tensor,
    images: Tensor,
    draws: tuple[tuple[float | Tensor, Tensor], tuple[float | Tensor, Tensor]],
    gamma: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two masks from one projection, one with gradient, two blends and the mask loss.

    Same arguments and results as `published_step`, with the block that `load_mix_block` makes of its weights.
    """
    (lam_gen, index_gen), (lam_mix, index_mix) = draws
    shared = block.project(z)
    mixed_gen, mean = block.mix(images, index_gen, block(shared, index_gen, lam_gen))
    frozen = shared.detach()
    mixed_mix, _ = block.mix(images, index_mix, block(frozen, index_mix, lam_mix).detach())
    return mixed_gen, gamma * mask_loss(mean, lam_gen), mixed_mix
