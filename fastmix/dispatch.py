"""Which backend runs an op: one table, one predicate a backend, an override, and `explain`.

A backend is chosen on metadata only (device and dtype of the first tensor), never on values.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native

BACKENDS = ("cuda", "triton", "cpu", "reference")

# Order of trial for tensors on each kind of device. It changes only together with a measurement in bench/results;
# the orders of CUDA tensors are those of the design, not yet measured on a GPU.
ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "blend": {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")},
    "box_blend": {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")},
    "flip_blend": {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
    "mask_blend": {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")},
    "pair_attention": {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
    "saliency_pool": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "fine_grained_saliency": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "saliency_box": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "spectral_mask": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "puzzle_energy": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "grid_cut": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "transport": {"cuda": ("cuda", "reference"), "cpu": ("cpu", "reference")},
    "mix_binary_cross_entropy": {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
    "mix_cross_entropy": {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
    "soft_cross_entropy": {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")},
}

_BLEND_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_ATTENTION_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_DTYPES = {
    "blend": _BLEND_DTYPES,
    "box_blend": _BLEND_DTYPES,
    "flip_blend": _BLEND_DTYPES,
    "mask_blend": _BLEND_DTYPES,
    "pair_attention": _ATTENTION_DTYPES,
    "saliency_pool": _ATTENTION_DTYPES,
    "fine_grained_saliency": _BLEND_DTYPES,
    "saliency_box": (torch.float32,),
    "spectral_mask": (torch.float32, torch.float64),
    "puzzle_energy": _BLEND_DTYPES,
    "grid_cut": (torch.int32,),
    "transport": (torch.float32,),
    "mix_binary_cross_entropy": _ATTENTION_DTYPES,
    "mix_cross_entropy": _ATTENTION_DTYPES,
    "soft_cross_entropy": _ATTENTION_DTYPES,
}


def usual_dtype(op: str) -> torch.dtype:
    """The dtype in which an op is tried out: float32 where it takes that."""
    return torch.float32 if torch.float32 in _DTYPES[op] else _DTYPES[op][0]


_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.maybe_current_level
_tracing_state = torch._C._get_tracing_state
_DIFFERENTIABLE = frozenset(
    ("blend", "box_blend", "flip_blend", "mask_blend", "pair_attention", *(op for op in ORDER if "entropy" in op))
)
_active = torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # modes that work above autograd have a stack of their own

_forced: ContextVar[str | None] = ContextVar("fastmix_backend", default=None)
_from_environment = os.environ.get("FASTMIX_BACKEND") or None


def _can_run_cpu(op: str, device: str, dtype: torch.dtype) -> str | None:
    if device != "cpu":
        return f"runs on CPU tensors, got {device}"
    if dtype not in (*_DTYPES[op], torch.float64):
        return f"has no kernel for {dtype}"
    return native.why_not_installed() or native.why_unavailable()


def _can_run_triton(op: str, device: str, dtype: torch.dtype) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device != "cuda" and not (device == "cpu" and interpreted):
        return f"runs on CUDA tensors (on CPU tensors only with TRITON_INTERPRET=1), got {device}"
    if dtype not in _DTYPES[op]:
        return f"has no kernel for {dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    if reason := native.why_not_installed():
        return reason
    if device != "cuda":
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability()[0] < 8:
        return "needs compute capability 8.0 or newer"
    return None


def _can_run_cuda(op: str, device: str, dtype: torch.dtype) -> str | None:
    if "cuda" not in ORDER[op]["cuda"]:
        return "this op has no CUDA C++ kernel"
    if device != "cuda":
        return f"runs on CUDA tensors, got {device}"
    if dtype not in _DTYPES[op]:
        return f"has no kernel for {dtype}"
    return native.why_not_installed() or native.why_unavailable() or native.why_no_cuda()


def _can_run_reference(op: str, device: str, dtype: torch.dtype) -> str | None:
    return None


_PREDICATES: dict[str, Callable[[str, str, torch.dtype], str | None]] = {
    "cuda": _can_run_cuda,
    "triton": _can_run_triton,
    "cpu": _can_run_cpu,
    "reference": _can_run_reference,
}


def can_run(op: str, backend: str, device: str, dtype: torch.dtype) -> str | None:
    """None when `backend` can run `op` on such tensors, else the reason why not."""
    return _PREDICATES[backend](op, device, dtype)


def why_slow(op: str, device: str, dtype: torch.dtype) -> str | None:
    """Why no kernel of `op` runs on such tensors although there is one for them, or None.

    A dtype for which no kernel was written, such as float64 on a GPU, is the reference's by design.
    """
    order = ORDER[op].get(device, ("reference",))
    reasons = {b: can_run(op, b, device, dtype) for b in order if b != "reference"}
    designed = dtype not in _DTYPES[op] and not (device == "cpu" and dtype is torch.float64)
    if designed or not reasons or None in reasons.values():
        return None
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())


_told: set[str] = set()


def _tell_slow(op: str, device: str, reason: str) -> None:
    """One warning for each kind of device."""
    if device not in _told:
        _told.add(device)
        message = f"fastmix.{op} runs the slow reference on {device} tensors, as other ops may ({reason}); "
        level, frame, package = 1, sys._getframe(), os.path.join(os.path.dirname(__file__), "")
        while frame.f_back and frame.f_code.co_filename.startswith(package):  # up to the caller of the op
            level, frame = level + 1, frame.f_back
        warnings.warn(message + "`python -m fastmix info` names the way out", RuntimeWarning, stacklevel=level)


@functools.cache
def _choose(op: str, device: str, dtype: torch.dtype, wanted: str | None) -> str:
    if wanted is None:
        order = ORDER[op].get(device, ("reference",))
        chosen = next(b for b in order if can_run(op, b, device, dtype) is None)
        if chosen == "reference" and (reason := why_slow(op, device, dtype)):
            _tell_slow(op, device, reason)
        return chosen
    if wanted not in BACKENDS:
        raise ValueError(f"fastmix.{op}: backend must be one of {', '.join(BACKENDS)}, got {wanted!r}")
    reason = can_run(op, wanted, device, dtype)
    if reason is not None:
        raise ValueError(f"fastmix.{op}: backend {wanted!r} cannot run here: {reason}")
    return wanted


def _current_choice(op: str, device: str, dtype: torch.dtype, backend: str | None) -> str:
    chosen = _choose(op, device, dtype, backend or _forced.get() or _from_environment)
    return "reference" if op in _DIFFERENTIABLE and transformed() else chosen


# Dynamo evaluates the choice once while tracing: compiled code keeps the backend it was traced with. This is all that
# `torch.compiler.assume_constant_result` does, but calling it imports the whole of Dynamo, and Triton with it.
_current_choice._dynamo_marked_constant = True


def select(op: str, x: Tensor, backend: str | None = None) -> str:
    """Name of the backend that runs `op` on tensors like `x`.

    Precedence: the `backend` argument, then `use_backend(...)`, then the environment variable FASTMIX_BACKEND, then
    the order of trial for the device. An explicit choice that cannot run raises ValueError with the reason. Under a
    `torch.func` transform or forward-mode differentiation that of a differentiable op is "reference", whatever was
    chosen: see `transformed`. The others are registered ops there, too, which `vmap` calls once a sample.
    """
    return _current_choice(op, x.device.type, x.dtype, backend)


def tracing() -> bool:
    """Whether `torch.jit.trace` records the operations."""
    return not torch.compiler.is_compiling() and _tracing_state() is not None


def transformed() -> bool:
    """Whether a `torch.func` transform or forward-mode differentiation is under way.

    Plain PyTorch operations follow both; a kernel would see the memory of the values alone. Functionalisation is no
    such transform: the registered ops go through it.
    """
    if forward_ad._current_level >= 0:
        return True
    if _functorch_level() is None:
        return False
    functionalize = torch._C._functorch.TransformType.Functionalize
    return any(level.key() != functionalize for level in torch._C._functorch.get_interpreter_stack())


_PLAIN = (Tensor, torch.nn.Parameter)


def _nowhere(tensor: Tensor) -> bool:
    """Whether there is no memory. A view into an `_efficientzerotensor` has an address, its offset."""
    return tensor._is_zerotensor() or not tensor.data_ptr()


def plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be given the addresses of the tensors: eager code, and each value is what lies in memory.

    Code is not eager where something follows its operations, and would miss a kernel that is launched directly: a
    dispatch mode (fake tensors, `make_fx`, functional tensors, loggers), a `torch.func` transform, the tracer of
    `torch.jit.trace`, a level of forward-mode differentiation. Values lie elsewhere in a subclass, a fake tensor, a
    wrapper, an `_efficientzerotensor` or a lazily negated view. Of a tensor without elements nobody asks the address;
    the registered op takes it, too.
    """
    if _dispatch_modes() or forward_ad._current_level >= 0 or _functorch_level() is not None or _tracing_state():
        return False
    if _active(_PRE_DISPATCH):
        return False
    try:
        for tensor in tensors:
            # `_nowhere` written out: a call more a tensor is a tenth of a small kernel.
            if tensor is not None and (
                type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor() or not tensor.data_ptr()
            ):
                return False
    except RuntimeError:  # a wrapper without storage
        return False
    return True


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Run every op inside the block on `backend`; None restores the automatic choice.

    Code that was compiled outside the block keeps the backend it was traced with.

    Example:
        with fastmix.use_backend("reference"):
            mixed = fastmix.ops.blend(x, index, lam)
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"fastmix.use_backend: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def explain(op: str, x: Tensor | None = None) -> str:
    """A table of the backends of `op` for tensors like `x` (default: a float32 CPU tensor), with reasons.

    The row marked `->` is the one a call would take now.

    Example:
        print(fastmix.explain("mask_blend", images))
    """
    if op not in ORDER:
        raise ValueError(f"fastmix.explain: op must be one of {', '.join(ORDER)}, got {op!r}")
    x = torch.empty(0) if x is None else x
    lines = [f"{op} on {x.device.type}, {str(x.dtype).removeprefix('torch.')}"]
    chosen = select(op, x)
    for backend in BACKENDS:
        reason = can_run(op, backend, x.device.type, x.dtype)
        lines.append(f"{'->' if backend == chosen else '  '} {backend:<10} {reason or 'can run'}")
    return "\n".join(lines)


@functools.cache
def kernels(op: str, backend: str) -> ModuleType:
    """The module that holds the raw functions of `op` for a backend other than the reference."""
    return import_module(f"fastmix.kernels.{op}.{'triton_kernel' if backend == 'triton' else 'native'}")


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense(x: Tensor) -> Tensor:
    """`x` itself when its samples are dense blocks, contiguous or channels_last; else a contiguous copy."""
    if x.is_contiguous():
        return x
    form = CHANNELS_LAST.get(x.dim())
    return x if form is not None and x.is_contiguous(memory_format=form) else x.contiguous()


_library = torch.library.Library("fastmix", "DEF")


def raw_op(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Register the decorated body as `torch.ops.fastmix.<name>` and return the function that ops call.

    Eager calls on `plain` tensors run the body itself, since crossing the dispatcher costs more than a small kernel;
    all others go through the registered op. A raw op has no autograd formula, and says so: the
    `autograd.Function` above it has.
    """
    name = schema.split("(")[0]
    _library.define(schema)

    def register(body: Callable) -> Callable:
        overload = getattr(torch.ops.fastmix, name).default
        positions = [i for i, argument in enumerate(overload._schema.arguments) if "Tensor" in str(argument.type)]
        # itemgetter of one position gives no tuple
        tensors = operator.itemgetter(*positions) if len(positions) > 1 else operator.itemgetter(slice(1))

        def dispatched(*args):
            # What the dispatcher made of a wrapped tensor, or a recorded graph was given, may have any strides.
            args = [dense(arg) if isinstance(arg, Tensor) else arg for arg in args]
            for tensor in tensors(args):
                if tensor is not None and tensor.numel() and _nowhere(tensor):
                    raise RuntimeError(f"fastmix.{name}: a tensor of shape {tuple(tensor.shape)} has no memory")
            return body(*args)

        def recorded(*args):
            # Without this, autograd would take the result for a constant.
            if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors(args)):
                raise RuntimeError(
                    f"fastmix.{name}: no gradient flows through the recorded op torch.ops.fastmix.{name}: "
                    "differentiate before jit.trace, make_fx or functionalize, or call the recording under no_grad()"
                )
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*args)

        _library.impl(name, dispatched, "CompositeExplicitAutograd")
        _library.impl(name, recorded, "Autograd")
        torch.library.register_fake(f"fastmix::{name}", fake, lib=_library)

        @functools.wraps(body)
        def call(*args):
            if torch.compiler.is_compiling() or not plain(*tensors(args)):
                return overload(*args)
            return body(*args)

        return call

    return register
