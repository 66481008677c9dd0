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
from fastmix.train.config import Config, option
from fastmix.train.data import Splits
from fastmix.train.errors import UserError
from fastmix.train.features import capture, find_layout, grid, in_mode
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
            mode=config.mode,
            pairing=config.pairing,
            normalize=(splits.mean, splits.std),
            dtype=amp or torch.float32,
            **_own_options(config, encoder),
        )
        if self.method.needs == "features":
            example = torch.zeros(2, splits.in_channels, splits.image_size, splits.image_size)
            try:
                self.layout = find_layout(encoder, config.feature, example)
            except ValueError as error:
                text = str(error).removeprefix("fastmix.AutoMix: ")
                raise UserError(f"{option('feature')} {config.feature}: {text}") from None
        self.plain = methods.NoMix(normalize=(splits.mean, splits.std), dtype=amp or torch.float32)
        self.exact = methods.NoMix(normalize=(splits.mean, splits.std), dtype=torch.float32)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": self.config.lr}]

    def trained(self, weights: str | None = None) -> tuple[nn.Module, nn.Linear]:
        """The encoder and the head that evaluation uses; there is no choice of ``weights``."""
        return _only_weights(self.module, weights, self.config.method)

    def unmixed(self) -> nn.Module:
        """What is trained plainly once mixing is off."""
        return self.module

    def unmixed_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return (_plain_loss(self, model, images, targets),)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, ...]:
        batch = self.method(images, targets, **self._needed(images, targets))
        loss = batch.loss(self.method.forward(model, batch), self.config.smoothing)
        if self.config.clean_loss:
            logits = model(self.plain(images, targets).x)
            loss = loss + F.cross_entropy(logits.float(), targets, label_smoothing=self.config.smoothing)
        return (loss,)

    def after_step(self, step: int) -> None:
        """Nothing follows the optimiser's step."""

    def mix(self, images: Tensor, lam: Tensor | float | None, index: Tensor) -> Mixed:
        """Mix uint8 images for show, at the input where there is a choice; random ``lam`` where None."""
        targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        needed = {"layer": "input"} if self.method.needs == "model" else self._needed(images, targets)
        batch = self.method(images, targets, lam=lam, index=index, **needed)
        # Of a batch that holds the clean images too, the mixed ones come last.
        rows = slice(len(batch) - len(images), None)
        shown = batch.lam if batch.lam.dim() == 0 else batch.lam[rows]
        return Mixed(batch.x[rows], batch.pixel_weight()[rows], shown, batch.index[rows])

    def _needed(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What the method needs beside the batch."""
        if self.method.needs != "features":
            return {}
        encoder, x = self.module.encoder, self.exact(images, targets).x
        with in_mode(encoder, training=False), torch.no_grad():
            output = capture(encoder, self.config.feature, x, stop=True)
        return {"saliency": grid(output, tuple(x.shape[2:]), self.config.feature, self.layout)}


def _own_options(config: Config, encoder: nn.Module) -> dict[str, Any]:
    """Options that one method alone has, from the settings, which are checked against the encoder."""
    if config.method == "attentivemix":
        _check_layer(encoder, config.feature, "feature")
    if config.method != "manifoldmix":
        return {}
    names = config.layers.split(",")
    for name in names:
        if name != methods.manifoldmix.INPUT:
            _check_layer(encoder, name, "layers")
    return {"layers": [name if name == methods.manifoldmix.INPUT else f"encoder.{name}" for name in names]}


def _check_layer(encoder: nn.Module, name: str, setting: str) -> None:
    if name not in dict(encoder.named_modules()) or not name:
        known = ", ".join(name for name, _ in encoder.named_children())
        raise UserError(f"{option(setting)} {name}: the model has no such layer; it has {known}")


class AutoMixTask:
    """Student, teacher and Mix Block of AutoMix."""

    parts = ("cls", "mix", "gen", "mask")

    def __init__(self, config: Config, splits: Splits, device: torch.device, total_steps: int) -> None:
        encoder, _ = build_encoder(config.model, splits.in_channels, splits.image_size, config.width)
        example = torch.zeros(2, splits.in_channels, splits.image_size, splits.image_size)
        options: dict[str, Any] = {
            "alpha": config.alpha,
            "per_sample": config.mode == "sample",
            "smoothing": config.smoothing,
            "clean_loss": config.clean_loss,
            "sequential": config.sequential,
            "gen_every": config.gen_every,
            "total_steps": total_steps,
            "example": example,
            "classifier": None,
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

    def trained(self, weights: str | None = None) -> tuple[nn.Module, nn.Linear]:
        """Encoder and head, by default those that evaluation uses.

        ``weights`` is ``"teacher"``, ``"student"``, or one of these with a head behind it, such as ``"student_mix"``.
        """
        branch, head = self.module.head.split("_", 1)
        if weights is not None:
            branch, _, chosen = weights.partition("_")
            head = chosen or head
        if head == "one_hot" and not self.config.clean_loss:
            raise UserError(
                f"--weights {weights}: that head was not trained, since the run had no loss on clean images"
            )
        return getattr(self.module, branch).encoder, getattr(getattr(self.module, branch), head)

    def unmixed(self) -> nn.Module:
        """What is trained plainly once mixing is off: the student, with the head that evaluation uses."""
        return _OneHead(self.module.student, self.module.head.split("_", 1)[1])

    def unmixed_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        loss = _plain_loss(self, model, images, targets)
        if self.module.teacher_buffers == "own":
            # Its running statistics would stay those of the weights that it had.
            with torch.no_grad():
                self.module.teacher.encoder(self.plain(images, targets).x)
        zero = torch.zeros_like(loss)
        return (loss, loss, zero, zero, zero)

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
            mode=config.mode,
            pairing=config.pairing,
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

    def trained(self, weights: str | None = None) -> tuple[nn.Module, nn.Linear]:
        """The encoder and the head that evaluation uses; there is no choice of ``weights``."""
        return _only_weights(self.module.model, weights, self.config.method)

    def unmixed(self) -> nn.Module:
        """What is trained plainly once mixing is off."""
        return self.module.model

    def unmixed_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        loss = _plain_loss(self, model, images, targets)
        return (loss, torch.zeros_like(loss), loss)

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


class _OneHead(nn.Module):
    """A branch of AutoMix as a classifier by one of its heads, which alone is a part of it."""

    def __init__(self, branch: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.head = branch.encoder, getattr(branch, name)
        self._branch, self._name = (branch,), name

    def forward(self, images: Tensor) -> Tensor:
        return self._branch[0](images, self._name)


def _plain_loss(task: Task, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    logits = model(task.plain(images, targets).x)
    return F.cross_entropy(logits.float(), targets, label_smoothing=task.config.smoothing)


def _only_weights(model: Classifier, weights: str | None, method: str) -> tuple[nn.Module, nn.Linear]:
    if weights is not None:
        raise UserError(f"--weights {weights}: only automix has several, a run of {method} has one set of weights")
    return model.encoder, model.head


Task = MethodTask | AutoMixTask | PuzzleMixTask


def build_task(config: Config, splits: Splits, device: torch.device, total_steps: int, amp: torch.dtype | None) -> Task:
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
