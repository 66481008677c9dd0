"""The cases of the targets on a GPU, in the order of their importance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fastmix.bench.cases import Case, attention_case, blend_case, box_blend_case, laid_out, mask_blend_case

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Pictures (N, C, H, W) and positions (N, r, d) of the targets.
SIZES = {
    "imagenet": (256, 3, 224, 224),
    "small": (100, 3, 32, 32),
    "tiny-l1": (100, 4096, 32),
    "tiny-l3": (100, 256, 128),
    "r50-l3": (256, 196, 512),
    "small-l3": (100, 64, 128),
}
TINY_SIZES = {
    "imagenet": (4, 3, 16, 16),
    "small": (2, 3, 8, 8),
    "tiny-l1": (4, 24, 16),
    "tiny-l3": (4, 16, 16),
    "r50-l3": (4, 12, 32),
    "small-l3": (2, 8, 16),
}


def case_makers(sizes: dict[str, tuple]) -> Iterator[Callable[[torch.Generator], Case]]:
    """The cases in the order of their importance; each maker gives the same case on other random inputs each time."""

    def images(size: str, dtype: torch.dtype, layout: str, make: Callable, **options) -> Callable:
        label = f"{size}-{SHORT[dtype]}-{layout}"

        def maker(generator: torch.Generator) -> Case:
            x = torch.randn(sizes[size], generator=generator, device=generator.device).to(dtype)
            return make(label, laid_out(x, layout), generator, **options)

        return maker

    def attention(size: str, dtype: torch.dtype, grad: bool) -> Callable:
        label = f"{size}-{SHORT[dtype]}"
        return lambda generator: attention_case(label, sizes[size], generator, grad, dtype)

    formats = [(dtype, layout) for dtype in (torch.bfloat16, torch.float32) for layout in ("nchw", "nhwc")]
    for grad in (False, True):
        yield attention("tiny-l1", torch.bfloat16, grad)
        for dtype, layout in formats:
            yield images("imagenet", dtype, layout, mask_blend_case, grad=grad)
    for make in (blend_case, box_blend_case):
        for dtype, layout in formats:
            yield images("imagenet", dtype, layout, make)
    yield attention("r50-l3", torch.bfloat16, False)
    for make in (blend_case, box_blend_case, mask_blend_case):
        for dtype in (torch.bfloat16, torch.float32):
            yield images("small", dtype, "nchw", make)
    yield attention("small-l3", torch.bfloat16, False)
    for layout in ("nchw", "nhwc"):
        yield images("imagenet", torch.bfloat16, layout, mask_blend_case, draws=2)
    for size in ("tiny-l3", "r50-l3"):
        for grad in (False, True):
            if (size, grad) != ("r50-l3", False):
                yield attention(size, torch.bfloat16, grad)
    for grad in (False, True):
        yield attention("tiny-l3", torch.float32, grad)
