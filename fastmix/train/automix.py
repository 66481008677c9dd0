"""AutoMix (ECCV 2022): a classifier and the generator of its mixed images, trained together in one step."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmix import _settings
from fastmix.batch import KINDS, MixBatch
from fastmix.labels import IGNORED
from fastmix.losses import mix_binary_cross_entropy, on_device
from fastmix.methods.base import draw_beta, draw_permutation
from fastmix.nn import MixBlock, mask_loss
from fastmix.ops.loss_common import label_values
from fastmix.plan import Plan
from fastmix.reference.upsample import upsample

from . import inputs
from .classifier import AUTO, Exchange, Split, exchanged, inspect_encoder, main_output, split
from .ema import ema_update
from .features import capture, grid, in_mode
from .parts import Joint, Sequential
from .schedules import Constant, Cosine, ReleasedMomentum, Schedule, as_schedule
from .shards import shards_modules

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
        targets: those of the clean images.
    """

    loss: Tensor
    cls: Tensor
    mix: Tensor
    gen: Tensor
    mask: Tensor
    mix_draw: Draw | None
    gen_draw: Draw | None
    targets: Tensor | None = None

    @property
    def batch(self) -> MixBatch | None:
        """The student's mixed images with both targets and the mask (N, H, W), None from a `GraphedStep`.

        Made when asked for; `batch.apply(masks)` mixes label maps as the mask mixed the images.
        """
        draw, y = self.mix_draw, self.targets
        if draw is None or y is None:
            return None
        mask, lam = draw.mask, draw.lam.float()
        plan = Plan(draw.index, lam, mask=mask)
        return MixBatch(draw.mixed, y, y[draw.index], lam, draw.index, mask, plan=plan)


class Branch(nn.Module):
    """An encoder with two heads: `one_hot` for clean images, `mix` for mixed ones.

    The heads follow the encoder or, where its classifier is no last linear layer, are run inside by an `Exchange`.
    """

    def __init__(self, parts: Split) -> None:
        super().__init__()
        self.encoder, self.one_hot, self.mix, self.positions = parts
        self._exchanges = [module for module in self.encoder.modules() if isinstance(module, Exchange)]

    def forward(self, images: Tensor, head: str) -> Tensor:
        for exchange in self._exchanges:
            exchange.asked = head
        output = _pooled(main_output(self.encoder(images)), self.positions)
        return output if self._exchanges else getattr(self, head)(output)


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
        encoder: any classifier of (N, C, H, W) images, or an encoder that returns features, (N, F), or (N, F, h, w)
            or (N, h, w, F), which are averaged over positions. It stays whole and is trained as the student: the two
            share all parameters, its classifier being the student's one_hot head (mix without `clean_loss`). A
            classifier of another number of classes is first replaced, in `encoder` itself, by a new one of
            `num_classes`.
        num_classes: number of classes.
        feature: name of the submodule whose output the Mix Block sees, as in `dict(encoder.named_modules())`.
            A map, (N, C, h, w) or (N, h, w, C), or tokens, (N, T, C) or (N, C, T), whose last h*w make a grid of
            the image's proportions (class and register tokens first). The paper finds the third of four stages best
            in cost and accuracy (Table 11).
        feature_layout: "nchw", "nhwc", "nlc" or "ncl"; by default found by running the encoder on images of two
            sizes.
        classifier: name of the layer the logits come from, or names where they are a mean of several; None if
            the encoder returns features; by default found: the `nn.Linear` that returns the output, or the last
            layers that decide the logits.
        kind: loss of labels, "ce": cross entropy, or "bce": binary cross entropy of every class, averaged over
            classes, as in `MixBatch.loss`.
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

    Shapes and ranges: images floating, normalised as the encoder wants them; targets (N,) int64 class numbers, or
    (N, num_classes) floating in [0, 1]: several labels or probabilities.

    Raises:
        TypeError: an argument of a wrong type; an encoder that is compiled, wrapped or sharded.
        ValueError: a feature name that does not exist (close and likely names are listed), an encoder or a feature
            whose output has no usable shape, a layout or classifier that could not be told, an unknown option.

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
    on `.module`; `gen_every > 1` needs `find_unused_parameters=True`. FSDP2: `fully_shard` the module, first its
    `student.encoder` and `teacher.encoder` or blocks of them alike; the teacher's pass is then not truncated.
    `compile_encoders` instead of `torch.compile(encoder)`. A step reads nothing back from the device; `GraphedStep`
    makes it one CUDA graph.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        feature: str = "layer3",
        *,
        feature_layout: str | None = None,
        classifier: str | Sequence[str] | None = AUTO,
        kind: str = "ce",
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
        where = "AutoMix"
        for name, value, allowed in (("kind", kind, KINDS), ("teacher_buffers", teacher_buffers, BUFFERS)):
            _settings.one_of(where, name, value, allowed)
        _settings.whole(where, "num_classes", num_classes)
        _settings.whole(where, "gen_every", gen_every)
        if total_steps is not None:
            _settings.whole(where, "total_steps", total_steps)
        _settings.number(where, "alpha", alpha, above=True)
        _settings.number(where, "lam_margin", lam_margin, 0, 1)
        _settings.number(where, "mask_margin", mask_margin)
        _settings.number(where, "smoothing", smoothing, 0, 1)
        if not callable(gamma):
            _settings.number(where, "gamma", gamma)
        if momentum is not None and not callable(momentum):
            _settings.number(where, "momentum", momentum, 0, 1)
        if init_std is not None:
            _settings.number(where, "init_std", init_std)
        for name, value in (
            ("per_sample", per_sample), ("mask_loss_per_sample", mask_loss_per_sample), ("clean_loss", clean_loss),
            ("truncate_teacher", truncate_teacher), ("sequential", sequential),
        ):  # fmt: skip
            _settings.flag(where, name, value)
        if mix_block is not None and not isinstance(mix_block, nn.Module):
            raise TypeError(f"fastmix.AutoMix: mix_block must be a MixBlock, got {mix_block!r}")
        found = inspect_encoder(
            encoder, feature, num_classes, classifier=classifier, feature_layout=feature_layout, example=example
        )
        self.student = Branch(split(encoder, found, num_classes, shared="one_hot" if clean_loss else "mix"))
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
        self.mix_block.to(next(encoder.parameters()))
        # In a tuple, since it is no part of the state: the student has all of it.
        self._given = (encoder,)
        self.num_classes, self.kind = num_classes, kind
        self.feature, self.layout, self.classifiers = feature, found.layout, found.classifiers
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
            targets: (N,) int64, or (N, num_classes) floating; must be left out in evaluation.
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

        Raises:
            TypeError: images that are no tensor, such as a whole batch in a tuple or a dictionary.
            ValueError: images or targets of a wrong shape or dtype, or that look like (N, H, W, C); class numbers out
                of range on the CPU.
            RuntimeError: the encoder that was given has been put into evaluation since.
        """
        inputs.images("AutoMix", images)
        if not self.training:
            if targets is not None:
                raise ValueError("fastmix.AutoMix: targets are for training, call .train() first or leave them out")
            return self.classify(images, head)
        self._check_targets(images, targets)
        targets = targets if targets.dim() == 1 else targets.to(_lam_dtype(images))
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
            return (self._clean_loss(self.student(images, "one_hot"), targets),)

        def mix_part() -> tuple[Tensor, ...]:
            return (self._mixed_loss(self.student(mix_draw.mixed, "mix"), targets, mix_draw),)

        zero = lam.new_zeros(())
        sequential = self.sequential and torch.is_grad_enabled()
        run = Sequential(self, grad_scale, "fastmix.AutoMix: with sequential=True") if sequential else Joint()
        gen, mask = run(gen_part) if gen_draws else (zero, zero)
        (cls,) = run(cls_part) if self.clean_loss else (zero,)
        (mix,) = run(mix_part)
        gen_draw = gen_draws[0].detach() if gen_draws else None
        return AutoMixOutput(run.loss(), cls, mix, gen, mask, mix_draw, gen_draw, targets)

    def train(self, mode: bool = True) -> "AutoMix":
        """As of every module; the encoder that was given goes along."""
        self._given[0].train(mode)
        return super().train(mode)

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

        Raises:
            RuntimeError: FSDP2 has the parameters in shards.
        """
        branch, name = self._checked_head(head or self.head).split("_", 1)
        if shards_modules(self):
            raise RuntimeError(
                "fastmix.AutoMix: a sharded module cannot be copied; load its full state dict into one that is not and "
                "export that"
            )
        source = getattr(self, branch)
        # The student's modules carry the encoder's own settings; the teacher's normalisation layers were
        # changed.
        with in_mode(self.student.encoder, training=True):
            encoder = copy.deepcopy(self.student.encoder)
        encoder.load_state_dict(source.encoder.state_dict())
        linear = copy.deepcopy(getattr(source, name)).requires_grad_(True)
        if not self.classifiers:
            return nn.Sequential(encoder, _Pool(source.positions), linear).eval()
        stand_ins = [encoder.get_submodule(name) for name in self.classifiers]
        return exchanged(encoder, stand_ins, [linear] if len(stand_ins) == 1 else list(linear)).eval()

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def _teacher_features(self, images: Tensor) -> Tensor:
        # `forward` rather than a call: it skips a compiled encoder, which would ignore the hook. Shards need the calls,
        # to the end, of all that gathers and frees them.
        whole = partial(self.teacher, head="mix") if shards_modules(self.teacher) else None
        stop = self.truncate_teacher and whole is None
        with torch.no_grad():
            output = capture(self.teacher.encoder, self.feature, images, stop, whole)
            return grid(output, tuple(images.shape[2:]), self.feature, self.layout)

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
        batch = MixBatch(draw.mixed, targets, targets[draw.index], lam, draw.index)
        return batch.loss(logits, smoothing=self.smoothing, kind=self.kind)

    def _clean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "bce":
            return mix_binary_cross_entropy(logits, targets, targets, 1.0, self.smoothing)
        return F.cross_entropy(logits.to(_lam_dtype(logits)), targets, label_smoothing=self.smoothing)

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

    def _check_targets(self, images: Tensor, targets: Tensor | None) -> None:
        inputs.targets("AutoMix", images, targets, self.num_classes)
        if targets.dim() == 1:
            label_values("AutoMix", "targets", targets, self.num_classes, IGNORED)
        if not self._given[0].training:
            raise RuntimeError(
                "fastmix.AutoMix: the encoder, which is also the student's, is in evaluation mode; call automix.train()"
            )


def default_momentum(total_steps: int | None) -> Schedule:
    """A cosine to 1 from `1 - 30 / total_steps`, limited to [0.9, 0.999]; 0.999 without a number of steps."""
    if total_steps is None:
        return Constant(0.999)
    return Cosine(min(max(1 - 30 / total_steps, 0.9), 0.999), 1.0, total_steps)


class _Pool(nn.Module):
    def __init__(self, positions: tuple[int, int]) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, features: Tensor) -> Tensor:
        return _pooled(features, self.positions)


def _pooled(features: Tensor, positions: tuple[int, int]) -> Tensor:
    return features.mean(positions) if features.dim() == 4 else features


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
