"""Every op in plain, differentiable PyTorch: the oracle of the tests and the backend that always runs."""

from .blend import blend
from .box_blend import box_blend
from .fine_grained_saliency import fine_grained_saliency
from .flip_blend import flip_blend
from .grid_cut import grid_cut
from .mask_blend import mask_blend
from .mix_binary_cross_entropy import mix_binary_cross_entropy
from .mix_cross_entropy import mix_cross_entropy
from .pair_attention import pair_attention
from .puzzle_energy import puzzle_energy
from .saliency_box import saliency_box
from .saliency_pool import saliency_pool
from .soft_cross_entropy import soft_cross_entropy
from .spectral_mask import spectral_mask
from .transport import transport

__all__ = [
    "blend",
    "box_blend",
    "fine_grained_saliency",
    "flip_blend",
    "grid_cut",
    "mask_blend",
    "mix_binary_cross_entropy",
    "mix_cross_entropy",
    "pair_attention",
    "puzzle_energy",
    "saliency_box",
    "saliency_pool",
    "soft_cross_entropy",
    "spectral_mask",
    "transport",
]
