"""Launcher of the compiled kernels of `puzzle_energy`."""

from fastmix.kernels.images import address, batch, tagged, weight
from fastmix.native import module

_C = module()


def puzzle_energy(x, saliency, index, lam, scale, shift, n_labels, beta, gamma, eta, side, costs):
    shape = batch(x)
    n, channels, height, width, *_, device, _ = shape
    rows, columns = saliency.shape[1:]
    # Each place along the boundaries has two sides of all channels; on CUDA four differences more.
    places = (rows - 1) * (width // side) + (columns - 1) * (height // side)
    cells = saliency.new_empty(n * places * (2 * channels + (0 if device < 0 else 4)))
    images = (*shape, *tagged(x), index.data_ptr(), address(scale), address(shift))
    results = (cells.data_ptr(), *(part.data_ptr() for part in costs))
    blocks = (saliency.data_ptr(), rows, columns, side)
    _C.puzzle_energy(*images, *blocks, *weight(lam), n_labels, beta, gamma, eta, *results)
