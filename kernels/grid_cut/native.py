"""Launcher of the compiled kernels of `grid_cut`."""

import torch

from fastmix.kernels.images import address, place
from fastmix.native import module

_C = module()


def grid_cut(unary, weight_y, weight_x, swap, labels, energy):
    sizes, (device, stream) = (*unary.shape, swap), place(unary)
    scratch = None
    if device >= 0:
        scratch = torch.empty(_C.grid_cut_workspace(*sizes), dtype=torch.int32, device=unary.device)
    costs = (unary.data_ptr(), weight_y.data_ptr(), weight_x.data_ptr())
    _C.grid_cut(*sizes, device, stream, *costs, labels.data_ptr(), energy.data_ptr(), address(scratch))
