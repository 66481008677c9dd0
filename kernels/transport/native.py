"""Launcher of the compiled kernels of `transport`."""

from fastmix.kernels.images import place
from fastmix.native import module

_C = module()


def transport(visible, saliency, eps, exact, source):
    pointers = (visible.data_ptr(), saliency.data_ptr(), source.data_ptr())
    _C.transport(*saliency.shape, *place(saliency), eps, exact, *pointers)
