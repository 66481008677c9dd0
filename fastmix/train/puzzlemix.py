"""A training step with PuzzleMix: the saliency pass, the mixing and the loss, around any classifier."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix import _settings
from fastmix.batch import MixBatch
from fastmix.labels import IGNORED
from fastmix.methods.puzzlemix import PuzzleMix
from fastmix.ops.loss_common import label_values

from . import inputs
from .features import in_mode
from .parts import HandOut
from .shards import in_shards

LOSSES = ("cross_entropy", "softmax_bce")

# The published settings of the step, where they differ from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar100": {"loss": "softmax_bce"},
    "tiny_imagenet": {"loss": "softmax_bce", "clean_lam": 1.0},
    "imagenet": {},
    "imagenet_fast": {"clean_lam": 1.0},
}

# Factor of the logits' gradients in a saliency pass: float16 gradients of the first layers would else lose bits.
_GAIN = 256.0


class PuzzleMixOutput(NamedTuple):
    """Result of a training step of `PuzzleMixStep`.

    Attributes:
        loss: the sum of the parts, the only member to call `backward` on.
        mix: loss on the mixed images.
        clean: loss on the clean images, times its weight; 0 without one.
        batch: the mixed images and their labels.
    """

    loss: Tensor
    mix: Tensor
    clean: Tensor
    batch: MixBatch


class PuzzleMixStep(nn.Module):
    """PuzzleMix (Kim et al., 2020) around any image classifier.

    A step takes the gradient of the classifier's loss with respect to the clean images, mixes them by it, and returns
    the loss on the mixed images. No gradient of a parameter is computed for that, except where the clean images count
    in the loss, and what has accumulated in `.grad` is left alone.

    Args:
        model: any classifier, `model(images) -> (N, K)` logits. Used as it is, not copied. FSDP2: shard it before, or
            shard the step.
        method: the mixing. Default: `PuzzleMix()`.
        clean_lam: weight of the loss on the clean images. At 0 the saliency comes from a pass in evaluation mode
            (running statistics of batch norm, which stay as they are, and no dropout). Above 0 one pass in training
            mode gives both the saliency and, in the same backward pass, the parameters' gradients of the clean loss.
        loss: "cross_entropy", the mixed one, or "softmax_bce", the published binary cross entropy of the softmax,
            averaged over classes; the clean loss is then scaled by 2 / K to match.
        smoothing: label smoothing of the mixed labels.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a negative `clean_lam`, an unknown loss.

    Example:
        >>> step = PuzzleMixStep.preset("cifar100", model)
        >>> for images, targets in loader:
        ...     out = step(images, targets)
        ...     optimizer.zero_grad()
        ...     out.loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        method: PuzzleMix | None = None,
        clean_lam: float = 0.0,
        loss: str = "cross_entropy",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        where = "PuzzleMixStep"
        for name, value, kind in (("model", model, nn.Module), ("method", method, PuzzleMix)):
            if not isinstance(value, kind) and (value is not None or name == "model"):
                raise TypeError(f"fastmix.{where}: {name} must be a {kind.__name__}, got {value!r}")
        _settings.number(where, "clean_lam", clean_lam)
        _settings.one_of(where, "loss", loss, LOSSES)
        _settings.number(where, "smoothing", smoothing, 0, 1)
        self.model = model
        self.method = PuzzleMix() if method is None else method
        self.clean_lam, self.loss, self.smoothing = clean_lam, loss, smoothing

    @classmethod
    def preset(cls, name: str, model: nn.Module, **overrides: Any) -> "PuzzleMixStep":
        """The published settings: names as for `PuzzleMix.preset`, whose method is the default of `method`.

        "imagenet_fast" is that of its first phases; the last one has `clean_lam=0`, an attribute that may be set.
        """
        method = overrides.pop("method", None) or PuzzleMix.preset(name)
        return cls(model, method, **{**PRESETS[name], **overrides})

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        blocks: int | None = None,
        grad_scale: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> PuzzleMixOutput | Tensor:
        """A training step's loss, or in evaluation mode the logits of `images`.

        Args:
            images: (N, C, H, W) floating, normalised as `method.mean` and `method.std` say.
            targets: (N,) int64 class numbers, or (N, K) floating probabilities.
            lam, index, blocks, generator: as for `PuzzleMix`.
            grad_scale: factor of the loss scaling that is in use, as from `scaler.scale(torch.ones(()))`; only the
                gradients of the clean loss, which are computed inside, need it.

        Raises:
            TypeError: images that are no tensor, such as a whole batch in a tuple or a dictionary.
            ValueError: images or targets of a wrong shape or dtype, or that look like (N, H, W, C).
        """
        inputs.images("PuzzleMixStep", images, self.method.check_layout, "PuzzleMix(check_layout=False)")
        if not self.training:
            return self.model(images)
        inputs.targets("PuzzleMixStep", images, targets)
        images = images.detach()
        noise = self.method.start_noise(images, generator)
        seen = images if noise is None else self.method.with_noise(images, noise)
        if self.clean_lam > 0:
            saliency, clean, clean_loss = self._clean_pass(seen, targets, grad_scale)
        else:
            saliency, clean, clean_loss = self.saliency(seen, targets), images.new_zeros((), dtype=torch.float32), 0
        if noise is not None:
            noise = self.method.finish_noise(noise, saliency, generator)
        with torch.no_grad():
            batch = self.method(images, targets, generator, lam, index, saliency=saliency, blocks=blocks, noise=noise)
        mix = self._mixed_loss(self.model(batch.x), batch)
        return PuzzleMixOutput(mix + clean_loss, mix.detach(), clean, batch)

    def saliency(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Gradient (N, C, H, W) of the cross entropy with respect to the images, the model being evaluated.

        Each image's is scaled by a number of its own, which nothing after it sees, so that half precision and well
        learnt images do not lose it. Without `targets` it is that of the class the model predicts.

        Example:
            >>> maps = step.saliency(images, targets).square().mean(1).sqrt()
        """
        images = images.detach().requires_grad_()
        with in_mode(self.model, training=False), torch.enable_grad():
            logits = self._logits(images, targets)
            with torch.autocast(images.device.type, enabled=False):
                return torch.autograd.grad(logits, images, _logit_gradient(logits.detach(), targets))[0]

    def compile(self, **options: Any) -> None:
        """`torch.compile` the classifier in place; the step around it stays eager."""
        self.model.compile(**options)

    def _clean_pass(self, images: Tensor, targets: Tensor, grad_scale) -> tuple[Tensor, Tensor, Tensor]:
        """Saliency, the clean loss, and the same loss as a node that hands out the parameters' gradients."""
        images = images.detach().requires_grad_()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        with torch.enable_grad():
            logits = self._logits(images, targets).float()
            weight = self.clean_lam * (2 / logits.shape[1] if self.loss == "softmax_bce" else 1)
            clean = weight * F.cross_entropy(logits, targets if targets.dim() == 1 else targets.to(logits.dtype))
            scaled = clean if grad_scale is None else clean * grad_scale
            if in_shards(parameters):
                # FSDP2 reduces gradients in `backward` alone, which goes through this pass a second time.
                return torch.autograd.grad(scaled, images, retain_graph=True)[0], clean.detach(), clean
            with torch.autocast(images.device.type, enabled=False):
                saliency, *gradients = torch.autograd.grad(scaled, [images, *parameters], allow_unused=True)
        # Weights that autocast keeps in half precision belong to the graph just freed.
        torch.clear_autocast_cache()
        where = "fastmix.PuzzleMixStep: with clean_lam > 0"
        return saliency, clean.detach(), HandOut.apply(where, clean.detach(), gradients, grad_scale, *parameters)

    def _logits(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """Of the clean images, from which the labels' range is known."""
        logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"fastmix.PuzzleMixStep: model must return logits (N, K), got {got}")
        if targets is not None and targets.dim() == 1:
            label_values("PuzzleMixStep", "targets", targets, logits.shape[1], IGNORED)
        elif targets is not None and targets.shape[1] != logits.shape[1]:
            raise ValueError(
                f"fastmix.PuzzleMixStep: targets must have the {logits.shape[1]} classes of the logits, "
                f"got {tuple(targets.shape)}"
            )
        return logits

    def _mixed_loss(self, logits: Tensor, batch: MixBatch) -> Tensor:
        if self.loss == "cross_entropy":
            return batch.loss(logits, self.smoothing)
        with torch.autocast(logits.device.type, enabled=False):
            return F.binary_cross_entropy(logits.float().softmax(1), batch.soft(logits.shape[1], self.smoothing))


def _logit_gradient(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Gradient of each image's cross entropy, `softmax - one_hot`, scaled to a target's entry of `-_GAIN`."""
    error = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    if targets is not None and targets.dim() == 2:
        error = error * targets.sum(1, keepdim=True) - targets
        return (error * (_GAIN / error.abs().amax(1, keepdim=True).clamp_min(1e-30))).to(logits.dtype)
    target = (logits.argmax(1) if targets is None else targets.clamp_min(0)).unsqueeze(1)
    # The sum of the others is what is missing to 1, without the cancellation.
    others = error.scatter(1, target, 0).sum(1, keepdim=True)
    error = error.scatter(1, target, -others) * (_GAIN / others.clamp_min(1e-30))
    if targets is not None:
        error = error * (targets != IGNORED).unsqueeze(1)
    return error.to(logits.dtype)
