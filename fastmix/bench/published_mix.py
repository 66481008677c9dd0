"""AutoMix's mixing as its authors publish it, in plain eager PyTorch: the yardstick of speed and the tests'
oracle.

Written from the description of the published composition and sharing no code with fastmix: the features of
the partner are gathered, lambda is a concatenated channel, queries and keys are projected separately for each
draw, the attention matrix is stored, the mask is upsampled, then squashed, then blended. The data-dependent
NaN/Inf tests of the published code are left out, which favours it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PublishedMixBlock(nn.Module):
    """Mix Block with the parameter names and shapes of the released checkpoints.

    `lam_embed` is "qkv" (lambda concatenated for query, key and value), "v" or "none".
    """

    def __init__(self, channels: int, reduction: int = 2, lam_embed: str = "none", mode: str = "nearest") -> None:
        super().__init__()
        self.lam_embed, self.mode = lam_embed, mode
        self.query = nn.ModuleDict(
            {"conv": nn.Conv2d(channels + (lam_embed == "qkv"), max(channels // reduction, 1), 1)}
        )
        self.value = nn.Conv2d(channels + (lam_embed != "none"), 1, 1)

    def logits(self, z: Tensor, lam: float, index: Tensor) -> Tensor:
        """Low-resolution logits (N, 1, h, w) of the PARTNER's mask."""
        n, _, h, w = z.shape
        own, partner = z, z[index]
        own_lam = torch.full((n, 1, h, w), float(lam), dtype=z.dtype, device=z.device)
        with_lam = torch.cat([partner, 1 - own_lam], 1)
        if self.lam_embed == "qkv":
            own, partner = torch.cat([own, own_lam], 1), with_lam
        value = self.value(with_lam if self.lam_embed == "v" else partner).flatten(1).unsqueeze(2)  # [N, hw, 1]
        query = self.query["conv"](own).flatten(2).transpose(1, 2)  # [N, hw, d]
        key = self.query["conv"](partner).flatten(2)  # [N, d, hw]
        attention = torch.softmax(query @ key / math.sqrt(query.shape[2]), dim=-1)  # [N, hw, hw]
        return (attention @ value).transpose(1, 2).reshape(n, 1, h, w)

    def forward(self, z: Tensor, lam: float, index: Tensor, scale_factor: int) -> Tensor:
        """Mask (N, 2, H, W): channel 0 weighs the own image, channel 1 the partner."""
        kwargs = {} if self.mode == "nearest" else {"align_corners": False}
        full = F.interpolate(self.logits(z, lam, index), scale_factor=scale_factor, mode=self.mode, **kwargs)
        partner = torch.sigmoid(full)
        return torch.cat([1 - partner, partner], 1)


def published_blend(images: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """`x * mask_0 + x[index] * mask_1`."""
    return images * mask[:, :1] + images[index] * mask[:, 1:]


def published_mask_loss(mask: Tensor, lam: float, margin: float = 0.1) -> Tensor:
    """`max(|1 - mean(partner's mask) - lam| - margin, 0)`, one mean over the batch."""
    return torch.clamp((1 - mask[:, 1].mean() - lam).abs() - margin, min=0)


def published_step(
    block: PublishedMixBlock,
    z: Tensor,
    images: Tensor,
    draws: tuple[tuple[float, Tensor], tuple[float, Tensor]],
    gamma: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """One training step's mixing: a draw with gradient for the generator, one without for the student.

    `draws` holds (lam, index) of the generator's and of the student's draw. Returns the generator's mixed
    images, its weighted mask loss (both with graph) and the student's mixed images.
    """
    scale = images.shape[-1] // z.shape[-1]
    (lam_gen, index_gen), (lam_mix, index_mix) = draws
    mask_gen = block(z, lam_gen, index_gen, scale)
    mask_mix = block(z, lam_mix, index_mix, scale).clone().detach()
    loss = gamma * published_mask_loss(mask_gen, lam_gen)
    return published_blend(images, mask_gen, index_gen), loss, published_blend(images, mask_mix, index_mix)
