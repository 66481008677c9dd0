"""Settings of a training run: one flat set of values, the same on the command line, in YAML and in checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastmix.train.errors import UserError

# Those of fastmix.methods, which is not imported for the sake of a quick --help, and AutoMix.
METHODS = (
    "none",
    "mixup",
    "cutmix",
    "manifoldmix",
    "fmix",
    "resizemix",
    "saliencymix",
    "attentivemix",
    "gridmix",
    "smoothmix",
    "randomgrids",
    "puzzlemix",
    "regmixup",
    "switch",
    "mixer",
    "automix",
)

# What is done about images that cannot be read.
UNREADABLE = ("stop", "skip")

# Settings that have one of a few values.
CHOICES = {
    "method": METHODS,
    "unreadable": UNREADABLE,
    "mode": ("batch", "pair", "sample"),
    "pairing": ("perm", "flip", "roll", "derangement"),
    "upsample": ("nearest", "bilinear", "bicubic"),
    "lam_embed": ("qkv", "v", "none"),
    "amp": ("off", "bf16", "fp16"),
}

# Above it Pillow by itself refuses a file, in case it is a small one that fills the memory.
MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Config:
    """What decides the result of a run, and how it is carried out.

    ``None`` stands for a default that depends on other settings, see :meth:`resolved`.
    """

    data: str = "digits"
    method: str = "automix"
    model: str = "resnet18"
    width: int | None = None
    epochs: int | None = None
    steps: int | None = None
    epoch_steps: int | None = None
    mix_off_epoch: int = 0
    batch_size: int = 50
    lr: float = 0.1
    warmup: int = 20
    weight_decay: float = 5e-4
    smoothing: float = 0.0
    clean_loss: bool | None = None
    labels_per_class: int | None = None
    image_size: int = 224
    unreadable: str = "stop"
    max_pixels: int = MAX_PIXELS
    seed: int = 0
    data_seed: int | None = None
    alpha: float | None = None
    mode: str | None = None
    pairing: str = "perm"
    feature: str = "layer3"
    layers: str = "input,layer1,layer2"
    mix_lr: float = 0.03
    gamma: float = 3.0
    init_std: float = 0.3
    teacher_momentum: float = 0.95
    upsample: str = "bilinear"
    lam_embed: str = "qkv"
    released: bool = False
    sequential: bool = False
    gen_every: int = 1
    amp: str = "off"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    device: str = "auto"
    workers: int = 0
    threads: int | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, field.type, getattr(self, field.name))
        for name in ("batch_size", "lr", "gen_every", "image_size", "max_pixels"):
            _require(getattr(self, name) > 0, name, "must be above 0", getattr(self, name))
        for name in ("width", "epochs", "steps", "epoch_steps", "labels_per_class", "alpha", "threads"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "must be above 0", value)
        for name in ("mix_off_epoch", "warmup", "weight_decay", "workers", "gamma", "init_std", "mix_lr", "seed"):
            _require(getattr(self, name) >= 0, name, "must not be negative", getattr(self, name))
        _require(self.data_seed is None or self.data_seed >= 0, "data_seed", "must not be negative", self.data_seed)
        _require(0 <= self.smoothing < 1, "smoothing", "must be in [0, 1)", self.smoothing)
        _require(0 <= self.teacher_momentum <= 1, "teacher_momentum", "must be in [0, 1]", self.teacher_momentum)
        _require(self.batch_size > 1 or self.method != "automix", "batch_size", "must be at least 2 for automix", 1)
        _require(not self.cuda_graph or self.method == "automix", "cuda_graph", "needs --method automix", self.method)
        _require(not self.cuda_graph or self.amp != "fp16", "cuda_graph", "cannot be used with --amp fp16", self.amp)
        mixed = self.mix_off_epoch == 0
        _require(mixed or not self.cuda_graph, "mix_off_epoch", "cannot be used with --cuda-graph", self.mix_off_epoch)
        automix = self.method == "automix"
        _require(not automix or self.mode != "pair", "mode", "must be batch or sample for automix", self.mode)
        _require(not automix or self.pairing == "perm", "pairing", "must be perm for automix", self.pairing)
        hooked = self.method == "manifoldmix"
        _require(not (hooked and self.compile), "compile", "cannot be used with --method manifoldmix", self.compile)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            holds = value in choices or (value is None and getattr(type(self), name) is None)
            _require(holds, name, f"must be one of {', '.join(choices)}", value)

    def resolved(self) -> Config:
        """The same with every default that depends on other settings filled in."""
        bundled = self.data in ("digits", "cluttered-digits")
        values = asdict(self)
        defaults = {
            "width": 16 if bundled else 64,
            "alpha": 2.0 if self.method == "automix" else None,
            "data_seed": self.seed,
            "clean_loss": self.method == "automix",
        }
        values.update({name: value for name, value in defaults.items() if values[name] is None})
        if self.steps is None and self.epochs is None:
            values["epochs"] = 30
        return Config(**values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """From the values of :func:`dataclasses.asdict`; an unknown name is an error."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"unknown setting {str(name)[:40]}")
        return cls(**values)


# What a resumed run may change: how it is carried out, not what it computes.
# The data may lie at another place, which their fingerprint tells from other data.
FREE_ON_RESUME = frozenset(("data", "cuda_graph", "device", "workers", "threads", "tensorboard"))


def option(name: str) -> str:
    """``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


_KINDS = {"int": "a whole number", "float": "a finite number", "str": "a text", "bool": "true or false", "None": "none"}


def _check_kind(name: str, annotation: str, value: object) -> None:
    """That a value is of one of the types that ``annotation``, such as ``"int | None"``, names."""
    kinds = annotation.split(" | ")
    given = "None" if value is None else type(value).__name__
    holds = given in kinds or (given == "int" and "float" in kinds)
    _require(holds and not (given == "float" and not math.isfinite(value)), name, _must_be(kinds), value)


def _must_be(kinds: list[str]) -> str:
    return "must be " + " or ".join(_KINDS[kind] for kind in kinds if kind != "None")


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise UserError(f"{option(name)} {rule}, got {value}")
