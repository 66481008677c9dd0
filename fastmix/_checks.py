"""Argument checks shared by the ops. Each raises TypeError or ValueError naming op, argument, expected and got."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import plain

IMAGE_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT_DTYPES = IMAGE_DTYPES[1:]


def describe(value) -> str:
    """What came, in few words."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return f"a nested tensor of {_short(value.dtype)}"
        return f"{_short(value.dtype)} of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"[:80]


def strided(op: str, name: str, value: Tensor) -> None:
    """A tensor with its values in strided memory: not sparse, nested, quantized or in a format of oneDNN."""
    if value.layout is torch.strided and not value.is_nested and not value.is_quantized:
        return
    kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)[6:].strip("_")
    raise TypeError(f"fastmix.{op}: {name} must be a strided tensor, got a {kind} one")


def readable(value: Tensor) -> bool:
    """Whether values can be looked at: eager code on the CPU, where that makes nobody wait and is recorded nowhere."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and plain(value)


def keeps(x: Tensor) -> bool:
    """Whether a tensor made for a call on `x` may be kept for others: Dynamo traces past caches, and what a fake
    tensor or a transform asks for is of no use outside."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and plain()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def images(op: str, x: Tensor, dims: int | None = None, name: str = "x") -> None:
    """An image batch: (N, ...) or, with `dims`, exactly that many dimensions, of a dtype the blends take."""
    if not isinstance(x, Tensor):
        raise TypeError(f"fastmix.{op}: {name} must be a tensor, got {describe(x)}")
    if x.layout is not torch.strided or x.is_nested:
        strided(op, name, x)
    if x.dtype not in IMAGE_DTYPES:
        raise TypeError(f"fastmix.{op}: {name} must be uint8, float16, bfloat16, float32 or float64, got {describe(x)}")
    if x.dim() == 0 or (dims is not None and x.dim() != dims):
        expected = "(N, ...)" if dims is None else "(N, C, H, W)"
        raise ValueError(f"fastmix.{op}: {name} must have shape {expected}, got {describe(x)}")


def index(op: str, value: Tensor, x: Tensor) -> Tensor:
    """(N,) or (D, N) int64 on the device of `x`, made contiguous."""
    if not isinstance(value, Tensor):
        raise TypeError(f"fastmix.{op}: index must be an int64 tensor, got {describe(value)}")
    try:
        fits = value.dim() == 1 or (value.dim() == 2 and value.shape[0] > 0)
        if value.dtype is not torch.int64 or not fits or value.shape[-1] != x.shape[0] or value.device != x.device:
            kind = TypeError if value.dtype is not torch.int64 else ValueError
            raise kind(
                f"fastmix.{op}: index must be int64 of shape ({x.shape[0]},) or (D, {x.shape[0]}) on {x.device}, "
                f"got {describe(value)}"
            )
        return value if value.is_contiguous() else value.contiguous()
    except RuntimeError:  # of another layout, which each call need not pay to look for
        strided(op, "index", value)
        raise


def lam(op: str, value: Tensor | float, lead: torch.Size, x: Tensor, acc: torch.dtype) -> Tensor:
    """() or, flattened, `lead` weights in the accumulation dtype on the device of `x`; a python number becomes ()."""
    if isinstance(value, (int, float)):
        return torch.full((), value, dtype=acc, device=x.device)
    if not isinstance(value, Tensor):
        raise TypeError(f"fastmix.{op}: lam must be a float or a tensor, got {describe(value)}")
    if value.layout is not torch.strided or value.is_nested:
        strided(op, "lam", value)
    if value.dtype is not torch.float32 and value.dtype is not torch.float64:
        raise TypeError(f"fastmix.{op}: lam must be float32 or float64, got {describe(value)}")
    if not (value.dim() == 0 or value.shape == lead) or value.device != x.device:
        raise ValueError(f"fastmix.{op}: lam must have shape () or {tuple(lead)} on {x.device}, got {describe(value)}")
    value = value if value.dtype is acc else value.to(acc)
    value = value if value.dim() < 2 else value.flatten()
    return value if value.is_contiguous() else value.contiguous()


def floating(op: str, name: str, value: Tensor, shape: tuple[int | None, ...], x: Tensor) -> None:
    """A floating tensor of the given shape (None: any size) on the device of `x`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"fastmix.{op}: {name} must be a tensor, got {describe(value)}")
    strided(op, name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"fastmix.{op}: {name} must be a floating tensor, got {describe(value)}")
    fits = value.dim() == len(shape) and all(
        want is None or want == size for want, size in zip(shape, value.shape, strict=True)
    )
    if not fits or value.device != x.device:
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(
            f"fastmix.{op}: {name} must have shape ({wanted}{',' if len(shape) == 1 else ''}) on {x.device}, "
            f"got {describe(value)}"
        )


def one_of(op: str, name: str, value: str, allowed: tuple[str, ...]) -> int:
    """Position of `value` among the allowed words."""
    if value not in allowed:
        raise ValueError(f"fastmix.{op}: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return allowed.index(value)


def output_dtype(op: str, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the result: that of the images unless `dtype` asks for another."""
    if dtype is None:
        return x.dtype
    if dtype not in IMAGE_DTYPES:
        raise TypeError(f"fastmix.{op}: dtype must be uint8, float16, bfloat16, float32 or float64, got {dtype!r}")
    return dtype


def output(op: str, out: Tensor, lead: torch.Size, x: Tensor, dtype: torch.dtype) -> None:
    """`out` must be laid out like the dense `x`, draw after draw, in the result's dtype."""
    if not isinstance(out, Tensor):
        raise TypeError(f"fastmix.{op}: out must be a tensor, got {describe(out)}")
    strided(op, "out", out)
    if not torch.compiler.is_compiling() and out._is_zerotensor():
        raise ValueError(f"fastmix.{op}: out must have memory to write to, got a zero tensor, {describe(out)}")
    shape = (*lead, *x.shape[1:])
    if out.dtype is not dtype or out.shape != shape or out.device != x.device:
        raise ValueError(
            f"fastmix.{op}: out must be {_short(dtype)} of shape {tuple(shape)} on {x.device}, got {describe(out)}"
        )
    strides = x.stride() if len(lead) == 1 else (x.numel(), *x.stride())
    if out.stride() != strides and x.numel() and _that_matter(out.stride(), shape) != _that_matter(strides, shape):
        raise ValueError(
            f"fastmix.{op}: out must have the strides {tuple(strides)} of the (dense) images, got {out.stride()}"
        )


def _that_matter(strides: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    return [stride for stride, n in zip(strides, shape, strict=True) if n > 1]


def separate(op: str, out: Tensor, inputs: dict[str, object]) -> None:
    """`out` must not lie in the memory of any input; tensors on "meta" have none."""
    if out.device.type == "meta":
        return
    begin, end = _span(out)
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            first, last = _span(value)
            if begin < last and first < end:
                raise ValueError(f"fastmix.{op}: out must not share memory with {name}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a strided tensor and past its last."""
    begin = tensor.data_ptr()
    if tensor.is_contiguous() or tensor.numel() == 0:
        return begin, begin + tensor.numel() * tensor.element_size()
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size()


def index_values(op: str, index: Tensor) -> None:
    """In [0, N), read on the CPU only; the compiled kernels look for themselves."""
    if not readable(index):
        return
    n = index.shape[-1]
    bad = ((index < 0) | (index >= n)).flatten().nonzero()
    if len(bad):
        at = bad[0].item()
        raise ValueError(f"fastmix.{op}: index must lie in [0, {n}), got {index.flatten()[at].item()} at position {at}")


def normalization(op: str, normalize: tuple | None, x: Tensor, acc: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """`(mean, std)` as (C,) tensors `scale`, `shift` of the accumulation dtype: mixed * scale + shift."""
    if normalize is None:
        return None, None
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 2:
        raise TypeError(f"fastmix.{op}: normalize must be a pair (mean, std), got {describe(normalize)}")
    if any(isinstance(part, Tensor) and part.requires_grad for part in normalize):
        raise ValueError(f"fastmix.{op}: normalize must not require a gradient: none flows to it")
    channels, divisor = x.shape[1], 255.0 if x.dtype is torch.uint8 else 1.0
    mean, std = normalize
    mean, std = constants(op, "the mean of normalize", mean), constants(op, "the std of normalize", std, positive=True)
    sizes = [tuple(part.shape) if isinstance(part, Tensor) else (len(part),) for part in (mean, std)]
    if any(size != (channels,) for size in sizes):
        raise ValueError(
            f"fastmix.{op}: normalize must hold {channels} means and {channels} stds, one a channel, "
            f"got shapes {sizes[0]} and {sizes[1]}"
        )
    if any(isinstance(part, Tensor) for part in normalize):
        mean, std = (torch.as_tensor(part, dtype=acc, device=x.device) for part in (mean, std))
        return 1 / (std * divisor), -mean / std
    return (_kept_affine if keeps(x) else _affine)(mean, std, divisor, acc, x.device)


def constants(
    op: str, name: str, value: Sequence[float] | Tensor, positive: bool = False
) -> tuple[float, ...] | Tensor:
    """One number a channel, finite and, if `positive`, > 0: as numbers, or a tensor, which is read on the CPU only."""
    if isinstance(value, Tensor):
        _constant_tensor(op, name, value, positive)
        return value
    # numpy arrays are no sequences
    fits = (isinstance(value, Sequence) and not isinstance(value, str)) or hasattr(value, "__array__")
    if not fits or not all(isinstance(part, numbers.Real) and not isinstance(part, bool) for part in value):
        raise TypeError(f"fastmix.{op}: {name} must hold one number a channel, got {describe(value)}")
    if not all(-math.inf < part < math.inf and (part > 0 or not positive) for part in value):
        raise ValueError(f"fastmix.{op}: {name} must hold finite numbers{' > 0' * positive}, got {describe(value)}")
    return tuple(float(part) for part in value)


def _constant_tensor(op: str, name: str, value: Tensor, positive: bool) -> None:
    strided(op, name, value)
    if value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"fastmix.{op}: {name} must hold one number a channel, got {describe(value)}")
    if not readable(value):
        return
    if not value.isfinite().all() or (positive and not (value > 0).all()):
        raise ValueError(
            f"fastmix.{op}: {name} must hold finite numbers{' > 0' * positive}, got {value.flatten().tolist()}"
        )


def _affine(mean: tuple, std: tuple, divisor: float, acc: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    mean64, std64 = (torch.tensor(part, dtype=torch.float64) for part in (mean, std))
    return (1 / (std64 * divisor)).to(device, acc), (-mean64 / std64).to(device, acc)


@functools.lru_cache(maxsize=64)
def _kept_affine(*args) -> tuple[Tensor, Tensor]:
    """Kept, because making two small tensors costs more than a small kernel; usable by autograd wherever made."""
    with torch.inference_mode(False):
        return _affine(*args)


def samples(where: str, x: Tensor, y: Tensor | None, name: str = "y") -> None:
    """A batch `x (N, ...)` and, unless None, as many labels: `y`, called `name`, a tensor (N, ...).

    Raises TypeError, for nests of tensors too, and ValueError before anything is mixed.
    """
    if not isinstance(x, Tensor) or x.dim() < 1:
        hint = "; pass the images and the labels that it holds" if isinstance(x, (dict, tuple, list)) else ""
        got = "a tensor of shape ()" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"fastmix.{where}: x must be a tensor of shape (N, ...), got {got}{hint}")
    if y is None:
        return
    if not isinstance(y, Tensor):
        hint = "; mix one of them, and the others by the batch's apply" if isinstance(y, dict) else ""
        raise TypeError(
            f"fastmix.{where}: {name} must be a tensor of {x.shape[0]} labels, got {type(y).__name__}{hint}"
        )
    if y.dim() == 0 or y.shape[0] != x.shape[0]:
        single = x.dim() == 3 and x.shape[0] in CHANNELS
        hint = "; a single image (C, H, W) needs a batch dimension, x[None]" if single else ""
        raise ValueError(
            f"fastmix.{where}: {name} must hold as many labels as x has samples, {x.shape[0]}, "
            f"got shape {tuple(y.shape)}{hint}"
        )


CHANNELS = (1, 3, 4)


def channels_first(where: str, x: Tensor, force: str = "check_layout=False") -> None:
    """Raise ValueError for images that look like (N, H, W, C), or volumes like (N, D, H, W, C).

    They do where the last side is 1, 3 or 4 and every side before it is longer and none of these: no batch
    (N, C, H, W) of one, three or four channels does. `force` says how the caller can be told that it is right.
    """
    *sides, last = x.shape[1:]
    if x.dim() in (4, 5) and last in CHANNELS and all(side > last and side not in CHANNELS for side in sides):
        moved = "0, 3, 1, 2" if x.dim() == 4 else "0, 4, 1, 2, 3"
        raise ValueError(
            f"fastmix.{where}: x looks like images of {last} channels in the last dimension, got {tuple(x.shape)}; "
            f"channels come second: x.permute({moved}), or {force} if they do"
        )


def given_range(where: str, name: str, value: Tensor | float, low: float, high: float) -> None:
    """Numbers in [low, high], NaN refused; tensors are read on the CPU only."""
    if isinstance(value, Tensor):
        if not readable(value):
            return
        least, most = (end.item() for end in value.detach().aminmax())  # NaN, if there is one
        value = most if least >= low else least
    if low <= value <= high:
        return
    raise ValueError(f"fastmix.{where}: {name} must lie in [{low:g}, {high:g}], got {value}")
