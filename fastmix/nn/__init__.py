"""Modules built on the ops."""

from .mix_block import MixBlock, Projection, mask_loss

__all__ = ["MixBlock", "Projection", "mask_loss"]
