"""fastmix: fused mixup operations for training image classifiers.

Every part loads when first used, torch, Triton and the compiled module included.
"""

from importlib import import_module

__version__ = "0.1.0"

_LAZY = {
    "MixBatch": "batch",
    "compat": None,
    "explain": "dispatch",
    "losses": None,
    "methods": None,
    "nn": None,
    "ops": None,
    "reference": None,
    "testing": None,
    "train": None,
    "use_backend": "dispatch",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'fastmix' has no attribute {name!r}")
    module = import_module(f".{_LAZY[name] or name}", __name__)
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
