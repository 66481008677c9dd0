"""Finding the layers of a model that make its logits, and a view of the model that has other heads there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .features import Layout, check_plain, find_submodule, in_mode, layout_of, probe

AUTO = "auto"

# Words in the name of a layer that speak for a classifier.
_NAMES = ("fc", "head", "classif", "logit", "linear", "output")
_MAX_CLASSIFIERS = 4  # of a model whose logits are a mean, such as a distilled one


class EncoderInfo(NamedTuple):
    """What `inspect_encoder` learnt.

    Attributes:
        classifiers: names of the layers the logits come from, () if the encoder returns features.
        direct: whether what the one classifier returns is the encoder's output itself.
        width: number of features that enter the heads, 0 unless the encoder returns features.
        positions: axes of an output of four dimensions over which it is averaged.
        channels: channels of the feature map.
        layout: layout of the feature map.
        images: what the encoder was run on.
    """

    classifiers: tuple[str, ...]
    direct: bool
    width: int
    positions: tuple[int, int]
    channels: int
    layout: Layout
    images: Tensor


def inspect_encoder(
    encoder: nn.Module,
    feature: str,
    num_classes: int | None = None,
    *,
    classifier: str | Sequence[str] | None = AUTO,
    feature_layout: str | None = None,
    example: Tensor | None = None,
) -> EncoderInfo:
    """Run the encoder a few times, in evaluation mode and without gradient, to see what its layers give.

    The classifier is the `nn.Linear` that returns the encoder's output. Else, of an encoder that says how many classes
    it has (`num_classes`, `config.num_labels`) and has as many outputs, it is the last linear or convolutional layers
    without which the output no longer depends on the images; the same where the outputs are as many as `num_classes`
    and the layer is named like a classifier.

    Raises:
        TypeError: a compiled or wrapped encoder.
        ValueError: an unknown name; an output of no usable shape, or of which it cannot be told whether these are
            logits; no image size that the encoder accepts.
    """
    check_plain(encoder)
    target = find_submodule(encoder, feature)
    ran: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: _record(ran, name, out))
        for name, module in encoder.named_modules()
        if _outputs(module) is not None
    ]
    with in_mode(encoder, training=False), torch.no_grad():
        try:
            images, output, outputs = probe(encoder, example, target)
        finally:
            for handle in handles:
                handle.remove()
        layout, channels = layout_of(encoder, feature, images, outputs, feature_layout)
        output = main_output(output)
        names, direct = _find_classifiers(encoder, classifier, ran, output, num_classes, images)
        positions = (2, 3) if names or output.dim() == 2 else _positions(encoder, images, output)
    width = 0 if names else output.shape[1 if positions == (2, 3) else 3]
    return EncoderInfo(names, direct, width, positions, channels, layout, images)


def _positions(encoder: nn.Module, images: Tensor, output: Tensor) -> tuple[int, int]:
    """Axes of the positions in features of four dimensions."""
    try:
        axes = layout_of(encoder, "", images, [output])[0].axes
    except ValueError:
        raise ValueError(
            f"fastmix.AutoMix: the encoder returns {tuple(output.shape)}, of which it cannot be told whether it is "
            "(N, F, h, w) or (N, h, w, F); let it return (N, F)"
        ) from None
    return axes.index("h"), axes.index("w")


def main_output(output: Any) -> Tensor:
    """The logits or features in what an encoder returned: itself, or the `logits` of an object such as `transformers`'.

    Raises:
        ValueError: several tensors, as from auxiliary classifiers; no tensor.
    """
    if isinstance(output, Tensor):
        found = output
    elif isinstance(output, Mapping) or not isinstance(output, tuple):
        found = getattr(output, "logits", None)
    else:
        found = None
    if isinstance(found, Tensor) and found.dim() in (2, 4):
        return found
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
    aux = "; auxiliary classifiers must be off (aux_logits=False, distilled_training=False)"
    raise ValueError(
        "fastmix.AutoMix: the encoder must end in an nn.Linear, or return logits (N, K) or features (N, F) or "
        f"(N, F, h, w), got {shape}{aux if isinstance(output, tuple) else ''}"
    )


class Exchange(nn.Module):
    """Stands where a classifier layer was and applies that of the head asked for; the heads belong to the `Branch`."""

    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.__dict__["heads"] = heads
        self.asked = next(iter(heads))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.asked](x)


class Split(NamedTuple):
    """An encoder without classifier and two heads for it, see `split`."""

    encoder: nn.Module
    one_hot: nn.Module
    mix: nn.Module
    positions: tuple[int, int]


def split(encoder: nn.Module, found: EncoderInfo, num_classes: int, shared: str) -> Split:
    """An encoder without its classifier and two heads, which start from the classifier's weights if it fits.

    `encoder` stays a whole classifier: the one returned shares all its layers, and the head `shared`, "one_hot" or
    "mix", is its own classifier. One of another number of classes is replaced there first.
    """
    if not found.classifiers:
        like = next(encoder.parameters())
        return Split(encoder, *(nn.Linear(found.width, num_classes).to(like) for _ in range(2)), found.positions)
    old = [encoder.get_submodule(name) for name in found.classifiers]
    layers = [_with_outputs(layer, num_classes, name) for name, layer in zip(found.classifiers, old, strict=True)]
    new = {was: layer for was, layer in zip(old, layers, strict=True) if was is not layer}
    for parent in list(encoder.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
    if new and isinstance(getattr(encoder, "num_classes", None), int):
        encoder.num_classes = num_classes
    others = copy.deepcopy(layers)
    one_hot, mix = (layers, others) if shared == "one_hot" else (others, layers)
    stand_ins = [
        nn.Identity() if found.direct else Exchange(one_hot=a, mix=b) for a, b in zip(one_hot, mix, strict=True)
    ]
    view = exchanged(encoder, layers, stand_ins)
    _check_view(view, stand_ins, found)
    return Split(
        view, *(head[0] if len(head) == 1 else nn.ModuleList(head) for head in (one_hot, mix)), found.positions
    )


def exchanged(encoder: nn.Module, layers: Sequence[nn.Module], others: Sequence[nn.Module]) -> nn.Module:
    """`encoder` with `others` in place of its `layers`, wherever it has them.

    Modules without any of them are the encoder's own; the rest are copies, whose parameters, buffers and hooks are the
    encoder's own.
    """
    done = dict(zip(layers, others, strict=True))

    def visit(module: nn.Module) -> nn.Module:
        if module not in done:
            children = {name: None if child is None else visit(child) for name, child in module._modules.items()}
            copied = any(child is not module._modules[name] for name, child in children.items())
            done[module] = copy.copy(module) if copied else module
            if copied:
                done[module].__dict__["_modules"] = children
        return done[module]

    return visit(encoder)


def _check_view(view: nn.Module, stand_ins: Sequence[nn.Module], found: EncoderInfo) -> None:
    """A model that keeps its classifier elsewhere too, or has a `forward` of its own instance, would go on using it."""
    calls: list[nn.Module] = []
    handles = [layer.register_forward_hook(lambda module, _args, _out: calls.append(module)) for layer in stand_ins]
    try:
        with in_mode(view, training=False), torch.no_grad():
            view(found.images)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(stand_ins):
        raise ValueError(
            f"fastmix.AutoMix: the encoder runs its classifier {', '.join(found.classifiers)} by another way than its "
            "submodules (a forward method replaced on the instance, a layer kept in a list); give it without"
        )


def _record(ran: dict[str, Any], name: str, output: Any) -> None:
    ran.pop(name, None)  # a second run puts it at the end
    ran[name] = output if isinstance(output, Tensor) and output.dim() == 2 else None


def _outputs(module: nn.Module) -> int | None:
    """Number of features that a linear or convolutional layer returns, None of others."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.modules.conv._ConvNd) else None


def _find_classifiers(
    encoder: nn.Module,
    given: str | Sequence[str] | None,
    ran: dict[str, Any],
    output: Tensor,
    num_classes: int | None,
    images: Tensor,
) -> tuple[tuple[str, ...], bool]:
    """Names, and whether the output is that of the one layer itself."""
    width = output.shape[1]
    if given is None:
        return (), True
    if given != AUTO:
        names = (given,) if isinstance(given, str) else tuple(given)
        layers = [find_submodule(encoder, name, "classifier") for name in names]
        if width != num_classes and any(_outputs(layer) is None for layer in layers):
            raise ValueError(
                f"fastmix.AutoMix: the encoder must have num_classes={num_classes} outputs, since its classifier "
                f"{given!r} is no linear or convolutional layer that could be made anew, got {width}"
            )
        if not _cut(encoder, names, (), images):
            raise ValueError(
                f"fastmix.AutoMix: classifier must name the layers that the logits come from, got {given!r}, without "
                "which the output still depends on the images"
            )
        return names, len(names) == 1 and ran.get(names[0]) is output
    declared = _declared_classes(encoder)
    last = next((name for name, out in ran.items() if out is output), None)
    if last is not None and declared != 0 and isinstance(encoder.get_submodule(last), nn.Linear):
        return (last,), True
    if width not in (num_classes, declared):
        return (), True
    names = _last_layers(encoder, ran, width, images)
    named = any(word in name.lower() for name in names for word in _NAMES)
    if names and (named or declared == width):
        return names, False
    raise ValueError(
        f"fastmix.AutoMix: the encoder returns {width} numbers, as many as classes, but no classifier was found; if "
        "these are logits, pass classifier=NAME (or names) of the layers they come from, if features, classifier=None"
    )


def _declared_classes(encoder: nn.Module) -> int | None:
    """How many classes the encoder says it has: timm's and torchvision's `num_classes`, transformers' `num_labels`."""
    for owner, name in ((encoder, "num_classes"), (getattr(encoder, "config", None), "num_labels")):
        number = getattr(owner, name, None)
        if isinstance(number, int):
            return number
    return None


def _last_layers(encoder: nn.Module, ran: dict[str, Any], width: int, images: Tensor) -> tuple[str, ...]:
    """The fewest last layers of `width` outputs without which the output does not depend on the images."""
    matching = [name for name in ran if _outputs(encoder.get_submodule(name)) == width]
    for count in range(1, min(len(matching), _MAX_CLASSIFIERS) + 1):
        names = tuple(matching[-count:])
        if _cut(encoder, names, matching[:-count], images):
            return names
    return ()


def _cut(encoder: nn.Module, names: Sequence[str], others: Sequence[str], images: Tensor) -> bool:
    """Whether two different images get the same output once these layers return zeros, and `others` noise.

    Noise, since another head whose weights are still zero is not to be overlooked.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like)

    handles = [
        encoder.get_submodule(name).register_forward_hook(lambda _m, _a, out, change=change: change(out))
        for change, changed in ((torch.zeros_like, names), (noise, others))
        for name in changed
    ]
    try:
        first, second = main_output(encoder(noise(images[:1].expand(2, -1, -1, -1)))).float()
    finally:
        for handle in handles:
            handle.remove()
    return torch.allclose(first, second)


def _with_outputs(layer: nn.Module, num_classes: int, name: str) -> nn.Module:
    """The layer itself, or one like it with `num_classes` outputs."""
    outputs = _outputs(layer)
    if outputs in (None, num_classes):
        return layer
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, num_classes, bias).to(layer.weight)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        new = nn.Conv2d(
            layer.in_channels, num_classes, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=bias
        )
        return new.to(layer.weight)
    raise ValueError(
        f"fastmix.AutoMix: the classifier {name!r} has {outputs} outputs and is a {type(layer).__name__}, which cannot "
        f"be made anew; give the model one of num_classes={num_classes}"
    )
