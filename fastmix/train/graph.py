"""A training step as a CUDA graph: captured once, replayed with fresh random numbers and live schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastmix import _settings

from .automix import AutoMix, AutoMixOutput

WARM_UP = 3

LossFunction = Callable[[Tensor, Tensor], Tensor]


class TrainStep:
    """What a `GraphedStep` replays, run eagerly: schedules and learning rates are tensors that no step reads back.

    `zero_grad`, forward, backward, clipping, `optimizer.step()` and `update_teacher`; arguments as there. Any device
    and optimiser will do, but on a GPU only the optimisers that `GraphedStep` takes keep the host from waiting.

    Example:
        >>> step = TrainStep(automix, optimizer, images)
        >>> loss = step(images, targets).loss
    """

    def __init__(
        self,
        loss: AutoMix | LossFunction,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        *,
        amp_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not callable(loss) or not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "fastmix.GraphedStep: loss must be an AutoMix or a function and optimizer a torch.optim.Optimizer, "
                f"got {type(loss).__name__} and {type(optimizer).__name__}"
            )
        if max_norm is not None:
            _settings.number("GraphedStep", "max_norm", max_norm, above=True)
        self.loss, self.optimizer = loss, optimizer
        self.amp_dtype, self.max_norm, self.generator = amp_dtype, max_norm, generator
        self._device = images.device
        self._live: list[tuple[Tensor, Callable[[], float]]] = []
        self._rates = [self._follow(lambda group=group: group["lr"]) for group in optimizer.param_groups]
        if isinstance(loss, AutoMix):
            double = images.dtype is torch.float64
            self._gamma = self._follow(lambda: loss.gamma(loss.step), torch.float64 if double else torch.float32)
            # 1 - momentum would lose its digits in float32.
            self._momentum = self._follow(lambda: loss.momentum(loss.step), torch.float64)

    def __call__(self, images: Tensor, targets: Tensor) -> AutoMixOutput | Tensor:
        if torch.is_autocast_enabled(self._device.type):
            raise ValueError("fastmix.GraphedStep: must be called outside autocast; give it amp_dtype instead")
        for value, read in self._live:
            value.fill_(read())
        if not isinstance(self.loss, AutoMix):
            return self._perform(images, targets)[0]
        if not self.loss.training:
            raise ValueError("fastmix.GraphedStep: the AutoMix module is in evaluation, call .train() first")
        step = self.loss.step
        losses = self._perform(images, targets)
        # A replay does not run the Python code that counts.
        self.loss.step = step + 1
        return AutoMixOutput(*losses, None, None)

    def _follow(self, read: Callable[[], float], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor () that holds what `read` returns at the start of each step."""
        value = torch.zeros((), dtype=dtype, device=self._device)
        self._live.append((value, read))
        return value

    def _perform(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return self._body(images, targets).unbind()

    def _body(self, images: Tensor, targets: Tensor) -> Tensor:
        """The step itself; the detached losses, (1,) or for AutoMix (5,)."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self._losses(images, targets)
        losses[0].backward()
        if self.max_norm is not None:
            groups = self.optimizer.param_groups
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], self.max_norm)
        with self._rates_on_device():
            self.optimizer.step()
        if isinstance(self.loss, AutoMix):
            self.loss.update_teacher(momentum=self._momentum)
        return torch.stack([loss.detach() for loss in losses])

    def _losses(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.loss, AutoMix):
            return self.loss(images, targets, gamma=self._gamma, generator=self.generator)[:5]
        loss = self.loss(images, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise TypeError(f"fastmix.GraphedStep: loss must return a scalar tensor, got {type(loss).__name__}")
        return (loss,)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Lend the optimiser its rates as tensors; outside, schedulers and checkpoints see the numbers."""
        groups = self.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number


class GraphedStep(TrainStep):
    """A whole training step as a CUDA graph, which the host starts with one call.

    Holds `optimizer.zero_grad()`, the forward and backward passes, gradient clipping, `optimizer.step()` and, for an
    `AutoMix`, `update_teacher()`. The first three calls run the step as it is, on a side stream, so that lazy
    initialisations are done; the next is captured, and from then on the graph is replayed. All of them train alike.
    An AutoMix with `gen_every > 1` has two graphs, for steps with and without the generator, in one memory pool.
    Not yet measured on a GPU.

    New at each call: the images and targets, the random numbers, the learning rate of each parameter group, AutoMix's
    gamma and momentum. What else Python decides is frozen at the capture: weight decay, probabilities, the addresses of
    parameters and of the optimiser's state (after `optimizer.load_state_dict` make a new step).

    Args:
        loss: an `AutoMix` in training mode, or a function of (images, targets) that returns a scalar loss and reads no
            tensor's value, such as `lambda x, y: (batch := mixup(x, y)).loss(model(batch.x))`.
        optimizer: one that reads a learning rate on the device: `torch.optim.SGD(..., fused=True)`, or
            `AdamW(..., capturable=True)` and the others with that option.
        images, targets: a batch of the shape, dtype, layout and CUDA device of all that follow; not trained on.
        amp_dtype: run the forward passes under autocast to this dtype, torch.bfloat16.
        max_norm: clip the norm of all gradients to this.
        generator: CUDA generator from which AutoMix, or the function, draws; by default that of the device.

    Returns:
        `step(images, targets)` gives the detached loss (), or an `AutoMixOutput` of detached losses without draws.

    Raises:
        ValueError: tensors that are not on a CUDA device or, later, differ from the first in shape, dtype or device; an
            optimiser that reads its learning rate on the host; float16, which needs a GradScaler, whose step reads a
            value on the host; a call under autocast, whose cache would outlive the capture; a module in evaluation.
        TypeError: a loss that is no scalar tensor.

    Example:
        >>> optimizer = torch.optim.SGD(automix.param_groups(lr=0.1), momentum=0.9, fused=True)
        >>> step = GraphedStep(automix, optimizer, images, targets, amp_dtype=torch.bfloat16)
        >>> for images, targets in loader:
        ...     out = step(images.cuda(), targets.cuda())
        ...     scheduler.step()
    """

    def __init__(
        self,
        loss: AutoMix | LossFunction,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        targets: Tensor,
        *,
        amp_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        _check(optimizer, images, targets, amp_dtype, generator)
        super().__init__(loss, optimizer, images, amp_dtype=amp_dtype, max_norm=max_norm, generator=generator)
        self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
        self._stream = torch.cuda.Stream(images.device)
        self._graphs: dict[bool, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._warm = Counter()

    def __call__(self, images: Tensor, targets: Tensor) -> AutoMixOutput | Tensor:
        for name, given, kept in (("images", images, self._images), ("targets", targets, self._targets)):
            if _signature(given) != _signature(kept):
                raise ValueError(f"fastmix.GraphedStep: {name} must be {_signature(kept)}, got {_signature(given)}")
            kept.copy_(given)
        return super().__call__(self._images, self._targets)

    def _perform(self, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        variant = not isinstance(self.loss, AutoMix) or self.loss.trains_block
        if variant not in self._graphs and self._warm[variant] < WARM_UP:
            self._warm[variant] += 1
            return self._aside(images, targets).unbind()
        if variant not in self._graphs:
            self._graphs[variant] = self._capture(images, targets)
        graph, losses = self._graphs[variant]
        graph.replay()
        return losses.clone().unbind()

    def _aside(self, images: Tensor, targets: Tensor) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._body(images, targets)
        current.wait_stream(self._stream)
        return losses

    def _capture(self, images: Tensor, targets: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        if self.generator is not None:
            graph.register_generator_state(self.generator)
        pool = next((other.pool() for other, _ in self._graphs.values()), None)
        # "thread_local": a data loader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            losses = self._body(images, targets)
        return graph, losses


def _check(
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    amp_dtype: torch.dtype | None,
    generator: torch.Generator | None,
) -> None:
    where = "fastmix.GraphedStep"
    if not images.is_cuda or targets.device != images.device:
        raise ValueError(
            f"{where}: images and targets must be on one CUDA device, got {images.device} and {targets.device}"
        )
    if amp_dtype not in (None, torch.bfloat16):
        raise ValueError(
            f"{where}: amp_dtype must be None or torch.bfloat16 (float16 needs a GradScaler, whose step reads a value "
            f"on the host), got {amp_dtype}"
        )
    if generator is not None and generator.device != images.device:
        raise ValueError(f"{where}: generator must be on {images.device}, got {generator.device}")
    fused_sgd = isinstance(optimizer, torch.optim.SGD) and all(group["fused"] for group in optimizer.param_groups)
    if not fused_sgd and not all(group.get("capturable") for group in optimizer.param_groups):
        raise ValueError(
            f"{where}: the optimizer must read its learning rate on the device: build SGD with fused=True, others with "
            f"capturable=True, got {type(optimizer).__name__} without"
        )


def _signature(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)} on {tensor.device}"
