"""Every op in plain, differentiable PyTorch: the oracle of the tests and the backend that always runs."""

from .blend import blend
from .box_blend import box_blend
from .mask_blend import mask_blend
from .pair_attention import pair_attention

__all__ = ["blend", "box_blend", "mask_blend", "pair_attention"]
