"""The fused operations: tensors in, tensors out; randomness is drawn outside.

`lam` (or the mask) is always the weight of the own image; the partner of sample n is sample `index[n]`.
"""

from .blend import blend
from .box_blend import box_blend
from .grid_cut import grid_cut
from .mask_blend import mask_blend
from .pair_attention import pair_attention
from .puzzle_energy import puzzle_energy
from .saliency_pool import saliency_pool
from .transport import transport

__all__ = [
    "blend",
    "box_blend",
    "grid_cut",
    "mask_blend",
    "pair_attention",
    "puzzle_energy",
    "saliency_pool",
    "transport",
]
