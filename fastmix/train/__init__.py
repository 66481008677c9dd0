"""Training: the AutoMix pipeline and the small trainer behind `fastmix train`. Names load when first used."""

from fastmix._lazy import lazy

_LAZY = {
    "AutoMix": "automix",
    "AutoMixOutput": "automix",
    "Config": "config",
    "Draw": "automix",
    "GraphedStep": "graph",
    "Predictor": "predictor",
    "PuzzleMixOutput": "puzzlemix",
    "PuzzleMixStep": "puzzlemix",
    "Trainer": "trainer",
    "UserError": "errors",
    "ema_update": "ema",
    "schedules": None,
}

__all__ = list(_LAZY)

__getattr__, __dir__ = lazy(__name__, _LAZY)
