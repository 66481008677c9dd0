"""Writes `fine_grained_saliency.npz` beside this file: `python tests/data/make_fine_grained_saliency.py`; needs
opencv-contrib-python (written with 5.0.0).

Small images and the maps, in 255ths, that OpenCV's StaticSaliencyFineGrained makes of them as they are.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
SHAPES = [(1, 1, 3), (1, 9, 3), (2, 2, 3), (24, 31, 3), (40, 36, 3), (17, 50, 1), (130, 60, 1)]


def picture(height: int, width: int, channels: int, random: np.random.Generator) -> np.ndarray:
    """Half noise, half coarse spots."""
    noise = random.uniform(0, 255, (height, width, channels))
    spots = random.uniform(0, 255, (height // 8 + 1, width // 8 + 1, channels))
    spots = cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC).reshape(noise.shape)
    share = (np.arange(width) < width // 2)[None, :, None]
    return np.where(share, spots, noise).clip(0, 255).astype(np.uint8)


def main() -> None:
    random, arrays = np.random.default_rng(0), {}
    detector = cv2.saliency.StaticSaliencyFineGrained_create()
    for i, shape in enumerate(SHAPES):
        image = picture(*shape, random)
        found = detector.computeSaliency(image)[1]
        arrays |= {f"image{i}": image, f"map{i}": np.rint(found * 255).astype(np.uint8)}
        assert np.array_equal(arrays[f"map{i}"] * np.float32(1 / 255), found)
    np.savez_compressed(HERE / "fine_grained_saliency.npz", **arrays)


if __name__ == "__main__":
    main()
