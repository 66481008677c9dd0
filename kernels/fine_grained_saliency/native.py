"""Launcher of the compiled kernels of `fine_grained_saliency`."""

import torch

from fastmix.kernels.images import address, batch, tagged
from fastmix.native import module

_C = module()


def fine_grained_saliency(x, scale, shift, red_first, out):
    shape = batch(x)
    n, _, height, width, *_, device, _ = shape
    workspace = None
    if device >= 0:  # two integers a pixel and two bytes, see FineSaliency::room
        room = 4 * ((height + 1) * (width + 1) + height * width) + (2 * height * width + 3) // 4 * 4
        workspace = torch.empty((n, room), dtype=torch.uint8, device=x.device)
    given = (address(scale), address(shift), red_first, address(workspace), out.data_ptr())
    _C.fine_grained_saliency(*shape, *tagged(x), *given)
