"""The fused operations: tensors in, tensors out; randomness is drawn outside.

`lam` (or the mask) is always the weight of the own image; the partner of sample n is sample `index[n]`.
"""

from .blend import blend
from .box_blend import box_blend
from .mask_blend import mask_blend
from .pair_attention import pair_attention

__all__ = ["blend", "box_blend", "mask_blend", "pair_attention"]
