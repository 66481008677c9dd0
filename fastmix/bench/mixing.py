"""Whole mixing steps: a batch and its labels in, mixed images and mixed labels out, by us and by those used today.

Peers draw their own random numbers. A result is judged by its labels instead: image n has class n, so that row n of the
soft labels says how much of which image must be found in mixed image n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmix import methods, reference
from fastmix.batch import MixBatch
from fastmix.bench.automix_mixing import fused_step
from fastmix.bench.cases import Case, Entry
from fastmix.bench.provider import FASTMIX, Provider
from fastmix.bench.published_mix import PublishedMixBlock, published_step
from fastmix.bench.puzzle import dense_moves

IMAGES = {"cifar": (128, 3, 32, 32), "imagenet": (64, 3, 224, 224)}
PUZZLE = {"cifar": (100, 3, 32, 32), "imagenet": (32, 3, 224, 224)}
# (N, C, h, image size): features of a ResNet-18 at 64 pixels after each stage, and of a ResNet-50 at 224.
AUTOMIX = {
    "l1": (8, 64, 64, 64),
    "l2": (32, 128, 32, 64),
    "l3": (64, 256, 16, 64),
    "l4": (64, 512, 8, 64),
    "r50-l3": (32, 1024, 14, 224),
    "r50-l1": (8, 256, 56, 224),
}


def entries() -> Iterator[Entry]:
    for size, shape in IMAGES.items():
        quick = size == "cifar"
        yield Entry(f"mixup/{size}", partial(label_case, f"mixup/{size}", shape, mixup_providers, _mixup_right), quick)
        yield Entry(f"cutmix/{size}", partial(label_case, f"cutmix/{size}", shape, cutmix_providers, _cut_right), quick)
        yield Entry(f"fmix/{size}", partial(label_case, f"fmix/{size}", shape, fmix_providers, _cut_right), quick)
    for size, shape in PUZZLE.items():
        for blocks in (2, 4, 8, 16):
            name = f"puzzlemix/{size}-B{blocks}"
            yield Entry(name, partial(puzzle_case, name, shape, blocks), (size, blocks) == ("cifar", 8))
    for size, shape in AUTOMIX.items():
        yield Entry(f"automix/{size}", partial(automix_case, f"automix/{size}", shape), quick=size == "l4")


def label_case(
    name: str,
    shape: tuple,
    providers: Callable,
    right: Callable[[Tensor, Tensor, Tensor], str],
    generator: torch.Generator,
) -> Case:
    """A method that needs images and labels alone."""
    x = torch.randn(shape, generator=generator, device=generator.device)
    y = torch.arange(shape[0], device=x.device)

    def agree(found: tuple[Tensor, Tensor], case: Case) -> str:
        mixed, labels = found
        sums = labels.double().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-5):
            return "the label weights do not sum to 1"
        return right(mixed, labels.double(), case.args[0])

    moved = 2 * x.numel() * x.element_size()
    return Case(name, (x, y), None, None, moved, agree=agree, providers=tuple(providers(shape[0])))


def _mixup_right(mixed: Tensor, labels: Tensor, x: Tensor) -> str:
    wanted = labels @ x.double().flatten(1)
    error = (mixed.double().flatten(1) - wanted).abs().max().item()
    return "" if error <= 1e-4 * wanted.abs().max().item() else f"images and labels disagree by {error:.3g}"


def _cut_right(mixed: Tensor, labels: Tensor, x: Tensor) -> str:
    """Each pixel is the own image's or the partner's, and the labels count them."""
    own_weight = labels.diagonal()
    others = labels - torch.diag(own_weight)
    partner = torch.where(others.amax(1) > 0, others.argmax(1), torch.arange(len(x), device=x.device))
    own, other = (mixed == x).all(1), (mixed == x[partner]).all(1)
    if not (own | other).all():
        return "a pixel belongs to neither image"
    share = torch.where(partner == torch.arange(len(x), device=x.device), 1.0, own.double().mean((1, 2)))
    error = (share - own_weight).abs().max().item()
    return "" if error <= 1e-5 else f"a label is off by {error:.3g} from the share of its pixels"


def _of_batch(batch: MixBatch) -> tuple[Tensor, Tensor]:
    return batch.x, batch.soft(len(batch.x))


def _fastmix(label: str, method: Callable) -> Provider:
    return Provider(FASTMIX + label, lambda x, y: method(x, y), result=_of_batch)


def _copied(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For those who write to their input."""
    return x.clone(), y


def _timm(label: str, n: int, **options) -> Provider:
    @cache
    def mixer() -> Callable:
        return load_timm_mixup()(num_classes=n, label_smoothing=0.0, **options)

    return Provider(f"timm {label}", lambda x, y: mixer()(x, y), prepare=_copied, package="timm")


def load_timm_mixup() -> type:
    """timm's class; its file alone, where timm itself does not import for want of a working torchvision."""
    try:
        from timm.data.mixup import Mixup
    except (ImportError, RuntimeError):
        import importlib.util

        root = importlib.util.find_spec("timm").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location("timm_data_mixup", f"{root}/data/mixup.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Mixup
    return Mixup


def _torchvision(name: str, n: int) -> Provider:
    @cache
    def transform() -> Callable:
        from torchvision.transforms import v2

        return getattr(v2, name)(num_classes=n)

    return Provider(f"torchvision {name}", lambda x, y: transform()(x, y), package="torchvision")


def _kornia(name: str, n: int, weight_of_partner: bool, **options) -> Provider:
    @cache
    def augmentation() -> Callable:
        from kornia import augmentation

        return getattr(augmentation, name)(data_keys=["input", "class"], **options)

    def result(found: tuple) -> tuple[Tensor, Tensor]:
        mixed, labels = found
        own, partner, lam = labels.view(-1, 3).unbind(1)
        lam = 1 - lam if weight_of_partner else lam
        rows = torch.zeros(n, n, dtype=torch.float64)
        rows.scatter_add_(1, own.long()[:, None], lam.double()[:, None])
        return mixed, rows.scatter_add_(1, partner.long()[:, None], 1 - lam.double()[:, None])

    return Provider(f"kornia {name}", lambda x, y: augmentation()(x, y), result=result, package="kornia")


def mixup_providers(n: int) -> list[Provider]:
    def eager(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        lam = np.random.beta(1.0, 1.0)
        index = torch.randperm(n, device=x.device)
        labels = F.one_hot(y, n).float()
        return lam * x + (1 - lam) * x[index], lam * labels + (1 - lam) * labels[index]

    from fastmix.compat import timm

    drop_in = {"num_classes": n, "label_smoothing": 0.0, "mixup_alpha": 1.0}
    return [
        _fastmix("MixUp", methods.MixUp()),
        _fastmix("MixUp, a lam each", methods.MixUp(mode="sample")),
        Provider(FASTMIX + "for timm, in place", timm.Mixup(**drop_in), prepare=_copied),
        Provider(FASTMIX + "for timm, elem", timm.Mixup(**drop_in, mode="elem"), prepare=_copied),
        Provider("eager", eager),
        _timm("in place", n),
        _timm("elem", n, mode="elem"),
        _torchvision("MixUp", n),
        _kornia("RandomMixUpV2", n, weight_of_partner=True),
    ]


def cutmix_providers(n: int) -> list[Provider]:
    def eager(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        lam = np.random.beta(1.0, 1.0)
        half_h, half_w = (int(side * np.sqrt(1 - lam)) // 2 for side in (height, width))
        cy, cx = np.random.randint(height), np.random.randint(width)
        y0, y1 = max(cy - half_h, 0), min(cy + half_h, height)
        x0, x1 = max(cx - half_w, 0), min(cx + half_w, width)
        index, mixed = torch.randperm(n, device=x.device), x.clone()
        mixed[:, :, y0:y1, x0:x1] = x[index, :, y0:y1, x0:x1]
        lam = 1 - (y1 - y0) * (x1 - x0) / (height * width)
        labels = F.one_hot(y, n).float()
        return mixed, lam * labels + (1 - lam) * labels[index]

    from fastmix.compat import timm

    drop_in = {"num_classes": n, "label_smoothing": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    cut = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    return [
        _fastmix("CutMix", methods.CutMix()),
        _fastmix("CutMix, a box each", methods.CutMix(mode="sample")),
        Provider(FASTMIX + "for timm, in place", timm.Mixup(**drop_in), prepare=_copied),
        Provider(FASTMIX + "for timm, elem", timm.Mixup(**drop_in, mode="elem"), prepare=_copied),
        Provider("eager", eager),
        _timm("in place", n, **cut),
        _timm("elem", n, mode="elem", **cut),
        _torchvision("CutMix", n),
        _kornia("RandomCutMixV2", n, weight_of_partner=False, use_correct_lambda=True),
    ]


def fmix_providers(n: int) -> list[Provider]:
    def eager(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        masks = np.stack([numpy_fmix_mask(x.shape[2:], np.random.beta(1.0, 1.0)) for _ in range(n)])
        mask = torch.from_numpy(masks).to(x)
        index = torch.randperm(n, device=x.device)
        labels, lam = F.one_hot(y, n).float(), mask.mean((1, 2))[:, None]
        mixed = x * mask[:, None] + x[index] * (1 - mask[:, None])
        return mixed, lam * labels + (1 - lam) * labels[index]

    return [
        _fastmix("FMix, a mask each", methods.FMix(mode="sample", spectrum="reference")),
        _fastmix("FMix, a mask each, isotropic", methods.FMix(mode="sample", spectrum="paper")),
        _fastmix("FMix", methods.FMix(spectrum="reference")),
        Provider("eager, NumPy masks", eager),
    ]


def numpy_fmix_mask(size: tuple[int, int], lam: float, decay: float = 3.0) -> np.ndarray:
    """One mask as FMix's published sampler makes it: noise with a falling spectrum, its highest share lam."""
    height, width = size
    frequency_y = np.fft.fftfreq(height)[:, None]
    frequency_x = np.fft.fftfreq(width)[: width // 2 + 1 + width % 2]
    frequency = np.sqrt(frequency_x**2 + frequency_y**2)
    noise = np.random.randn(*frequency.shape, 2)
    spectrum = noise / np.maximum(frequency, 1 / max(size))[..., None] ** decay
    field = np.fft.irfft2(spectrum[..., 0] + 1j * spectrum[..., 1], size).ravel()
    mask = np.zeros(height * width, dtype=np.float32)
    mask[np.argsort(field)[::-1][: round(lam * len(field))]] = 1
    return mask.reshape(size)


def puzzle_case(name: str, shape: tuple, blocks: int, generator: torch.Generator) -> Case:
    """PuzzleMix from images and their saliency gradient; the published composition solves its cuts by gco."""
    n, device = shape[0], generator.device
    x = F.interpolate(torch.rand(n, 3, 8, 8, generator=generator, device=device), shape[2:], mode="bicubic")
    x = (x + 0.1 * torch.randn(shape, generator=generator, device=device)).clamp(0, 1)
    grad = F.interpolate(torch.rand(n, 1, 6, 6, generator=generator, device=device), shape[2:], mode="bicubic") ** 2
    grad = (grad + 0.1) * torch.randn(shape, generator=generator, device=device)
    index = torch.arange(n, device=device) ^ 1  # neighbours are partners, so that a few rows can be checked alone
    lam = torch.rand(n, generator=generator, device=device)
    y = torch.zeros(n, dtype=torch.int64, device=device)
    method, swap = (methods.PuzzleMix(blocks=blocks, neighborhood=2, solver=solver) for solver in ("exact", "swap"))
    published = partial(published_puzzlemix, blocks=blocks, neighborhood=method.neighborhood)

    def call(method: methods.PuzzleMix, x: Tensor, grad: Tensor, lam: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        batch = method(x, y[: len(x)], lam=lam, index=index, saliency=grad)
        return batch.x, batch.lam

    def agree(found: tuple[Tensor, Tensor], case: Case) -> str:
        by_reference = methods.PuzzleMix(blocks=blocks, neighborhood=2, backend="reference")
        few = [part[:4] for part in case.args]
        return _off([part[:4] for part in found], call(by_reference, *few))

    def agree_swap(found: tuple[Tensor, Tensor], case: Case) -> str:
        return _off(found, call(swap, *case.args))

    providers = [Provider(FASTMIX + "PuzzleMix", partial(call, method), agree=agree)]
    if device.type == "cpu":
        providers.append(Provider("published, by gco", published, agree=agree_swap, package="gco-wrapper"))
    moved = 3 * x.numel() * x.element_size()
    return Case(name, (x, grad, lam, index), None, None, moved, providers=tuple(providers))


def _off(found, wanted) -> str:
    error = max((a.double() - b.double()).abs().max().item() for a, b in zip(found, wanted, strict=True))
    return "" if error <= 1e-4 else f"off by {error:.3g}"


def published_puzzlemix(
    x: Tensor, grad: Tensor, lam: Tensor, index: Tensor, blocks: int, neighborhood: int
) -> tuple[Tensor, Tensor]:
    """The published composition: eager saliency and costs, a cut a sample on the CPU, dense rounds, dense moves."""
    import gco

    saliency = reference.saliency_pool(grad, blocks)
    unary, *weights = reference.puzzle_energy(x, saliency, index, lam, 3, neighborhood=neighborhood)
    distance = np.array([[0, 0.25, 1], [0.25, 0, 0.25], [1, 0.25, 0]])
    grids = zip(unary.numpy(), *(w.numpy() for w in weights), strict=True)
    labels = [gco.cut_grid_graph(u, distance, wy, wx, n_iter=-1, algorithm="swap") for u, wy, wx in grids]
    mask = 1 - torch.from_numpy(np.stack(labels)).view(-1, blocks, blocks).float() / 2
    plan = reference.transport(mask > 0, saliency, 0.8)
    partner_plan = reference.transport(mask < 1, saliency[index], 0.8)
    own, other = dense_moves(x, _with_own(plan)), dense_moves(x[index], _with_own(partner_plan))
    weight = F.interpolate(mask.unsqueeze(1), size=x.shape[2:], mode="nearest")
    return own * weight + other * (1 - weight), mask.mean((1, 2))


def _with_own(plan: Tensor) -> Tensor:
    return torch.where(plan < 0, torch.arange(plan.shape[1], dtype=plan.dtype), plan)


def automix_case(name: str, shape: tuple[int, int, int, int], generator: torch.Generator) -> Case:
    """Two masks, two mixes and the mask loss of an AutoMix step, and the backward pass to the Mix Block's weights."""
    from fastmix.compat.openmixup import load_mix_block

    n, channels, size, image = shape
    device = generator.device
    block = PublishedMixBlock(channels, lam_embed="qkv").to(device)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    z = torch.rand(n, channels, size, size, generator=generator, device=device)
    images = torch.randn(n, 3, image, image, generator=generator, device=device)
    draws = tuple((lam, torch.randperm(n, generator=generator, device=device)) for lam in (0.3, 0.6))
    cotangent = torch.randn(images.shape, generator=generator, device=device)

    def run(step: Callable, block: torch.nn.Module, z: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        block.zero_grad(set_to_none=True)
        mixed_gen, loss, mixed = step(block, z, images, draws)
        torch.autograd.backward([mixed_gen, loss], [cotangent, torch.ones((), device=device)])
        return mixed_gen.detach(), mixed, block.value.weight.grad.flatten()

    published = partial(run, published_step, block)
    wanted = cache(lambda: published(z, images))

    def agree(found: tuple[Tensor, ...], case: Case) -> str:
        for i, (ours, theirs) in enumerate(zip(found, wanted(), strict=True)):
            error = (ours - theirs).abs().max().item()
            if not error <= 1e-3 * theirs.abs().max().item():
                return f"result {i} is off by {error:.3g}"
        return ""

    ours = load_mix_block(block.state_dict()).to(device)
    providers = (
        Provider(FASTMIX + "MixBlock", partial(run, fused_step, ours)),
        Provider("published composition", published),
    )
    return Case(name, (z, images), None, None, agree=agree, records=True, providers=providers)
