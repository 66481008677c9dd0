"""The Mix Block against stored vectors of the released code, a literal composition, and the written
equations."""

from __future__ import annotations

import math

import pytest
import torch
from automix_support import DATA, SHARED, Vectors, error
from torch import Tensor

from fastmix.bench import automix_mixing as mixing
from fastmix.bench import published_mix as published
from fastmix.compat.openmixup import load_mix_block
from fastmix.nn import MixBlock, mask_loss
from fastmix.reference.upsample import upsample

pytestmark = pytest.mark.usefixtures("one_thread")
RELEASED = [
    "c01_cifar_nearest_f64",
    "c02_in_nearest_lamcat_f64",
    "c03_s32_bilinear_lamcat_f64",
    "c05_default_init_lam1_f64",
    "c12_peaky_attention_f64",
]
STORED = ["mix_block_nearest", "mix_block_lam", "mix_block_lam_value", "mix_block_peaky"]
FILES = [SHARED / f"{name}.npz" for name in RELEASED] + [DATA / f"{name}.npz" for name in STORED]
NAMES = {
    "query.conv.weight": "query.weight",
    "query.conv.bias": "query.bias",
    "value.weight": "value.weight",
    "value.bias": "value.bias",
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def literal(block: MixBlock, z: Tensor, index: Tensor, lam: Tensor) -> Tensor:
    """Logits of the own image's mask as written: lambda as a channel, two projections, P stored."""
    n, _, h, w = z.shape
    lam_own = lam.expand(n).view(n, 1, 1).expand(n, h * w, 1)
    own, partner = z.flatten(2).transpose(1, 2), z[index].flatten(2).transpose(1, 2)  # [N, r, C]
    own_lam, partner_lam = torch.cat([own, lam_own], 2), torch.cat([partner, 1 - lam_own], 2)
    in_query, in_value = block.lam_embed == "qkv", block.lam_embed != "none"
    q = block.query(own_lam if in_query else own)
    k = block.query(partner_lam if in_query else partner)
    p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), -1)
    own_value = block.value(own_lam if in_value else own)
    partner_value = block.value(partner_lam if in_value else partner)
    logits = {
        "released": lambda: -(p @ partner_value),
        "transposed": lambda: p.transpose(1, 2) @ own_value,
        "paper": lambda: p @ own_value,
    }[block.convention]()
    return logits.view(n, h, w)


def example(block: MixBlock, per_sample: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    z = torch.randn(4, block.in_channels, 3, 5, generator=g, dtype=torch.float64)
    lam = torch.rand(4, generator=g, dtype=torch.float64) if per_sample else torch.tensor(0.3, dtype=torch.float64)
    return z.requires_grad_(), torch.tensor([2, 2, 0, 3]), lam


def trained(channels: int = 6, **options) -> MixBlock:
    torch.manual_seed(5)
    block = MixBlock(channels, init_std=0.5, **options).double()
    with torch.no_grad():
        block.query.bias.normal_()
        block.value.bias.normal_()
    return block


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_stored_vectors(path, dtype):
    vectors = Vectors(path)
    weights = {name: value.to(dtype) for name, value in vectors.group("w.").items()}
    block = load_mix_block(weights, mode=vectors.options["mode"])
    z, index, lam = vectors["z"].to(dtype).requires_grad_(), vectors["index"], float(vectors["lam"])
    x = vectors["x_int8"].to(dtype) * vectors["x_scale"].to(dtype)
    r = vectors["R_int8"].to(dtype) * vectors["R_scale"].to(dtype)
    stride, tolerance = int(vectors["blended_stride"]), TOLERANCE[dtype]

    logits = block(z, index, lam)
    mask = block.mask(logits, x.shape[2:])
    mixed, mean = block.mix(x, index, logits)
    assert logits.dtype is mean.dtype is dtype
    assert error(-logits, vectors["low_logits"]) < tolerance
    assert error(1 - mask, vectors["mask_j"]) < tolerance
    assert error(mixed[:, :, ::stride, ::stride], vectors["blended"]) < tolerance
    assert abs(mean.mean().item() - float(vectors["mask_mean_i"])) < tolerance

    losses = {
        "grad": (torch.stack([mask, 1 - mask], 1) * r).sum(),
        "gradB": (mixed * r[:, :1]).sum(),
        "gradL1": mask_loss(mean, 0.93, margin=0.0),
    }
    parameters = {old: dict(block.named_parameters())[new] for old, new in NAMES.items()}
    for prefix, loss in losses.items():
        gradients = torch.autograd.grad(loss, [z, *parameters.values()], retain_graph=True)
        assert error(gradients[0], vectors[f"{prefix}_z"]) < tolerance, prefix
        for name, gradient in zip(parameters, gradients[1:], strict=True):
            assert error(gradient, vectors[f"{prefix}.{name}"]) < tolerance, (prefix, name)


@pytest.mark.parametrize("name", RELEASED)
def test_logits_of_several_lam_agree_with_stored_vectors(name):
    vectors = Vectors(SHARED / f"{name}.npz")
    weights = {key: value.double() for key, value in vectors.group("w.").items()}
    block = load_mix_block(weights, mode=vectors.options["mode"])
    shared = block.project(vectors["z"].double())
    for lam, expected in zip(vectors["lams"], vectors["low_logits_all_lams"], strict=True):
        assert error(-block(shared, vectors["index"], lam), expected) < 1e-10


@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per-sample"])
@pytest.mark.parametrize("lam_embed", ["qkv", "v", "none"])
@pytest.mark.parametrize("convention", ["released", "transposed", "paper"])
def test_conventions_follow_the_written_formulas(convention, lam_embed, per_sample):
    block = trained(convention=convention, lam_embed=lam_embed)
    z, index, lam = example(block, per_sample)
    cotangent = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    got, expected = block(z, index, lam), literal(block, z, index, lam)
    assert got.shape == (4, 3, 5)
    assert error(got, expected) < 1e-12
    leaves = [z, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * cotangent).sum(), leaves),
        torch.autograd.grad((expected * cotangent).sum(), leaves),
        strict=True,
    ):
        assert error(a, b) < 1e-11


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("lam_embed", ["qkv", "none"])
def test_fused_mixing_step_equals_the_published_one(lam_embed, mode):
    """The two functions that the benchmark compares compute the same, values and gradients."""
    torch.manual_seed(2)
    oracle = published.PublishedMixBlock(16, lam_embed=lam_embed, mode=mode).double()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.normal_(std=0.3)
    block = load_mix_block(oracle.state_dict(), mode=mode)
    z, images = torch.randn(6, 16, 4, 4).double().relu(), torch.randn(6, 3, 16, 16).double()
    draws = (0.9, torch.randperm(6)), (0.3, torch.randperm(6))
    got = mixing.fused_step(block, z, images, draws)
    expected = published.published_step(oracle, z, images, draws)
    assert expected[1] > 0  # the hinge of the mask loss is active
    for a, b in zip(got, expected, strict=True):
        assert error(a, b) < 1e-12
    assert not got[2].requires_grad
    weight = torch.randn_like(images)
    ours = torch.autograd.grad((got[0] * weight).sum() + got[1], list(block.parameters()))
    theirs = torch.autograd.grad((expected[0] * weight).sum() + expected[1], list(oracle.parameters()))
    for name, gradient in zip(dict(oracle.named_parameters()), theirs, strict=True):
        mine = ours[[n for n, _ in block.named_parameters()].index(NAMES[name])]
        assert error(mine, gradient) < 1e-11


def test_conventions_differ():
    z, index, lam = example(trained())
    logits = [trained(convention=c)(z, index, lam) for c in ("released", "transposed", "paper")]
    assert all((a - b).abs().max() > 0.01 for a, b in zip(logits, logits[1:] + logits[:1], strict=True))


def test_without_embedding_the_mask_ignores_lam():
    block = trained(lam_embed="none")
    z, index, _ = example(block)
    assert torch.equal(block(z, index, 0.1), block(z, index, 0.9))
    embedded = trained(lam_embed="qkv")
    assert not torch.allclose(embedded(z, index, 0.1), embedded(z, index, 0.9))


LAMS = {
    "one": torch.tensor(0.3, dtype=torch.float64),
    "one a draw": torch.tensor([0.3, 0.8], dtype=torch.float64),
    "one a pair": torch.rand(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "float": 0.3,
}


@pytest.mark.parametrize("lams", LAMS)
@pytest.mark.parametrize("lam_embed", ["qkv", "v", "none"])
@pytest.mark.parametrize("convention", ["released", "transposed", "paper"])
def test_two_draws_equal_two_calls(convention, lam_embed, lams):
    block = trained(convention=convention, lam_embed=lam_embed)
    z, index, _ = example(block)
    both, lam = torch.stack((index, index.roll(1))), LAMS[lams]
    per_draw = [lam[draw] if isinstance(lam, Tensor) and lam.dim() else lam for draw in range(2)]
    images = torch.randn(4, 3, 7, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = block(z, both, lam)
    apart = [block(z, i, value) for i, value in zip(both, per_draw, strict=True)]
    assert isinstance(together, tuple)
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    mixed, mean = block.mix(images, both, together)
    stacked, _ = block.mix(images, both, torch.stack(together))
    for draw in range(2):
        expected, expected_mean = block.mix(images, both[draw], apart[draw])
        assert torch.equal(mixed[draw], expected) and torch.equal(mean[draw], expected_mean)
        assert torch.equal(stacked[draw], expected)
    leaves = [z, *block.parameters()]
    for used in ((0, 1), (1,)):
        sums = [sum(maps[draw].sin().sum() for draw in used) for maps in (together, apart)]
        found, expected = (torch.autograd.grad(value, leaves, retain_graph=True) for value in sums)
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) < 1e-12


def test_draws_share_one_projection():
    block = trained()
    z, index, lam = example(block, per_sample=True)
    shared = block.project(z)
    assert torch.equal(block(shared, index, lam), block(z, index, lam))
    assert torch.equal(block(shared, index.roll(1), 1 - lam), block(z, index.roll(1), 1 - lam))


@pytest.mark.parametrize("convention", ["released", "paper"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_mask_is_the_weight_that_mix_applies(mode, convention):
    block = trained(mode=mode, convention=convention)
    z, index, lam = example(block)
    index = torch.tensor([1, 0, 3, 2])
    logits = block(z, index, lam) * 4
    images = torch.zeros(4, 1, 7, 11, dtype=torch.float64)
    images[::2] = 1  # own image white, partner black: the mixed image is the mask, and the other way round
    mixed, mean = block.mix(images, index, logits)
    mask = block.mask(logits, (7, 11))
    assert error(mixed[::2, 0], mask[::2]) < 1e-12
    assert error(mixed[1::2, 0], 1 - mask[1::2]) < 1e-12
    assert error(mean, mask.mean((1, 2))) < 1e-12


def test_paper_squashes_before_upsampling():
    block = trained(mode="bilinear", convention="paper")
    logits = block(*example(block)) * 5
    assert error(block.mask(logits, (12, 20)), upsample(logits.sigmoid(), 12, 20, "bilinear")) == 0
    assert (block.mask(logits, (12, 20)) - upsample(logits, 12, 20, "bilinear").sigmoid()).abs().max() > 0.01


def test_float_lam_equals_tensor_lam():
    block = trained()
    z, index, _ = example(block)
    assert error(block(z, index, 0.3), block(z, index, torch.tensor(0.3, dtype=torch.float64))) < 1e-15


def test_gradient_with_respect_to_lam():
    block = trained()
    z, index, _ = example(block)
    lam = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: block(z.detach(), index, value), (lam,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_logits_in_float32(dtype):
    block = MixBlock(64, init_std=0.2)
    g = torch.Generator().manual_seed(0)
    z, index = torch.randn(4, 64, 7, 7, generator=g), torch.tensor([1, 2, 3, 0])
    exact = block.double()(z.double(), index, 0.3)
    block.float()
    with torch.autocast("cpu", dtype):
        logits = block(z.to(dtype), index, 0.3)
    assert logits.dtype is torch.float32
    assert error(logits, exact) < {torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    logits.sum().backward()
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in block.parameters())


def test_large_features_in_half_precision_stay_finite():
    block = MixBlock(64, init_std=0.3)
    z = 50 * torch.randn(2, 64, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.float16):
        logits = block(z.half(), torch.tensor([1, 0]), 0.5)
    assert logits.isfinite().all()


def test_channels_last_and_sliced_features_give_the_same():
    block = trained()
    z, index, lam = example(block)
    expected = block(z, index, lam)
    assert error(block(z.contiguous(memory_format=torch.channels_last), index, lam), expected) < 1e-14
    tokens = torch.cat([torch.zeros(4, 1, 6, dtype=z.dtype), z.detach().flatten(2).transpose(1, 2)], 1)
    assert error(block(tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 5)), index, lam), expected) < 1e-14


def test_default_initialisation_is_the_released_one():
    torch.manual_seed(0)
    block = MixBlock(256)
    assert block.query.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert block.query.weight.shape == (128, 257) and block.value.weight.shape == (1, 257)
    assert not block.query.bias.any() and not block.value.bias.any()
    z = torch.randn(4, 256, 4, 4).relu()
    assert block.mask(block(z, torch.arange(4), 0.2), (8, 8)).sub(0.5).abs().max() < 0.15


def test_state_dict_round_trip():
    first, second = trained(), MixBlock(6).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*example(first)), second(*example(second)))


def test_mask_loss_by_hand():
    mean = torch.tensor([0.9, 0.3], requires_grad=True)
    assert mask_loss(mean, 0.3).item() == pytest.approx(0.3 - 0.1)
    assert mask_loss(mean, torch.tensor([0.7, 0.3])).item() == 0  # the mean deviation is 0.1 = margin
    assert mask_loss(mean, torch.tensor([0.5, 0.5]), 0.1, per_sample=True).item() == pytest.approx((0.3 + 0.1) / 2)
    (inside,) = torch.autograd.grad(mask_loss(mean, 0.55), mean)
    assert torch.equal(inside, torch.zeros(2))
    (batch,) = torch.autograd.grad(mask_loss(mean, 0.3), mean)
    assert batch.tolist() == [0.5, 0.5]
    (samples,) = torch.autograd.grad(mask_loss(mean, torch.tensor([0.5, 0.35]), per_sample=True), mean)
    assert samples.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MixBlock(8, lam_embed="q"), "lam_embed must be one of qkv, v, none, got 'q'"),
        (lambda: MixBlock(8, mode="cubic"), "mode must be one of"),
        (lambda: MixBlock(8, convention="ours"), "convention must be one of"),
        (lambda: MixBlock(0), "in_channels must be an int >= 1, got 0"),
        (lambda: MixBlock(8)(torch.zeros(2, 9, 4, 4), torch.tensor([1, 0]), 0.5), r"shape \(N, 8, h, w\)"),
        (lambda: MixBlock(8)(torch.zeros(2, 8, 4), torch.tensor([1, 0]), 0.5), r"shape \(N, 8, h, w\)"),
        (
            lambda: MixBlock(8)(torch.zeros(2, 8, 4, 4), torch.tensor([1, 0]), torch.zeros(3)),
            r"lam must have shape \(\) or \(2,\), got \(3,\)",
        ),
        (
            lambda: MixBlock(8)(torch.zeros(2, 8, 4, 4), torch.zeros(3, 2).long(), torch.zeros(2)),
            r"lam must have shape \(\) or \(3,\) or \(3, 2\), got \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
