"""Manifold Mixup: hidden features of a randomly chosen layer are mixed (Verma et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastmix.batch import MixBatch
from fastmix.methods.base import Draw, MixMethod, Paper, alphas, labels_of
from fastmix.methods.none import NoMix
from fastmix.plan import Plan

INPUT = "input"


class ManifoldMixup(MixMethod):
    """MixUp of the output of one of several layers, in one forward pass of any module.

    A call chooses the layer; the batch it returns holds the images unmixed, unless the layer is "input". The model is
    then run by :meth:`forward`, or by the caller within :meth:`mixing`: a hook mixes the layer's output
    ``h`` to ``lam * h + (1 - lam) * h[index]``, with gradients through both. Wrappers such as DistributedDataParallel
    are looked into; a model compiled as a whole does not see the hook. Hidden features may have any layout: the images
    alone are looked at by ``check_layout``. What ``p`` leaves alone goes through the layer unmixed.

    Args:
        alpha, mode, pairing, normalize, dtype, backend, p, check_layout: as for every method.
        layers: names to choose from, uniformly: "input" for the images, else submodules of the model. The choice is
            made on the host: by a CUDA generator it is not decided.

    Example:
        >>> manifold = ManifoldMixup(alpha=2.0, layers=("input", "layer1", "layer2"))
        >>> batch = manifold(images, labels)
        >>> loss = batch.loss(manifold.forward(model, batch))
    """

    name = "manifoldmix"
    paper = Paper("Manifold Mixup: Better Representations by Interpolating Hidden States", "Verma et al.", 2019,
                  "1806.05236")  # fmt: skip
    ops = ("blend",)
    alphas = alphas(2, 0.2, 0.2, 0.2, 0.2, 0.5)
    needs = "model"
    dims = None
    combines = False
    default_alpha = 2.0

    def __init__(
        self, alpha: float | None = None, *, layers: Sequence[str] = (INPUT, "layer1", "layer2"), **options: Any
    ) -> None:
        super().__init__(alpha, **options)
        named = isinstance(layers, Sequence) and all(isinstance(layer, str) for layer in layers)
        self._require(named and len(layers) > 0, "layers must name at least one layer", layers)
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        plain = {
            name: value for name, value in options.items() if name in ("normalize", "dtype", "backend", "check_layout")
        }
        self._plain = NoMix(**plain)

    def __call__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        *,
        layer: str | None = None,
        out: Tensor | None = None,
    ) -> MixBatch:
        """As every method; ``layer`` is the layer to mix instead of a random one."""
        self._check(x, y)
        draw = self.draw(x, generator, lam, index)
        plan = self.plan(x, draw)
        if layer is None:
            host = generator if generator is not None and generator.device.type == "cpu" else None
            layer = self.layers[int(torch.randint(len(self.layers), (), generator=host))]
        plan = self._alone_or(plan, draw)
        if layer == INPUT:
            return self.finish(x, y, plan, out)
        plain = self._plain(x, y, out=out)
        return MixBatch(plain.x, y, labels_of(y, plan.index), plan.lam, plan.index, plan=plan, layer=layer)

    def plan(self, x: Tensor, draw: Draw) -> Plan:
        return Plan(draw.index, draw.lam, weight=draw.lam)

    def forward(self, model: nn.Module, batch: MixBatch) -> Tensor:
        """``model(batch.x)``, mixed at the batch's layer."""
        with self.mixing(model, batch):
            return model(batch.x)

    @contextmanager
    def mixing(self, model: nn.Module, batch: MixBatch) -> Iterator[None]:
        """Within it the next output of the batch's layer is mixed, once.

        Raises:
            ValueError: the model has no such layer.
            RuntimeError: on leaving, if the layer was not run.
            TypeError: in the forward pass, if the layer's output is not a tensor of as many rows as the batch.
        """
        if batch.layer is None:
            yield
            return
        done = []

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if done:
                return None
            if not isinstance(output, Tensor) or output.shape[:1] != batch.index.shape:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise TypeError(f"fastmix.ManifoldMixup: {batch.layer} must give a tensor (N, ...), got {got}")
            done.append(True)
            return batch.plan.mix(output, backend=self.backend)[0]

        handle = _layer(model, batch.layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not done:
            raise RuntimeError(f"fastmix.ManifoldMixup: {batch.layer} was not run in the forward pass")


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule `name`, also of what a wrapper holds."""
    modules = dict(model.named_modules())
    for prefix in ("", "module.", "_orig_mod."):
        if name and prefix + name in modules:
            return modules[prefix + name]
    known = ", ".join(part for part in modules if part and "." not in part)
    raise ValueError(f"fastmix.ManifoldMixup: the model has no layer {name!r}; it has {known}")
