"""Launcher of the compiled kernel of `flip_blend`."""

from fastmix.kernels.images import address, place, tagged
from fastmix.native import module

from .geometry import geometry

_C = module()


def flip_blend(x, lam, lam_b, box, adjoint, out):
    weights = (address(lam), address(lam_b), lam is not None and lam.dim() == 1)
    _C.flip_blend(*geometry(x), *place(x), *tagged(x), *weights, address(box), adjoint, out.data_ptr())
