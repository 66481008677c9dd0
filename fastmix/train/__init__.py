"""Training: the AutoMix pipeline and the small trainer behind `fastmix train`. Names load when first used."""

from importlib import import_module

_LAZY = {
    "AutoMix": "automix",
    "AutoMixOutput": "automix",
    "Config": "config",
    "Draw": "automix",
    "Trainer": "trainer",
    "UserError": "errors",
    "ema_update": "ema",
    "schedules": None,
}

__all__ = list(_LAZY)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'fastmix.train' has no attribute {name!r}")
    module = import_module(f".{_LAZY[name] or name}", __name__)
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
