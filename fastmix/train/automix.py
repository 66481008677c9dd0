"""AutoMix (ECCV 2022): a classifier and the generator of its mixed images, trained together in one step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix.losses import mix_cross_entropy, on_device
from fastmix.methods.base import draw_beta, draw_permutation
from fastmix.nn import MixBlock, mask_loss
from fastmix.reference.upsample import upsample

from .ema import ema_update
from .features import capture, grid, inspect_encoder
from .schedules import Constant, Cosine, ReleasedMomentum, Schedule, as_schedule

HEADS = ("teacher_one_hot", "teacher_mix", "student_one_hot", "student_mix")
BUFFERS = ("ema", "student", "own")


class Draw(NamedTuple):
    """One random pairing of the batch and what it was mixed to; everything detached in an `AutoMixOutput`.

    Attributes:
        lam: weight of the own image, () or (N,).
        index: (N,) int64, the partner of each image.
        mixed: (N, C, H, W) mixed images.
        mean: (N,) mean of each mask, the realised lam.
        logits: (N, h, w) low-resolution logits of the own image's mask.
    """

    lam: Tensor
    index: Tensor
    mixed: Tensor
    mean: Tensor
    logits: Tensor
    mode: str
    activation_first: bool

    @property
    def mask(self) -> Tensor:
        """(N, H, W) weight of the own image at each pixel, computed when asked for."""
        size = self.mixed.shape[2:]
        if self.activation_first:
            return upsample(self.logits.sigmoid(), *size, self.mode)
        return upsample(self.logits, *size, self.mode).sigmoid()

    def detach(self) -> "Draw":
        """The same numbers outside the graph."""
        return self._replace(mixed=self.mixed.detach(), mean=self.mean.detach(), logits=self.logits.detach())


class AutoMixOutput(NamedTuple):
    """Result of a training step of `AutoMix`.

    Attributes:
        loss: the sum of the four parts, the only member to call `backward` on.
        cls: l_CE of the student on the clean images (0 with `clean_loss=False`).
        mix: l_MCE of the student on its mixed images, "cls" in the paper's Eq. 8.
        gen: l_MCE of the teacher on the generator's mixed images, "gen" in Eq. 8.
        mask: gamma * l_lambda, Eq. 7.
        mix_draw, gen_draw: what the student and the generator saw; `gen_draw` is None in a step without
            generator, both are None from a `GraphedStep`.
    """

    loss: Tensor
    cls: Tensor
    mix: Tensor
    gen: Tensor
    mask: Tensor
    mix_draw: Draw | None
    gen_draw: Draw | None


class Branch(nn.Module):
    """An encoder with two linear heads: `one_hot` for clean images, `mix` for mixed ones."""

    def __init__(self, encoder: nn.Module, one_hot: nn.Linear, mix: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.one_hot, self.mix = encoder, one_hot, mix

    def forward(self, images: Tensor, head: str) -> Tensor:
        return getattr(self, head)(_pooled(self.encoder(images)))


class AutoMix(nn.Module):
    r"""AutoMix's momentum pipeline around any image classifier.

    A student is trained on clean and on mixed images. Its exponential moving average, the teacher, supplies
    the features from which a Mix Block makes masks, and judges the images mixed by them, so that the block
    learns masks whose images show both labels in the ratio lam. One step minimises (paper, Eq. 8)

        CE(student.one_hot(x), y) + MCE(student.mix(x_mix), y, y_j, lam)                       -> student
        + MCE(teacher.mix(x_gen), y, y_j, lam) + gamma max(|lam - mean(mask)| - margin, 0)     -> Mix Block

    with two independent draws of partners and lam ~ Beta(alpha, alpha), one for `x_mix` and one for `x_gen`.
    The student's mask carries no gradient and the teacher's weights none; the generator's gradient flows
    through the teacher into the image, the mask and the block.

    Args:
        encoder: any classifier of (N, C, H, W) images. If its output comes from an `nn.Linear`, that layer is
            replaced by two heads (which start from its weights if it has `num_classes` outputs); otherwise
            the encoder must return features, (N, F) or (N, F, h, w), the latter averaged over positions. The
            module is taken over, not copied.
        num_classes: number of classes.
        feature: name of the submodule whose output the Mix Block sees, as in `dict(encoder.named_modules())`.
            A map (N, C, h, w), or tokens (N, T, D) whose last h*w make a grid of the image's proportions
            (class and register tokens first). The paper finds the third of four stages best in cost and
            accuracy (Table 11).
        total_steps: number of optimiser steps, from which the default momentum schedule is made.
        mix_block: a `MixBlock` to use; by default one is made with `lam_embed`, `mode`, `convention`,
            `init_std`. Default of the latter: `2.4 / sqrt(C)` for C feature channels (0.3 at 64), which gives
            attention scores and logits of the same spread at any C, and real masks from the first steps; the
            released 0.01 stays at a flat mask for the length of a short training.
        alpha: parameter of the Beta distribution of lam.
        per_sample: draw lam per sample instead of per batch (the released code's choice).
        lam_margin: the student's images are mixed by the constant lam, as in MixUp, where lam or 1 - lam <=
            lam_margin.
        mask_margin: epsilon of the mask loss; `mask_loss_per_sample` puts it on each sample as in Eq. 7
            instead of on the batch mean as in the released code.
        gamma: weight of the mask loss, a number or a function of the step (`fastmix.train.schedules`).
        momentum: of the teacher, a number or a function of the step. Default: a cosine to 1 (Eq. 12) from
            `1 - 30 / total_steps` limited to [0.9, 0.999], that is, an average over a thirtieth of the
            training as long as that is below 1000 steps; 0.999 if `total_steps` is not given.
        smoothing: label smoothing of all cross entropies.
        clean_loss: whether the student also sees clean images. Without, its one_hot head is not trained and
            `head` becomes "teacher_mix". The paper's Table 10 puts the loss at 0.05-0.14 points.
        truncate_teacher: stop the teacher's pass over the clean images at the feature layer (a step of
            ResNet-18 falls from 3.6 to 3.1 plain steps). The result is the same but for the running statistics
            of deeper normalisation layers with `teacher_buffers="own"`.
        teacher_buffers: where the teacher's running statistics (used in evaluation only) come from. "own": its
            own training passes, as released; a truncated or skipped pass then leaves the deep layers with those
            of mixed images alone. "student": copied from the student. "ema": averaged like the weights. In short
            trainings on digits "ema" classified 0.2 to 6 points better than "student" in 10 of 12 evaluations
            (0.2 worse in 2) and within 2 points of statistics recomputed on the clean images.
        sequential: back-propagate the parts one after another inside the call, so that the activations of only
            one pass exist at a time (a third of the memory at the same speed); `out.loss.backward()` then merely
            hands out the gradients. Costs a copy of the gradients.
        gen_every: train the generator every k-th optimiser step only; a step without it costs 2.4 plain ones.
        head: which head classifies in evaluation, one of "teacher_one_hot" (default), "teacher_mix",
            "student_one_hot", "student_mix". The published numbers are the best of the four on the test set;
            this is one, chosen beforehand.
        example: images (n, C, H, W) to run through the encoder once to find shapes. Default: zeros of a size
            it accepts.

    Shapes and ranges: images floating, normalised as the encoder wants them; targets (N,) int64.

    Raises:
        ValueError: a feature name that does not exist (close names are listed), an encoder or a feature whose
            output has no usable shape, an unknown option.

    Example:
        >>> automix = AutoMix(resnet18(num_classes=10), num_classes=10, feature="layer3", total_steps=10_000)
        >>> optimizer = torch.optim.SGD(automix.param_groups(lr=0.1), momentum=0.9)
        >>> for images, targets in loader:
        ...     out = automix(images, targets)
        ...     optimizer.zero_grad()
        ...     out.loss.backward()
        ...     optimizer.step()
        ...     automix.update_teacher()
        >>> logits = automix.eval()(images)

    The state dict holds the step number too: with it, the optimiser's state and the state of the random
    generator a training resumes exactly. Gradient accumulation: several `forward`/`backward`, then one
    `optimizer.step()` and one `update_teacher()`. DDP: wrap the module, call the wrapper, `update_teacher()`
    on `.module`; `gen_every > 1` needs `find_unused_parameters=True`. `compile_encoders` instead of
    `torch.compile(encoder)`. A step reads nothing back from the device; `GraphedStep` makes it one CUDA graph.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        feature: str = "layer3",
        *,
        total_steps: int | None = None,
        mix_block: MixBlock | None = None,
        lam_embed: str = "qkv",
        mode: str = "bilinear",
        convention: str = "released",
        init_std: float | None = None,
        alpha: float = 2.0,
        per_sample: bool = False,
        lam_margin: float = 0.08,
        mask_margin: float = 0.1,
        mask_loss_per_sample: bool = False,
        gamma: float | Schedule = 3.0,
        momentum: float | Schedule | None = None,
        smoothing: float = 0.0,
        clean_loss: bool = True,
        truncate_teacher: bool = True,
        teacher_buffers: str = "ema",
        sequential: bool = False,
        gen_every: int = 1,
        head: str | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        if teacher_buffers not in BUFFERS:
            raise ValueError(
                f"fastmix.AutoMix: teacher_buffers must be one of {', '.join(BUFFERS)}, got {teacher_buffers!r}"
            )
        if gen_every < 1:
            raise ValueError(f"fastmix.AutoMix: gen_every must be at least 1, got {gen_every}")
        found = inspect_encoder(encoder, feature, example)
        heads = _two_heads(encoder, found.classifier, found.width, num_classes)
        self.student = Branch(encoder, *heads)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mix_block = mix_block or MixBlock(
            found.channels,
            lam_embed=lam_embed,
            mode=mode,
            convention=convention,
            init_std=2.4 * found.channels**-0.5 if init_std is None else init_std,
        )
        if self.mix_block.in_channels != found.channels:
            raise ValueError(
                f"fastmix.AutoMix: mix_block must take the {found.channels} channels of {feature!r}, "
                f"got in_channels={self.mix_block.in_channels}"
            )
        self.mix_block.to(heads[0].weight)
        self.feature, self.classifier_name = feature, found.classifier
        self.alpha, self.per_sample, self.lam_margin = alpha, per_sample, lam_margin
        self.mask_margin, self.mask_loss_per_sample = mask_margin, mask_loss_per_sample
        self.gamma = as_schedule(gamma)
        self.momentum = default_momentum(total_steps) if momentum is None else as_schedule(momentum)
        self.smoothing, self.clean_loss, self.truncate_teacher = smoothing, clean_loss, truncate_teacher
        self.teacher_buffers, self.sequential, self.gen_every = teacher_buffers, sequential, gen_every
        self.head = self._checked_head(head or ("teacher_one_hot" if clean_loss else "teacher_mix"))
        self.step = 0
        if not clean_loss:
            self.student.one_hot.requires_grad_(False)
        if teacher_buffers != "own":
            _freeze_running_statistics(self.teacher)

    @classmethod
    def released(
        cls,
        encoder: nn.Module,
        num_classes: int,
        feature: str = "layer3",
        *,
        total_steps: int | None = None,
        **options: Any,
    ) -> "AutoMix":
        """The step of the released code, with its settings for CIFAR-100 (OpenMixup 0.2.10).

        Flat initial masks (std 0.01), no lambda embedding (its ImageNet settings have `lam_embed="qkv"`),
        nearest upsampling, gamma 0.1, momentum 0.999 -> 0.999999, the teacher's whole clean pass and its own
        running statistics. `options` override any of them. Losses, gradients, parameters and buffers after a
        step equal the released ones to rounding.
        """
        settings = dict(
            lam_embed="none",
            mode="nearest",
            init_std=0.01,
            gamma=0.1,
            momentum=0.999 if total_steps is None else ReleasedMomentum(total_steps),
            truncate_teacher=False,
            teacher_buffers="own",
        )
        return cls(encoder, num_classes, feature, total_steps=total_steps, **{**settings, **options})

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        *,
        lam: Sequence[Tensor | float] | Tensor | None = None,
        index: Sequence[Tensor] | Tensor | None = None,
        generator: torch.Generator | None = None,
        grad_scale: Tensor | float | None = None,
        gamma: Tensor | float | None = None,
        head: str | None = None,
    ) -> AutoMixOutput | Tensor:
        """One training step's losses (`train()`), or the logits of clean images (`eval()`).

        Args:
            images: (N, C, H, W).
            targets: (N,) int64; must be left out in evaluation.
            lam: the pair (student's, generator's) of weights, each () or (N,), instead of drawing them.
            index: the pair (student's, generator's) of partner maps, each (N,) int64, instead of drawing
                them.
            generator: random generator of the draws; on another device than the images, what it draws is
                copied. By default the images' device draws, and a step reads nothing back from it.
            grad_scale: with `sequential=True` and float16, the factor `loss` will be multiplied by before
                `backward`, so that the inner passes run at the same scale: `scaler.scale(torch.ones((),
                device=...))`.
            gamma: weight of the mask loss instead of the schedule's value, such as a tensor () that a CUDA graph
                follows.
            head: in evaluation, the head to use instead of `self.head`.

        Returns:
            `AutoMixOutput`, or (N, num_classes) logits in evaluation.
        """
        if not self.training:
            if targets is not None:
                raise ValueError("fastmix.AutoMix: targets are for training, call .train() first or leave them out")
            return self.classify(images, head)
        self._check_batch(images, targets)
        lam = self._draw_lam(images, generator) if lam is None else _pair(lam, images, "lam")
        index = _draw_index(images, generator) if index is None else _pair(index, images, "index")
        draws = 2 if self.trains_block else 1
        mix_draw, *gen_draws = self._mix(images, index[:draws], lam[:draws])
        gamma = self.gamma(self.step) if gamma is None else gamma

        def gen_part() -> tuple[Tensor, ...]:
            (draw,) = gen_draws
            gap = mask_loss(draw.mean, draw.lam, self.mask_margin, self.mask_loss_per_sample)
            return self._mixed_loss(self.teacher(draw.mixed, "mix"), targets, draw), gamma * gap

        def cls_part() -> tuple[Tensor, ...]:
            logits = self.student(images, "one_hot")
            return (F.cross_entropy(logits.to(_lam_dtype(logits)), targets, label_smoothing=self.smoothing),)

        def mix_part() -> tuple[Tensor, ...]:
            return (self._mixed_loss(self.student(mix_draw.mixed, "mix"), targets, mix_draw),)

        zero = lam.new_zeros(())
        run = _Sequential(self, grad_scale) if self.sequential and torch.is_grad_enabled() else _Joint()
        gen, mask = run(gen_part) if gen_draws else (zero, zero)
        (cls,) = run(cls_part) if self.clean_loss else (zero,)
        (mix,) = run(mix_part)
        gen_draw = gen_draws[0].detach() if gen_draws else None
        return AutoMixOutput(run.loss(), cls, mix, gen, mask, mix_draw, gen_draw)

    @property
    def trains_block(self) -> bool:
        """Whether the coming step trains the Mix Block, see `gen_every`."""
        return self.step % self.gen_every == 0

    def update_teacher(self, step: int | None = None, momentum: Tensor | float | None = None) -> None:
        """Move the teacher towards the student, after `optimizer.step()` (Eq. 12).

        Args:
            step: number of the optimiser step just made, from 0; by default they are counted. Schedules go on
                from it.
            momentum: instead of the schedule's value; see `ema_update` for one that a CUDA graph follows.
        """
        step = self.step if step is None else step
        momentum = self.momentum(step) if momentum is None else momentum
        ema_update(self.teacher.parameters(), self.student.parameters(), momentum)
        if self.teacher_buffers != "own":
            share = momentum if self.teacher_buffers == "ema" else 0.0
            ema_update(self.teacher.buffers(), self.student.buffers(), share)
        self.step = step + 1

    @torch.no_grad()
    def generate(self, images: Tensor, index: Tensor, lam: Tensor | float) -> Draw:
        """Mix clean images with the current teacher and Mix Block, for pictures; no state changes, no
        lam_margin.

        Example:
            >>> strip = [automix.generate(images, index, lam).mixed for lam in (0.0, 0.3, 0.5, 0.7, 1.0)]
        """
        training = self.teacher.training
        self.teacher.eval()
        try:
            features = self._teacher_features(images)
        finally:
            self.teacher.train(training)
        lam = on_device(lam, _lam_dtype(images), images.device)
        logits = self.mix_block(features, index, lam)
        return self._draw(lam, index, *self.mix_block.mix(images, index, logits), logits)

    def classify(self, images: Tensor, head: str | None = None) -> Tensor:
        """(N, num_classes) logits of clean images by one head, default `self.head`.

        Example:
            >>> accuracy = (automix.eval().classify(images, "student_mix").argmax(1) ==
            targets).float().mean()
        """
        if self.training:
            raise ValueError("fastmix.AutoMix: targets are missing; to classify, call .eval() first")
        branch, name = self._checked_head(head or self.head).split("_", 1)
        return getattr(self, branch)(images, name)

    def param_groups(self, lr: float, mix_lr: float | None = None, **options: Any) -> list[dict[str, Any]]:
        """Two parameter groups for an optimiser: the student and the Mix Block, with learning rates of their
        own.

        Args:
            lr: learning rate of the student.
            mix_lr: of the Mix Block, default `lr`. Schedulers that scale each group's rate keep the ratio.
            **options: set on both groups, such as `weight_decay`.
        """
        student = [p for p in self.student.parameters() if p.requires_grad]
        block = list(self.mix_block.parameters())
        return [
            {"params": student, "lr": lr, "name": "student", **options},
            {"params": block, "lr": lr if mix_lr is None else mix_lr, "name": "mix_block", **options},
        ]

    def compile_encoders(self, **options: Any) -> "AutoMix":
        """`torch.compile` the encoders in place, which keeps names and state dict; `options` as for
        torch.compile.

        The teacher's truncated pass over the clean images stays eager, since it stops in the middle.
        """
        self.student.encoder.compile(**options)
        self.teacher.encoder.compile(**options)
        return self

    def export(self, head: str | None = None) -> nn.Module:
        """A plain classifier with the trained weights, as the encoder was given: a copy, without anything of
        AutoMix.

        Args:
            head: one of the four heads, default `self.head`.
        """
        branch, name = self._checked_head(head or self.head).split("_", 1)
        source = getattr(self, branch)
        # The student's modules carry the encoder's own settings; the teacher's normalisation layers were
        # changed.
        encoder = copy.deepcopy(self.student.encoder)
        encoder.load_state_dict(source.encoder.state_dict())
        linear = copy.deepcopy(getattr(source, name)).requires_grad_(True)
        if self.classifier_name is None:
            return nn.Sequential(encoder, _Pool(), linear).eval()
        _set_submodule(encoder, self.classifier_name, linear)
        return encoder.eval()

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _teacher_features(self, images: Tensor) -> Tensor:
        # `forward` rather than a call: it skips a compiled encoder, which would ignore the hook.
        with torch.no_grad():
            output = capture(self.teacher.encoder, self.feature, images, stop=self.truncate_teacher)
            return grid(output, images.shape[2:], self.feature)

    def _mix(self, images: Tensor, index: Tensor, lam: Tensor) -> list[Draw]:
        """The student's draw, detached, and the generator's if there are two; one launch an op for both.

        index is (D, N), lam (D,) or (D, N), D = 1 or 2.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and len(index) == 2):
            student, *generator = self.mix_block(self._teacher_features(images), index, lam)
            logits = [self._constant_near_ends(student.detach(), lam[0]), *generator]
            mixed, mean = self.mix_block.mix(images, index, logits)
        student, *generator = map(self._draw, lam, index, mixed, mean, logits)
        return [student.detach(), *generator]

    def _constant_near_ends(self, logits: Tensor, lam: Tensor) -> Tensor:
        """The student's masks (N, h, w), constant lam where that lies within `lam_margin` of 0 or 1."""
        # At 40 the sigmoid is 0 or 1 to rounding, and an upsampled constant stays itself.
        constant = torch.logit(lam).clamp(-40.0, 40.0).view(-1, 1, 1)
        near_end = ((lam <= self.lam_margin) | (1 - lam <= self.lam_margin)).view(-1, 1, 1)
        return torch.where(near_end, constant, logits)

    def _draw(self, lam: Tensor, index: Tensor, mixed: Tensor, mean: Tensor, logits: Tensor) -> Draw:
        return Draw(lam, index, mixed, mean, logits, self.mix_block.mode, self.mix_block.activation_first)

    def _mixed_loss(self, logits: Tensor, targets: Tensor, draw: Draw) -> Tensor:
        lam = draw.lam.to(_lam_dtype(logits))
        return mix_cross_entropy(logits, targets, targets[draw.index], lam, self.smoothing)

    def _draw_lam(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """(2,) or (2, N) weights from Beta(alpha, alpha)."""
        shape = (2, images.shape[0]) if self.per_sample else (2,)
        return draw_beta(self.alpha, shape, generator, images.device).to(_lam_dtype(images))

    def _checked_head(self, head: str) -> str:
        if head not in HEADS:
            raise ValueError(f"fastmix.AutoMix: head must be one of {', '.join(HEADS)}, got {head!r}")
        if head.endswith("one_hot") and not self.clean_loss:
            raise ValueError(f"fastmix.AutoMix: head {head!r} is not trained with clean_loss=False")
        return head

    def _check_batch(self, images: Tensor, targets: Tensor | None) -> None:
        if targets is None:
            raise ValueError("fastmix.AutoMix: targets are missing; to classify, call .eval() first")
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(
                "fastmix.AutoMix: images must be floating of shape (N, C, H, W), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if targets.dtype is not torch.int64 or targets.shape != images.shape[:1]:
            raise ValueError(
                f"fastmix.AutoMix: targets must be int64 of shape ({images.shape[0]},), "
                f"got {targets.dtype} {tuple(targets.shape)}"
            )


class _Joint:
    """Losses summed into one graph."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def __call__(self, part: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        losses = part()
        self._losses.extend(losses)
        return [loss.detach() for loss in losses]

    def loss(self) -> Tensor:
        return sum(self._losses[1:], self._losses[0])


class _Sequential:
    """Losses differentiated as they come; what is left is a node that hands out the summed gradients."""

    def __init__(self, module: nn.Module, grad_scale: Tensor | float | None) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)
        self._scale, self._total = grad_scale, None

    def __call__(self, part: Callable[[], tuple[Tensor, ...]]) -> list[Tensor]:
        losses = part()
        total = sum(losses[1:], losses[0])
        scaled = total if self._scale is None else total * self._scale
        with torch.autocast(total.device.type, enabled=False):
            gradients = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
        # Weights that autocast keeps in half precision belong to the graph just freed.
        torch.clear_autocast_cache()
        both = [i for i, g in enumerate(gradients) if g is not None and self._gradients[i] is not None]
        if both:
            torch._foreach_add_([self._gradients[i] for i in both], [gradients[i] for i in both])
        self._gradients = [old if old is not None else new for old, new in zip(self._gradients, gradients, strict=True)]
        self._total = total.detach() if self._total is None else self._total + total.detach()
        return [loss.detach() for loss in losses]

    def loss(self) -> Tensor:
        return _HandOut.apply(self._total, self._gradients, self._scale, *self._parameters)


class _HandOut(torch.autograd.Function):
    """The identity of a loss whose gradients are known: its backward multiplies them by the incoming
    factor."""

    @staticmethod
    def forward(ctx, total, gradients, scale, *parameters):
        ctx.gradients, ctx.scale = gradients, scale
        return total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError("fastmix.AutoMix: with sequential=True the loss can be back-propagated once")
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        known = [g for g in gradients if g is not None]
        torch._foreach_mul_(known, factor.to(known[0].dtype))
        return None, None, None, *gradients


def default_momentum(total_steps: int | None) -> Schedule:
    """A cosine to 1 from `1 - 30 / total_steps`, limited to [0.9, 0.999]; 0.999 without a number of steps."""
    if total_steps is None:
        return Constant(0.999)
    return Cosine(min(max(1 - 30 / total_steps, 0.9), 0.999), 1.0, total_steps)


class _Pool(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return _pooled(features)


def _pooled(features: Tensor) -> Tensor:
    return features.mean((2, 3)) if features.dim() == 4 else features


def _two_heads(encoder: nn.Module, classifier: str | None, width: int, num_classes: int) -> tuple[nn.Linear, nn.Linear]:
    """Two new heads; the encoder's own classifier is taken out and its weights are used if they fit."""
    like = next(encoder.parameters())
    heads = tuple(nn.Linear(width, num_classes).to(like) for _ in range(2))
    if classifier is not None:
        old = encoder.get_submodule(classifier)
        _set_submodule(encoder, classifier, nn.Identity())
        if old.out_features == num_classes and old.bias is not None:
            for head in heads:
                head.load_state_dict(old.state_dict())
    return heads


def _set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _freeze_running_statistics(module: nn.Module) -> None:
    """Training passes keep using the batch's statistics, but no longer move the running ones."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._NormBase):
            child.momentum = 0.0


def _draw_index(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """(2, N): two permutations."""
    return torch.stack([draw_permutation(images.shape[0], generator, images.device) for _ in range(2)])


def _lam_dtype(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype is torch.float64 else torch.float32


def _pair(values: Sequence[Tensor | float], images: Tensor, name: str) -> Tensor:
    """(2,) or (2, N) from two values, each () or (N,)."""
    if len(values) != 2:
        raise ValueError(f"fastmix.AutoMix: {name} must be a pair (student's, generator's), got {len(values)} values")
    dtype = torch.int64 if name == "index" else _lam_dtype(images)
    return torch.stack(torch.broadcast_tensors(*(on_device(value, dtype, images.device) for value in values)))
