"""Where pixels lie in a dense batch of any rank."""

import math

from torch import Tensor


def geometry(x: Tensor) -> tuple[int, int, int, int, int]:
    """n, planes, height, width and values a pixel, in the order of memory."""
    shape = x.shape
    if len(shape) < 3:
        return shape[0], 1, 1, math.prod(shape[1:]), 1
    height, width = shape[-2:]
    if x.is_contiguous():
        return shape[0], math.prod(shape[1:-2]), height, width, 1
    return shape[0], math.prod(shape[2:-2]), height, width, shape[1]
