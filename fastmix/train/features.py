"""Finding and reading an intermediate feature map of any module by its name."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .shards import shards_modules

LAYOUTS = ("nchw", "nhwc", "nlc", "ncl")
SHAPES = "(N, C, h, w), (N, h, w, C), (N, T, C) or (N, C, T)"

_MAX_PREFIX = 8  # class, distillation and register tokens
_NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)

Probe = tuple[tuple[int, int], tuple[int, ...]]  # size of the images, shape of the feature


class Layout(NamedTuple):
    """Where a feature has its channels and positions.

    Attributes:
        axes: "nchw", "nhwc", "nlc" (tokens) or "ncl".
        prefix: number of class, distillation and register tokens before those of the grid.
    """

    axes: str
    prefix: int = 0


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is wanted."""


def capture(
    module: nn.Module, name: str, images: Tensor, stop: bool, call: Callable[[Tensor], Any] | None = None
) -> Any:
    """Output of the submodule `name` in a forward pass of `module`, which ends there if `stop`.

    Calls `module.forward`, so hooks of the module itself and a compiled version of it are passed by, unless `call` says
    what to call.
    """
    outputs = []

    def hook(_module, _args, output):
        # Later layers may write into the map (in-place activations), unless there are none.
        outputs.append(output if stop or not isinstance(output, Tensor) else output.clone())
        if stop:
            raise _Reached

    handle = module.get_submodule(name).register_forward_hook(hook)
    try:
        (call or module.forward)(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return outputs[0]


def grid(output: Any, image_size: tuple[int, int], name: str, layout: Layout) -> Tensor:
    """A feature map (N, C, h, w) from a layer's output of the given layout, as `find_layout` returns it.

    Tokens make a grid of h : w = H : W, up to rounding by a patch size.

    Raises:
        ValueError: another number of dimensions, or tokens that make no grid.
    """
    output = _tensor(output)
    if isinstance(output, Tensor) and output.dim() == len(layout.axes):
        if layout.axes == "nchw":
            return output
        if layout.axes == "nhwc":
            return output.permute(0, 3, 1, 2)
        tokens = output if layout.axes == "ncl" else output.transpose(1, 2)
        size = _token_grid(tokens.shape[2] - layout.prefix, *image_size)
        if size is not None:
            return tokens[:, :, layout.prefix :].unflatten(2, size)
    raise _unreadable(name, output, image_size)


def find_layout(encoder: nn.Module, feature: str, example: Tensor | None = None) -> Layout:
    """Layout of what the submodule `feature` gives, from passes over images of two sizes.

    The axes that move with the images' are those of the positions. Of an encoder that takes one size only, the
    positions are the axes in the proportion of the image, and the channels those that its normalisation layers have.

    Args:
        example: images (n, C, H, W) that the encoder takes; default: zeros of a size that it takes.

    Raises:
        TypeError: no module with parameters, or a compiled or wrapped one.
        ValueError: an unknown name, a feature that is no map, a layout that cannot be told.

    Example:
        >>> find_layout(torchvision.models.swin_t(), "features.5")
        Layout(axes='nhwc', prefix=0)
    """
    check_plain(encoder)
    target = find_submodule(encoder, feature)
    with in_mode(encoder, training=False), torch.no_grad():
        images, _, outputs = probe(encoder, example, target)
        return layout_of(encoder, feature, images, outputs)[0]


def layout_of(
    encoder: nn.Module, feature: str, images: Tensor, outputs: list[Any], axes: str | None = None
) -> tuple[Layout, int]:
    """Layout and number of channels of a feature, from its outputs in one pass over `images` and another pass."""
    if axes is not None and axes not in LAYOUTS:
        raise ValueError(f"fastmix.AutoMix: feature_layout must be None or one of {', '.join(LAYOUTS)}, got {axes!r}")
    if len(outputs) != 1:
        likely = likely_features(encoder)
        hint = f"; likely features: {', '.join(likely)}" if likely else ""
        raise ValueError(
            f"fastmix.AutoMix: feature {feature!r} must run once in a pass of the encoder, got {len(outputs)} times"
            + hint
        )
    output, size = _tensor(outputs[0]), tuple(images.shape[2:])
    if not isinstance(output, Tensor) or output.dim() not in (3, 4) or output.shape[0] != images.shape[0]:
        raise _unreadable(feature, output, size)
    probes = [(size, tuple(output.shape))]
    if axes is None:
        probes += _second_probe(encoder, feature, images, output.dim())
    layout = _told(encoder, encoder.get_submodule(feature), probes, axes)
    if layout is not None:
        return layout, grid(output, size, feature, layout).shape[1]
    if axes is not None or (output.dim() == 3 and not _candidates(encoder, probes)):
        raise _unreadable(feature, output, size)
    raise ValueError(
        f"fastmix.AutoMix: the layout of feature {feature!r} could not be told from its shape {tuple(output.shape)} "
        f"for images of {size[0]}x{size[1]}; pass feature_layout, one of {', '.join(LAYOUTS)}"
    )


def _second_probe(encoder: nn.Module, feature: str, images: Tensor, dims: int) -> list[Probe]:
    """What the feature has for images of another size, if the encoder takes any."""
    height, width = images.shape[2:]
    target = encoder.get_submodule(feature)
    for size in ((height // 2, width // 2), (2 * height, 2 * width)):
        other = images.new_zeros(min(2, len(images)), images.shape[1], *size)
        try:
            _, outputs = run(encoder, other, target)
            output = _tensor(outputs[0])
        except Exception:  # whatever it raises says that the encoder does not take this size
            continue
        if isinstance(output, Tensor) and output.dim() == dims and len(output) == len(other):
            return [(size, tuple(output.shape))]
    return []


def _told(encoder: nn.Module, target: nn.Module, probes: list[Probe], axes: str | None) -> Layout | None:
    """The one layout that all evidence leaves, or None."""
    candidates = [layout for layout in _candidates(encoder, probes) if axes in (None, layout.axes)]
    declared = str(getattr(encoder, "output_fmt", None)).lower()
    norms = _norm_widths(target) or _norm_widths(encoder)
    evidence = (
        lambda layout: _moves(layout.axes, probes),
        lambda layout: _in_proportion(layout.axes, *probes[0]),
        lambda layout: layout.axes == declared,
        lambda layout: probes[0][1][layout.axes.index("c")] in norms,
    )
    for test in evidence if len(candidates) > 1 else ():
        candidates = [layout for layout in candidates if test(layout)] or candidates
        if len(candidates) == 1:
            break
    return candidates[0] if len(candidates) == 1 else None


def _candidates(encoder: nn.Module, probes: list[Probe]) -> list[Layout]:
    if len(probes[0][1]) == 4:
        return [Layout("nchw"), Layout("nhwc")]
    lengths = {axes: [(size, shape[axes.index("l")]) for size, shape in probes] for axes in LAYOUTS[2:]}
    found = ((axes, _prefix(encoder, tokens)) for axes, tokens in lengths.items())
    return [Layout(axes, prefix) for axes, prefix in found if prefix is not None]


def _moves(axes: str, probes: list[Probe]) -> bool:
    """Whether the axes of the positions differ between the probes and those of the channels do not."""
    if len(probes) < 2:
        return False
    (_, first), (_, second) = probes
    return all((a != b) == (axis in "hwl") for axis, a, b in zip(axes[1:], first[1:], second[1:], strict=True))


def _in_proportion(axes: str, size: tuple[int, int], shape: tuple[int, ...]) -> bool:
    if "l" in axes:
        return True  # or it would be no candidate
    height, width = shape[axes.index("h")], shape[axes.index("w")]
    return (height, width) in _grids(*size)


def _norm_widths(module: nn.Module) -> set[int]:
    norms = [m for m in module.modules() if isinstance(m, _NORMS) or "norm" in type(m).__name__.lower()]
    return {p.shape[0] for norm in norms for p in norm.parameters(recurse=False) if p.dim() == 1}


def _prefix(encoder: nn.Module, lengths: list[tuple[tuple[int, int], int]]) -> int | None:
    """How many tokens come before the grid's: what the encoder says, else the least number that fits all sizes."""
    said = getattr(encoder, "num_prefix_tokens", None)
    numbers = [said] if isinstance(said, int) else []
    for prefix in (*numbers, *range(_MAX_PREFIX + 1)):
        if all(_token_grid(tokens - prefix, *size) is not None for size, tokens in lengths):
            return prefix
    return None


@functools.lru_cache(maxsize=256)
def _grids(height: int, width: int) -> frozenset[tuple[int, int]]:
    """Numbers of patches along both sides of an image for every patch size, rounded down or up."""
    down = ((height // patch, width // patch) for patch in range(1, min(height, width) + 1))
    up = ((math.ceil(height / patch), math.ceil(width / patch)) for patch in range(1, max(height, width) + 1))
    return frozenset((*down, *up))


@functools.lru_cache(maxsize=256)
def _token_grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """(h, w) with h * w = count and h : w = height : width, exactly or, if one pair does, up to rounding."""
    found = [size for size in _grids(height, width) if size[0] * size[1] == count]
    exact = [(h, w) for h, w in found if h * width == w * height]
    return (exact or found)[0] if len(exact or found) == 1 else None


def _tensor(output: Any) -> Any:
    """The tensor in what a layer returned, which may be alone in a tuple."""
    return output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output


def _unreadable(name: str, output: Any, size: tuple[int, int]) -> ValueError:
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    return ValueError(
        f"fastmix.AutoMix: feature {name!r} must give a map or tokens, {SHAPES}, where T = h*w plus at most "
        f"{_MAX_PREFIX}, got {shape} for images of {size[0]}x{size[1]}"
    )


def check_plain(encoder: nn.Module) -> None:
    """Refuse what is no plain module with parameters."""
    where = "fastmix.AutoMix: encoder must be"
    if hasattr(encoder, "_orig_mod"):
        raise TypeError(
            f"{where} the plain module, got one from torch.compile; pass the module itself and call "
            "automix.compile_encoders()"
        )
    if isinstance(encoder, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise TypeError(f"{where} the plain module, got {type(encoder).__name__}; wrap the AutoMix module instead")
    if isinstance(encoder, torch.jit.ScriptModule):
        raise TypeError(f"{where} the plain module, got a ScriptModule, whose layers cannot be exchanged")
    if not isinstance(encoder, nn.Module) or next(encoder.parameters(), None) is None:
        raise TypeError(f"{where} an nn.Module with parameters, got {type(encoder).__name__}")
    if shards_modules(encoder):
        raise TypeError(f"{where} a module that is not sharded yet; apply fully_shard to the AutoMix module instead")


def find_submodule(encoder: nn.Module, name: str, what: str = "feature") -> nn.Module:
    """The submodule of that name; the error lists names that are close and, for a feature, names that are likely."""
    names = [n for n, _ in encoder.named_modules() if n]
    if name in names:
        return encoder.get_submodule(name)
    close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
    likely = likely_features(encoder) if what == "feature" else []
    hints = [f"likely ones: {', '.join(likely)}"] if likely else []
    hints.append(f"close names: {', '.join(close)}" if close else f"it has {', '.join(names[:12])}")
    raise ValueError(f"fastmix.AutoMix: {what} must name a submodule of the encoder, got {name!r}; {'; '.join(hints)}")


def likely_features(encoder: nn.Module) -> list[str]:
    """Names of stages or blocks two thirds of the way through an encoder, the likeliest first.

    What timm says in `feature_info`, else the children of the sequence of three or more that has most of the
    parameters, else stages by the usual names.
    """
    modules = dict(encoder.named_modules())
    info = getattr(encoder, "feature_info", None) or []
    stages = [entry["module"] for entry in info if isinstance(entry, dict) and entry.get("module") in modules]
    if len(stages) < 3:
        usual = (f"{stem}{i}" for stem in ("layer", "stage") for i in range(1, 5))
        stages = [name for name in usual if name in modules]
    if len(stages) < 3:
        sequences = [
            (sum(p.numel() for p in module.parameters()), -name.count("."), name)
            for name, module in modules.items()
            if name and isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 2
        ]
        if sequences:
            longest = max(sequences)[2]
            stages = [f"{longest}.{child}" for child, _ in modules[longest].named_children()]
    at = 2 * len(stages) // 3
    return [*stages[at : at + 1], *stages[at - 1 : at], *stages[at + 1 : at + 2]] if stages else []


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        # By the call, since a module may keep something for evaluation and drop it there (timm's LeViT); then one by
        # one, for those that were in another mode than the whole.
        model.train(modes[model])
        for module, mode in modes.items():
            module.training = mode


def run(encoder: nn.Module, images: Tensor, target: nn.Module) -> tuple[Any, list[Any]]:
    """Output of the encoder, and those of its submodule `target`."""
    seen: list[Any] = []
    handle = target.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        return encoder(images), seen
    finally:
        handle.remove()


def probe(encoder: nn.Module, example: Tensor | None, target: nn.Module) -> tuple[Tensor, Any, list[Any]]:
    """The example, or zeros of the first size that runs, with the outputs of the encoder and of `target` for it."""
    if example is not None:
        if not isinstance(example, Tensor) or example.dim() != 4:
            got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise ValueError(f"fastmix.AutoMix: example must be images (n, C, H, W), got {got}")
        return example, *run(encoder, example, target)
    parameter = next(encoder.parameters())
    channels = next((m.in_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)), 3)
    errors = []
    for size in _sizes(encoder):
        images = torch.zeros(2, channels, *size, dtype=parameter.dtype, device=parameter.device)
        try:
            return images, *run(encoder, images, target)
        except (RuntimeError, ValueError, AssertionError) as error:
            errors.append(f"{size[0]}x{size[1]}: {error}")
    raise ValueError(
        f"fastmix.AutoMix: the encoder did not run on zeros of {channels} channels; pass example=images[:2] "
        f"({errors[-1].splitlines()[0]})"
    )


def _sizes(encoder: nn.Module) -> list[tuple[int, int]]:
    """Image sizes to try: what the encoder says it wants, then usual ones."""
    sizes = []
    for owner in (encoder, getattr(encoder, "patch_embed", None), getattr(encoder, "config", None)):
        for name in ("image_size", "img_size"):
            wanted = getattr(owner, name, None)
            if isinstance(wanted, int):
                sizes.append((wanted, wanted))
            elif isinstance(wanted, (tuple, list)) and len(wanted) == 2:
                sizes.append(tuple(wanted))
    return [*sizes, *((s, s) for s in (32, 64, 96, 128, 224, 256, 384))]
