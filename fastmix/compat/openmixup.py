"""Checkpoints of OpenMixup (Westlake-AI/openmixup)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmix.nn import MixBlock

_KEYS = ("query.conv.weight", "query.conv.bias", "value.weight", "value.bias")


def load_mix_block(state_dict: Mapping[str, Tensor], mode: str = "nearest") -> MixBlock:
    """A `fastmix.nn.MixBlock` with the weights of a released AutoMix Mix Block.

    Args:
        state_dict: holds `query.conv.weight (d, C [+1], 1, 1)`, `query.conv.bias (d,)`, `value.weight (1, C
            [+1], 1, 1)` and `value.bias (1,)`, alone or among other keys with the prefix `mix_block.`, as in
            a whole AutoMixup checkpoint (its `"state_dict"` entry). An extra input channel is lambda's: in
            both weights it means `lam_embed="qkv"`, in the value's only `"v"`.
        mode: upsampling of the mask, which checkpoints do not hold: "nearest" in the published
            configurations.

    Returns:
        A block in the dtype of the weights, `convention="released"`. Its logits are those of the OWN image's
        mask: the negative of what the released code computes, which is the partner's.

    Raises:
        ValueError: missing keys; a SAMix block (`key.conv.*`, a value neck) or normalised queries
            (`query.bn.*`), which this module does not compute; shapes that do not belong together.

    Example:
        >>> checkpoint = torch.load("epoch_100.pth", map_location="cpu")
        >>> block = load_mix_block(checkpoint["state_dict"])
    """
    prefixed = {k.removeprefix("mix_block."): v for k, v in state_dict.items() if k.startswith("mix_block.")}
    state = prefixed or dict(state_dict)
    _reject_variants(state)
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise ValueError(
            f"fastmix.load_mix_block: state_dict must hold {', '.join(_KEYS)}, missing {', '.join(missing)}; "
            f"got {', '.join(sorted(state)[:8]) or 'nothing'}"
        )
    query, query_bias, value, value_bias = (state[key] for key in _KEYS)
    channels, lam_embed = _geometry(query, query_bias, value, value_bias)
    block = MixBlock(channels, lam_embed=lam_embed, mode=mode, reduction=max(channels // query.shape[0], 1))
    if block.query.out_features != query.shape[0]:
        raise ValueError(
            f"fastmix.load_mix_block: the {channels} channels of the features are no multiple of "
            f"{query.shape[0]} query channels"
        )
    block.to(query.dtype)
    with torch.no_grad():
        block.query.weight.copy_(query.flatten(1))
        block.query.bias.copy_(query_bias)
        block.value.weight.copy_(value.flatten(1))
        block.value.bias.copy_(value_bias)
    return block


def _reject_variants(state: Mapping[str, Tensor]) -> None:
    for prefix, meaning in (
        ("key.", "a SAMix block with separate keys"),
        ("value.conv.", "a SAMix block with a value neck"),
        ("query.bn.", "a block with normalised queries (att_norm_cfg)"),
        ("query.ln.", "a block with normalised queries (att_norm_cfg)"),
    ):
        found = [key for key in state if key.startswith(prefix)]
        if found:
            raise ValueError(
                f"fastmix.load_mix_block: {found[0]!r} belongs to {meaning}, which fastmix.nn.MixBlock does not compute"
            )


def _geometry(query: Tensor, query_bias: Tensor, value: Tensor, value_bias: Tensor) -> tuple[int, str]:
    """Channels of the features and place of the lam channel, from the shapes.

    A block of C channels has d = C // 2 query channels in every published configuration, which tells a block
    without lam from one of one channel less with it.
    """
    shapes = f"query {tuple(query.shape)}, value {tuple(value.shape)}"
    if query.dim() != 4 or value.dim() != 4 or query.shape[2:] != (1, 1) or value.shape[2:] != (1, 1):
        raise ValueError(f"fastmix.load_mix_block: weights must be those of 1x1 convolutions, got {shapes}")
    if value.shape[0] != 1 or query_bias.shape != query.shape[:1] or value_bias.shape != (1,):
        raise ValueError(f"fastmix.load_mix_block: value must have one output and biases must fit, got {shapes}")
    d, c_query = query.shape[:2]
    c_value = value.shape[1]
    if c_value == c_query + 1:
        return c_query, "v"
    if c_value != c_query:
        raise ValueError(f"fastmix.load_mix_block: input channels must agree or differ by lam's one, got {shapes}")
    return (c_query - 1, "qkv") if c_query % d == 1 and c_query > 1 else (c_query, "none")
