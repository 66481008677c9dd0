"""Writes `compat_timm.npz` and `compat_torchvision.npz` beside this file: `python tests/data/make_compat.py`.

Needs timm >= 1.0.29 (its files, not what it imports) and torchvision >= 0.28. Each row belongs to one seed of
tests/compat_support.py: checksums of the images, of the labels and of the generator after the call, a box and a weight.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import compat_support  # noqa: E402

DTYPES = {"box": np.int16, "lam": np.float64}


def main() -> None:
    for name in ("timm", "torchvision"):
        module = getattr(compat_support, f"load_{name}")()
        if module is None:
            sys.exit(f"{name} is not installed")
        rows = [getattr(compat_support, f"run_{name}")(module, seed) for seed in range(compat_support.SEEDS)]
        arrays = {key: np.array([row[key] for row in rows], dtype=DTYPES.get(key, np.uint32)) for key in rows[0]}
        np.savez_compressed(HERE / f"compat_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
