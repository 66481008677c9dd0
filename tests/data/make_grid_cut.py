"""Writes `grid_cut_swap.npz` beside this file: `python tests/data/make_grid_cut.py`; needs gco-wrapper.

Random grids and the labels that gco's alpha-beta swap gives them, with the label distances of PuzzleMix's published
code: arrays `unary`, `weight_y`, `weight_x`, `labels` of each group of grids of one shape.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from grid_support import KINDS, gco_swap, random_grids  # noqa: E402

# Height, width: number of grids of each kind and number of labels.
SHAPES = {(2, 2): 12, (4, 4): 10, (3, 7): 4, (8, 8): 4, (16, 16): 1}


def main() -> None:
    arrays = {}
    for kind in KINDS:
        for (height, width), n in SHAPES.items():
            for labels in (2, 3, 4):
                grids = random_grids(kind, n, height, width, labels, seed=10 * height + labels)
                named = dict(zip(("unary", "weight_y", "weight_x"), grids, strict=True), labels=gco_swap(*grids))
                group = f"{kind} {height}x{width} {labels}"
                arrays |= {f"{group}/{name}": value.numpy().astype(np.int16) for name, value in named.items()}
    np.savez_compressed(HERE / "grid_cut_swap.npz", **arrays)


if __name__ == "__main__":
    main()
