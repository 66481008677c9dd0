"""Launcher of the compiled kernels of `spectral_mask`."""

import torch

from fastmix.kernels.images import address, place
from fastmix.native import module
from fastmix.reference.spectral_mask import spectral_field

_C = module()
MATRIX_SPECTRUM = 12288
"""Numbers a spectrum may have for two matrix products to be faster than a Fourier transform, on the CPU."""


def spectral_mask(noise, count, decay, released, soft, out):
    field, where = None, place(noise)
    if where[0] >= 0 or (not released and noise.shape[1:].numel() > MATRIX_SPECTRUM):
        field = spectral_field(noise, out.shape[1:], decay, "reference" if released else "paper")
    _C.spectral_mask(
        *out.shape,
        *where,
        *noise.shape[1:3],
        noise.data_ptr(),
        noise.dtype is torch.float64,
        decay,
        released,
        address(field),
        count.data_ptr(),
        soft,
        out.data_ptr(),
    )
