"""Launcher of the compiled kernels of `saliency_box`."""

import torch

from fastmix.kernels.images import address, place
from fastmix.native import module

_C = module()


def saliency_box(saliency, lam, window, height, width, smallest, box):
    n, rows, columns = saliency.shape
    given = window if lam is None else lam
    sums = None if window is None else saliency.new_empty((n, rows + 1, columns + 1), dtype=torch.float64)
    _C.saliency_box(
        n,
        rows,
        columns,
        *place(saliency),
        height,
        width,
        saliency.data_ptr(),
        address(lam),
        address(window),
        given.dim() == (1 if window is None else 2),
        smallest,
        address(sums),
        box.data_ptr(),
    )
