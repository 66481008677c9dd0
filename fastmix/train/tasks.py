"""What one training step computes: the same small interface for hand-made methods and for AutoMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix import methods
from fastmix.reference.upsample import upsample
from fastmix.train.automix import AutoMix
from fastmix.train.config import Config
from fastmix.train.data import Splits
from fastmix.train.errors import UserError
from fastmix.train.models import Classifier, build_encoder
from fastmix.train.puzzlemix import PuzzleMixStep
from fastmix.train.schedules import Cosine


@dataclass
class Mixed:
    """Mixed images for pictures and measures.

    Attributes:
        x: ``(N, C, H, W)`` normalised images.
        weight: ``(N, H, W)`` weight of the own image at each pixel.
        lam: label weight of the own image, ``()`` or ``(N,)``.
        index: ``(N,)`` partners.
    """

    x: Tensor
    weight: Tensor
    lam: Tensor
    index: Tensor


class MethodTask:
    """A classifier trained on batches of a :class:`fastmix.methods.MixMethod`, from uint8 images in one pass."""

    parts: tuple[str, ...] = ()

    def __init__(self, config: Config, splits: Splits, device: torch.device, amp: torch.dtype | None) -> None:
        encoder, width = build_encoder(config.model, splits.in_channels, splits.image_size, config.width)
        self.module: nn.Module = Classifier(encoder, width, len(splits.classes))
        self.config = config
        self.method = methods.create(
            config.method,
            alpha=config.alpha,
            per_sample=config.per_sample,
            normalize=(splits.mean, splits.std),
            dtype=amp or torch.float32,
        )
        self.plain = methods.NoMix(normalize=(splits.mean, splits.std), dtype=amp or torch.float32)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, ...]:
        batch = self.method(images, targets)
        loss = batch.loss(model(batch.x), self.config.smoothing)
        if self.config.clean_loss:
            logits = model(self.plain(images, targets).x)
            loss = loss + F.cross_entropy(logits.float(), targets, label_smoothing=self.config.smoothing)
        return (loss,)

    def after_step(self, step: int) -> None:
        """Nothing follows the optimiser's step."""

    def mix(self, images: Tensor, lam: Tensor | float | None, index: Tensor) -> Mixed:
        """Mix uint8 images for show; random ``lam`` where None."""
        targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        batch = self.method(images, targets, lam=lam, index=index)
        weight = batch.lam.view(-1, 1, 1).expand(len(images), *images.shape[2:])
        if batch.box is not None:
            weight = 1 - _inside(batch.box, *images.shape[2:])
        return Mixed(batch.x, weight, batch.lam, batch.index)


class AutoMixTask:
    """Student, teacher and Mix Block of AutoMix."""

    parts = ("cls", "mix", "gen", "mask")

    def __init__(self, config: Config, splits: Splits, device: torch.device, total_steps: int) -> None:
        encoder, _ = build_encoder(config.model, splits.in_channels, splits.image_size, config.width)
        example = torch.zeros(2, splits.in_channels, splits.image_size, splits.image_size)
        options: dict[str, Any] = {
            "alpha": config.alpha,
            "per_sample": config.per_sample,
            "smoothing": config.smoothing,
            "clean_loss": config.clean_loss,
            "sequential": config.sequential,
            "gen_every": config.gen_every,
            "total_steps": total_steps,
            "example": example,
        }
        if not config.released:
            options |= {
                "gamma": config.gamma,
                "init_std": config.init_std,
                "mode": config.upsample,
                "lam_embed": config.lam_embed,
                "momentum": Cosine(config.teacher_momentum, 1.0, total_steps),
            }
        build = AutoMix.released if config.released else AutoMix
        try:
            self.module = build(encoder, len(splits.classes), config.feature, **options)
        except ValueError as error:
            raise UserError(f"--method automix: {error}") from None
        self.config = config
        self.plain = methods.NoMix(normalize=(splits.mean, splits.std), dtype=torch.float32)
        self._scaled = config.sequential

    def param_groups(self) -> list[dict[str, Any]]:
        mix_lr = self.config.lr if self.config.released else self.config.mix_lr
        return self.module.param_groups(self.config.lr, mix_lr)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, ...]:
        x = self.plain(images, targets).x
        out = model(x, targets, grad_scale=grad_scale if self._scaled else None)
        return (out.loss, out.cls, out.mix, out.gen, out.mask)

    def after_step(self, step: int) -> None:
        self.module.update_teacher(step)

    def mix(self, images: Tensor, lam: Tensor | float | None, index: Tensor) -> Mixed:
        """Mix uint8 images for show; random ``lam`` where None."""
        targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        if lam is None:
            lam = methods.base.draw_beta(self.config.alpha, (), None, images.device)
        draw = self.module.generate(self.plain(images, targets).x, index, lam)
        return Mixed(draw.mixed, draw.mask, draw.lam, draw.index)


class PuzzleMixTask:
    """A classifier trained on images that PuzzleMix mixes by the saliency of the classifier itself."""

    parts = ("mix", "clean")

    def __init__(self, config: Config, splits: Splits, device: torch.device, amp: torch.dtype | None) -> None:
        encoder, width = build_encoder(config.model, splits.in_channels, splits.image_size, config.width)
        blocks = [count for count in (2, 4, 8, 16) if splits.image_size % count == 0]
        if not blocks:
            raise UserError(f"--method puzzlemix: needs images of an even side, got {splits.image_size} pixels")
        method = methods.PuzzleMix(
            alpha=config.alpha,
            per_sample=config.per_sample,
            blocks=blocks,
            mean=splits.mean,
            std=splits.std,
            dtype=amp or torch.float32,
        )
        model = Classifier(encoder, width, len(splits.classes))
        self.module = PuzzleMixStep(model, method, float(config.clean_loss), smoothing=config.smoothing)
        self.config = config
        self.plain = methods.NoMix(normalize=(splits.mean, splits.std), dtype=torch.float32)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, ...]:
        out = model(self.plain(images, targets).x, targets, grad_scale=grad_scale)
        return (out.loss, out.mix, out.clean)

    def after_step(self, step: int) -> None:
        """Nothing follows the optimiser's step."""

    def mix(self, images: Tensor, lam: Tensor | float | None, index: Tensor) -> Mixed:
        """Mix uint8 images for show, salient for the classes that the model predicts; random ``lam`` where None."""
        targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        x = self.plain(images, targets).x
        batch = self.module.method(x, targets, lam=lam, index=index, saliency=self.module.saliency(x))
        weight = upsample(batch.mask, *images.shape[2:], "nearest")
        return Mixed(batch.x, weight, batch.lam, batch.index)


def build_task(
    config: Config, splits: Splits, device: torch.device, total_steps: int, amp: torch.dtype | None
) -> MethodTask | AutoMixTask | PuzzleMixTask:
    """The task of ``config.method`` on ``device``."""
    if config.method == "automix":
        task = AutoMixTask(config, splits, device, total_steps)
    elif config.method == "puzzlemix":
        task = PuzzleMixTask(config, splits, device, amp)
    else:
        task = MethodTask(config, splits, device, amp)
    task.module.to(device)
    if config.channels_last:
        task.module.to(memory_format=torch.channels_last)
    return task


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """1 inside ``box (N, 4)``, 0 elsewhere, ``(N, H, W)`` float32."""
    y, x = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    rows = (y >= box[:, 0:1]) & (y < box[:, 2:3])  # [N, H]
    columns = (x >= box[:, 1:2]) & (x < box[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).float()
