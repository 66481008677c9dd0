from __future__ import annotations

import torch
from torch import Tensor

SCALE = 0.7071067811865476
"""Takes sums of few float32 numbers off the midpoints of float32, from which they could be rounded either way."""


def spectral_mask(
    noise: Tensor, count: Tensor, size: tuple[int, int], decay: float = 3.0, spectrum: str = "paper", soft: int = 0
) -> Tensor:
    """Reference of `fastmix.ops.spectral_mask`; `soft` is the most pixels that turn soft on each side of the edge."""
    field = spectral_field(noise, size, decay, spectrum).flatten(1)
    pixels = field.shape[1]
    count = count.clamp(0, pixels).long().view(-1, 1)
    margin = torch.minimum(count, pixels - count).clamp_max(soft)
    rank = torch.arange(pixels, device=field.device)
    slope = (rank - (count - margin)).double() / (2 * margin - 1).clamp_min(1)
    weight = torch.where(rank < count - margin, 1.0, torch.where(rank < count + margin, 1 - slope, 0.0)).float()
    order = field.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(field).scatter_(1, order, weight).view(-1, *size)


def spectral_field(noise: Tensor, size: tuple[int, int], decay: float, spectrum: str) -> Tensor:
    """(N, H, W) float32: the low-frequency images, whose largest values become the masks.

    Computed in float64 and rounded once, so that every backend finds the same values: pixels that differ by less than
    float32 are equal, and none lies above another by the rounding of a sum. What is not finite becomes the least.
    """
    height, width = size
    if noise.shape[0] == 0:
        return noise.new_empty((0, height, width), dtype=torch.float32)
    released = spectrum == "reference"
    amplitude = noise.double() * amplitudes(noise.shape[1:3], size, decay, released, noise.device)
    if released:  # real and imaginary part are rows 0 and 1 of the noise, columns what should have been the parts
        columns = torch.complex(amplitude[:, 0], amplitude[:, 1])
    else:
        columns = torch.view_as_complex(amplitude.contiguous())
        positive, missing = (columns.shape[1] + 1) // 2, height - columns.shape[1]
        gap = columns.new_zeros(len(columns), missing, columns.shape[2])
        columns = torch.cat([columns[:, :positive], gap, columns[:, positive:]], 1)
    # One side after the other: of a transform in two dimensions libraries may take the symmetry for granted.
    rows = torch.fft.ifft(columns, n=height, dim=1, norm="forward")
    field = torch.fft.irfft(rows[:, :, : width // 2 + 1], n=width, dim=2, norm="forward")
    field = (field * SCALE).float()
    return torch.where(field.isfinite(), field, torch.finfo(torch.float32).min)


def amplitudes(
    shape: tuple[int, int], size: tuple[int, int], decay: float, released: bool, device: torch.device
) -> Tensor:
    """What the noise is multiplied by, (*shape, 1): 1 / max(f, 1 / max(size))^decay, as parts of the largest one."""
    height, width = size
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in shape)
    if released:
        fy, fx = rows / height, torch.minimum(columns, torch.full_like(columns, width // 2)) / width
    else:
        fy, fx = torch.where(rows < (len(rows) + 1) // 2, rows, rows - len(rows)) / height, columns / width
    f = torch.sqrt(fy.view(-1, 1) ** 2 + fx**2) * max(size)
    return (f.clamp_min(1) ** -decay).unsqueeze(-1)
