"""Every op in plain, differentiable PyTorch: the oracle of the tests and the backend that always runs."""

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
