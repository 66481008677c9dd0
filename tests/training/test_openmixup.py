"""Loading released Mix Blocks."""

from __future__ import annotations

import pytest
import torch

from fastmix.bench import published_mix as published
from fastmix.compat.openmixup import load_mix_block


def released(channels: int = 8, lam_embed: str = "none", reduction: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    block = published.PublishedMixBlock(channels, reduction, lam_embed)
    return {name: torch.randn_like(value) for name, value in block.state_dict().items()}


@pytest.mark.parametrize("lam_embed", ["none", "v", "qkv"])
@pytest.mark.parametrize(("channels", "reduction"), [(8, 2), (256, 2), (12, 4)])
def test_place_of_lam_and_channels_follow_from_the_shapes(channels, reduction, lam_embed):
    state = released(channels, lam_embed, reduction)
    block = load_mix_block(state, mode="bilinear")
    assert (block.in_channels, block.lam_embed, block.mode) == (channels, lam_embed, "bilinear")
    assert torch.equal(block.query.weight, state["query.conv.weight"].flatten(1))
    assert torch.equal(block.query.bias, state["query.conv.bias"])
    assert torch.equal(block.value.weight, state["value.weight"].flatten(1))
    assert torch.equal(block.value.bias, state["value.bias"])


def test_logits_are_the_negative_of_the_published_ones():
    oracle = published.PublishedMixBlock(8, lam_embed="qkv").double()
    block = load_mix_block(oracle.state_dict())
    z, index = torch.randn(3, 8, 4, 4, dtype=torch.float64), torch.tensor([1, 2, 0])
    torch.testing.assert_close(block(z, index, 0.3), -oracle.logits(z, 0.3, index)[:, 0], rtol=1e-12, atol=1e-14)


def test_whole_checkpoint_is_searched_for_the_block():
    state = released()
    whole = {f"mix_block.{k}": v for k, v in state.items()} | {"backbone_q.conv1.weight": torch.zeros(1)}
    assert torch.equal(load_mix_block(whole).query.bias, state["query.conv.bias"])


def test_dtype_is_kept():
    state = {k: v.double() for k, v in released().items()}
    assert load_mix_block(state).query.weight.dtype is torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("value.bias"), "missing value.bias"),
        (lambda s: s.clear(), "missing query.conv.weight.*got nothing"),
        (lambda s: s.update({"key.conv.weight": s["query.conv.weight"]}), "SAMix block with separate keys"),
        (lambda s: s.update({"value.conv.0.conv.weight": s["value.weight"]}), "value neck"),
        (lambda s: s.update({"query.bn.weight": s["query.conv.bias"]}), "normalised queries"),
        (lambda s: s.update({"value.weight": torch.zeros(1, 10, 1, 1)}), "differ by lam's one"),
        (lambda s: s.update({"value.weight": torch.zeros(2, 8, 1, 1)}), "one output"),
        (lambda s: s.update({"query.conv.weight": torch.zeros(4, 8)}), "1x1 convolutions"),
        (lambda s: s.update({"query.conv.weight": torch.zeros(3, 8, 1, 1)}), "biases must fit"),
    ],
)
def test_other_blocks_are_refused(change, message):
    state = released()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_mix_block(state)
