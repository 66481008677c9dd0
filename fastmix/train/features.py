"""Finding and reading an intermediate feature map of any module by its name."""

from __future__ import annotations

import difflib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_MAX_PREFIX = 8  # class, distillation and register tokens


class EncoderInfo(NamedTuple):
    """What `inspect_encoder` learnt.

    Attributes:
        classifier: name of the `nn.Linear` the output comes from, None if the encoder returns features.
        width: number of features that enter a classifier.
        channels: channels of the feature map.
    """

    classifier: str | None
    width: int
    channels: int


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is wanted."""


def capture(module: nn.Module, name: str, images: Tensor, stop: bool) -> Tensor:
    """Output of the submodule `name` in a forward pass of `module`, which ends there if `stop`.

    Calls `module.forward`, so hooks of the module itself and a compiled version of it are passed by.
    """
    outputs = []

    def hook(_module, _args, output):
        # Later layers may write into the map (in-place activations), unless there are none.
        outputs.append(output if stop or not isinstance(output, Tensor) else output.clone())
        if stop:
            raise _Reached

    handle = module.get_submodule(name).register_forward_hook(hook)
    try:
        module.forward(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return outputs[0]


def grid(output: Tensor, image_size: tuple[int, int], name: str) -> Tensor:
    """A feature map (N, C, h, w) from a layer's output: itself, or the grid of a sequence of tokens (N, T,
    D).

    Of the T tokens the last h*w make the grid, with h : w = H : W; up to 8 tokens may come before it.
    """
    if isinstance(output, Tensor) and output.dim() == 4:
        return output
    if isinstance(output, Tensor) and output.dim() == 3:
        tokens, (height, width) = output.shape[1], image_size
        h = math.isqrt(tokens * height // width)
        while h > 0:
            if h * width % height == 0 and tokens - h * (h * width // height) >= 0:
                w = h * width // height
                if tokens - h * w <= _MAX_PREFIX:
                    return output[:, tokens - h * w :].transpose(1, 2).unflatten(2, (h, w))
                break
            h -= 1
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"fastmix.AutoMix: feature {name!r} must give a map (N, C, h, w) or tokens (N, T, D), T = h*w plus "
        f"at most {_MAX_PREFIX}, got {shape} for images of {image_size[0]}x{image_size[1]}"
    )


def inspect_encoder(encoder: nn.Module, feature: str, example: Tensor | None = None) -> EncoderInfo:
    """Run the encoder once, in evaluation mode and without gradient, to see what its layers give.

    Raises:
        TypeError: a compiled or wrapped encoder.
        ValueError: an unknown feature name; an output of no usable shape; no image size that the encoder
            accepts.
    """
    _check_plain(encoder)
    target = _submodule(encoder, feature)
    calls: list[Tensor] = []
    linears: dict[str, Tensor] = {}
    handles = [target.register_forward_hook(lambda _m, _a, out: calls.append(out))]
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(lambda _m, _a, out, name=name: linears.__setitem__(name, out)))
    training = {module: module.training for module in encoder.modules()}
    try:
        images, output = _probe(encoder.eval(), example, (calls, linears))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    if len(calls) != 1:
        raise ValueError(
            f"fastmix.AutoMix: feature {feature!r} must run once in a pass of the encoder, got {len(calls)} times"
        )
    channels = grid(calls[0], images.shape[2:], feature).shape[1]
    classifier = next((name for name, out in linears.items() if out is output), None)
    if classifier is not None:
        return EncoderInfo(classifier, encoder.get_submodule(classifier).in_features, channels)
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            "fastmix.AutoMix: the encoder must end in an nn.Linear, or return features (N, F) or "
            f"(N, F, h, w), got {shape}"
        )
    return EncoderInfo(None, output.shape[1], channels)


def _check_plain(encoder: nn.Module) -> None:
    if hasattr(encoder, "_orig_mod"):
        raise TypeError(
            "fastmix.AutoMix: encoder must be the plain module, got one from torch.compile; "
            "pass the module itself and call automix.compile_encoders()"
        )
    if isinstance(encoder, nn.parallel.DistributedDataParallel):
        raise TypeError("fastmix.AutoMix: encoder must be the plain module, got DDP; wrap the AutoMix module instead")
    if not isinstance(encoder, nn.Module) or next(encoder.parameters(), None) is None:
        raise TypeError(f"fastmix.AutoMix: encoder must be an nn.Module with parameters, got {type(encoder).__name__}")


def _submodule(encoder: nn.Module, name: str) -> nn.Module:
    names = [n for n, _ in encoder.named_modules() if n]
    if name in names:
        return encoder.get_submodule(name)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"close names: {', '.join(close)}" if close else f"it has {', '.join(names[:12])}"
    raise ValueError(f"fastmix.AutoMix: feature must name a submodule of the encoder, got {name!r}; {hint}")


def _probe(encoder: nn.Module, example: Tensor | None, seen: tuple) -> tuple[Tensor, object]:
    """Output for the example or for zeros of the first size that runs; a failed try empties `seen`."""
    if example is not None:
        with torch.no_grad():
            return example, encoder(example)
    parameter = next(encoder.parameters())
    channels = next((m.in_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)), 3)
    errors = []
    for size in _sizes(encoder):
        images = torch.zeros(2, channels, *size, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.no_grad():
                return images, encoder(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            errors.append(f"{size[0]}x{size[1]}: {error}")
            for record in seen:
                record.clear()
    raise ValueError(
        f"fastmix.AutoMix: the encoder did not run on zeros of {channels} channels; pass example=images[:2] "
        f"({errors[-1].splitlines()[0]})"
    )


def _sizes(encoder: nn.Module) -> list[tuple[int, int]]:
    """Image sizes to try: what the encoder says it wants, then usual ones."""
    sizes = []
    for owner in (encoder, getattr(encoder, "patch_embed", None)):
        for name in ("image_size", "img_size"):
            wanted = getattr(owner, name, None)
            if isinstance(wanted, int):
                sizes.append((wanted, wanted))
            elif isinstance(wanted, (tuple, list)) and len(wanted) == 2:
                sizes.append(tuple(wanted))
    return [*sizes, *((s, s) for s in (32, 64, 96, 128, 224, 256, 384))]
