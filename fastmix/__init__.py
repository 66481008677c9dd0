"""fastmix: fused mixup operations for training image classifiers.

Every part loads when first used, torch, Triton and the compiled module included.
"""

from ._lazy import lazy

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

__getattr__, __dir__ = lazy(__name__, _LAZY)
