"""A training step with PuzzleMix: the saliency pass, the mixing and the loss, around any classifier."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix.batch import MixBatch
from fastmix.methods.puzzlemix import PuzzleMix

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
        model: any classifier, `model(images) -> (N, K)` logits. Taken over, not copied.
        method: the mixing. Default: `PuzzleMix()`.
        clean_lam: weight of the loss on the clean images. At 0 the saliency comes from a pass in evaluation mode
            (running statistics of batch norm, which stay as they are, and no dropout). Above 0 one pass in training
            mode gives both the saliency and, in the same backward pass, the parameters' gradients of the clean loss.
        loss: "cross_entropy", the mixed one, or "softmax_bce", the published binary cross entropy of the softmax,
            averaged over classes; the clean loss is then scaled by 2 / K to match.
        smoothing: label smoothing of the mixed labels.

    Raises:
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
        if not clean_lam >= 0:
            raise ValueError(f"fastmix.PuzzleMixStep: clean_lam must not be negative, got {clean_lam!r}")
        if loss not in LOSSES:
            raise ValueError(f"fastmix.PuzzleMixStep: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
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
            targets: (N,) int64.
            lam, index, blocks, generator: as for `PuzzleMix`.
            grad_scale: factor of the loss scaling that is in use, as from `scaler.scale(torch.ones(()))`; only the
                gradients of the clean loss, which are computed inside, need it.
        """
        if not self.training:
            return self.model(images)
        self._check(images, targets)
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
        with evaluation(self.model), torch.enable_grad():
            logits = self.model(images)
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
            logits = self.model(images).float()
            weight = self.clean_lam * (2 / logits.shape[1] if self.loss == "softmax_bce" else 1)
            clean = weight * F.cross_entropy(logits, targets)
            scaled = clean if grad_scale is None else clean * grad_scale
            with torch.autocast(images.device.type, enabled=False):
                saliency, *gradients = torch.autograd.grad(scaled, [images, *parameters], allow_unused=True)
        # Weights that autocast keeps in half precision belong to the graph just freed.
        torch.clear_autocast_cache()
        return saliency, clean.detach(), _HandOut.apply(clean.detach(), gradients, grad_scale, *parameters)

    def _mixed_loss(self, logits: Tensor, batch: MixBatch) -> Tensor:
        if self.loss == "cross_entropy":
            return batch.loss(logits, self.smoothing)
        with torch.autocast(logits.device.type, enabled=False):
            return F.binary_cross_entropy(logits.float().softmax(1), batch.soft(logits.shape[1], self.smoothing))

    def _check(self, images: Tensor, targets: Tensor | None) -> None:
        if targets is None:
            raise ValueError("fastmix.PuzzleMixStep: targets are missing; to classify, call .eval() first")
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(
                "fastmix.PuzzleMixStep: images must be floating of shape (N, C, H, W), "
                f"got {images.dtype} {tuple(images.shape)}"
            )


def _logit_gradient(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Gradient of each image's cross entropy, `softmax - one_hot`, scaled to a target's entry of `-_GAIN`."""
    error = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    target = (logits.argmax(1) if targets is None else targets).unsqueeze(1)
    # The sum of the others is what is missing to 1, without the cancellation.
    others = error.scatter(1, target, 0).sum(1, keepdim=True)
    error = error.scatter(1, target, -others) * (_GAIN / others.clamp_min(1e-30))
    return error.to(logits.dtype)


class _HandOut(torch.autograd.Function):
    """The identity of a loss whose gradients are known: its backward multiplies them by the incoming factor."""

    @staticmethod
    def forward(ctx, total, gradients, scale, *parameters):
        ctx.gradients, ctx.scale = gradients, scale
        return total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError("fastmix.PuzzleMixStep: with clean_lam > 0 the loss can be back-propagated once")
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        known = [g for g in gradients if g is not None]
        torch._foreach_mul_(known, factor.to(known[0].dtype))
        return None, None, None, *gradients


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
