"""One small call of every public op and variant: a function of all tensors that it takes, and these."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmix import ops

N = 4


def op_cases(device: str = "cpu") -> dict[str, tuple[Callable[..., object], dict[str, Tensor]]]:
    """Name of a case, which begins with that of its op: the call, and its tensors by the names of the arguments."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    x, index, lam = unit(N, 3, 8, 8), torch.tensor([1, 0, 3, 3]), unit(N)
    images = {"x": x, "index": index}
    box = torch.tensor([[1, 1, 4, 4], [0, 0, 0, 0], [2, 0, 9, 3], [0, 0, 8, 8]], dtype=torch.int32)
    q, k, v, bias = unit(N, 9, 5), unit(N, 9, 5), unit(N, 9), unit(N, 9)
    plan = torch.tensor([[3, 1, 2, 0]] * N, dtype=torch.int32)
    logits, labels, soft = unit(N, 10), torch.arange(N), unit(N, 10)
    losses = {"target": labels, "target_b": labels.flip(0), "lam": lam}
    dense = {"target": soft, "target_b": soft.flip(0), "lam": lam}
    unary, weight_y, weight_x = (
        torch.randint(0, 50, shape, generator=generator, dtype=torch.int32)
        for shape in ((N, 3, 4, 2), (N, 2, 4), (N, 3, 3))
    )
    saliency = unit(N, 4, 4)
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    noise = torch.randn(N, *ops.spectral_mask_noise_shape((8, 8)), generator=generator)
    mean, std = unit(3), unit(3) + 0.5
    found = {
        "blend": (ops.blend, images | {"lam": lam}),
        "blend draws": (ops.blend, {"x": x, "index": torch.stack((index, index.flip(0))), "lam": unit(2, N)}),
        "blend number": (lambda x, index: ops.blend(x, index, 0.3), images),
        "blend normalize": (
            lambda x, index, mean, std: ops.blend(x, index, 0.3, normalize=(mean, std)),
            images | {"mean": mean, "std": std},
        ),
        "blend constants": (lambda x, index: ops.blend(x, index, 0.3, normalize=((0.5,) * 3, (0.25,) * 3)), images),
        "box_blend": (ops.box_blend, images | {"box": box}),
        "box_blend lam": (ops.box_blend, images | {"box": box, "lam": lam}),
        "box_blend source": (
            lambda x, index, box, source: ops.box_blend(x, index, box, source=source),
            images | {"box": box, "source": box.flip(0)},
        ),
        "flip_blend": (ops.flip_blend, {"x": x, "lam": lam, "box": box}),
        "mask_blend": (
            lambda x, index, mask: ops.mask_blend(x, index, mask, activation="sigmoid"),
            images | {"mask": unit(N, 3, 3)},
        ),
        "mask_blend plan": (
            lambda x, index, mask, plan: ops.mask_blend(x, index, mask, "nearest", plan=plan),
            images | {"mask": unit(N, 2, 2), "plan": plan},
        ),
        "pair_attention": (ops.pair_attention, {"q": q, "k": k, "v": v, "index": index, "key_bias": bias}),
        "pair_attention transposed": (
            lambda q, v, index: ops.pair_attention(q, q, v, index, transpose=True),
            {"q": q, "v": v, "index": index},
        ),
        "mix_cross_entropy": (ops.mix_cross_entropy, {"logits": logits, **losses}),
        "mix_binary_cross_entropy": (ops.mix_binary_cross_entropy, {"logits": logits, **losses}),
        "mix_binary_cross_entropy dense": (ops.mix_binary_cross_entropy, {"logits": logits, **dense}),
        "soft_cross_entropy": (ops.soft_cross_entropy, {"logits": logits, **dense}),
        "saliency_pool": (lambda grad: ops.saliency_pool(grad, 4), {"grad": x - 0.5}),
        "fine_grained_saliency": (ops.fine_grained_saliency, {"x": (255 * x).byte()}),
        "saliency_box": (ops.saliency_box, {"saliency": unit(N, 6, 5), "lam": lam}),
        "saliency_box window": (
            lambda saliency, window: ops.saliency_box(saliency, window=window),
            {"saliency": unit(N, 6, 5), "window": torch.tensor([[2, 3]] * N)},
        ),
        "spectral_mask": (
            lambda noise, count: ops.spectral_mask(noise, count, (8, 8)),
            {"noise": noise, "count": torch.tensor([0, 9, 40, 64])},
        ),
        "puzzle_energy": (
            lambda x, saliency, index, lam: ops.puzzle_energy(x, saliency, index, lam, 3),
            {"x": x, "saliency": saliency, "index": index, "lam": lam},
        ),
        "grid_cut": (ops.grid_cut, {"unary": unary, "weight_y": weight_y, "weight_x": weight_x}),
        "transport": (
            lambda visible, saliency: ops.transport(visible, saliency, 0.3),
            {"visible": saliency > 0.06, "saliency": saliency},
        ),
    }
    return {
        name: (function, {key: value.to(device) for key, value in tensors.items()})
        for name, (function, tensors) in found.items()
    }


DIFFERENTIABLE = ("blend", "box_blend", "flip_blend", "mask_blend", "pair_attention", "cross_entropy")


def differentiable(name: str, argument: str, value: Tensor) -> bool:
    """Whether the op of a case has a gradient for this argument."""
    kind = name.split()[0]
    asks = argument in ("x", "q", "k", "v", "key_bias", "mask", "logits", "lam")
    return value.is_floating_point() and kind.endswith(DIFFERENTIABLE) and asks and (kind, argument) != (
        "flip_blend", "lam",
    )  # fmt: skip
