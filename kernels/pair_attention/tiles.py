"""Tile sizes of the Triton kernels of `pair_attention`: a table, never tuned at run time.

No row has been timed; they were chosen from compiled code. None of the kernels in bench/aot_variants.py spills a
register, and all fit the shared memory of their GPU (sm_80: 99 KiB, what the smallest GPUs grant a program). Among
such tiles, depths up to 128 take the fewest instructions a score that leave room for two programs a multiprocessor,
greater ones the fewest bytes read a score. `python bench/tune_attention.py` measures candidates and prints new rows.
"""

from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    """What a program works on."""

    m: int  # positions that it owns
    n: int  # positions of the other side that it takes at a time
    d: int  # depth of a product; from the full depth on, its own rows are kept instead of read again
    out: int  # columns of a gradient that it accumulates; unused in a forward kernel
    num_warps: int
    num_stages: int  # buffers of the software pipeline
    groups: int  # threads that share a row of scores; any number is right, the true one needs no shuffles


ANY = 2**31
Rows = tuple[tuple[int, int, Tiles], ...]

# (GPU, kernel, products): rows (depth up to, positions up to, tiles), the first that fits is taken.
# Kernels: "forward" (rows and cols), "grad_rows" (dq), "grad_cols" (dk, dbias, cols). Products: "half" is float16 and
# bfloat16, "narrow" the same with a depth that no 16-byte access divides, "tf32" and "ieee" are float32.
TABLE: dict[tuple[str, str, str], Rows] = {
    ("sm_80", "forward", "half"): (
        (64, 256, Tiles(64, 64, 64, 0, 4, 3, 8)),
        (64, ANY, Tiles(128, 64, 64, 0, 4, 3, 8)),
        (128, 256, Tiles(64, 64, 128, 0, 4, 3, 8)),
        (128, ANY, Tiles(128, 64, 128, 0, 4, 2, 8)),
        (256, ANY, Tiles(128, 64, 256, 0, 8, 2, 8)),
        (ANY, 64, Tiles(64, 64, 64, 0, 4, 2, 8)),
        (ANY, ANY, Tiles(128, 128, 32, 0, 8, 4, 16)),
    ),
    ("sm_80", "grad_rows", "half"): (
        (32, 256, Tiles(64, 64, 32, 32, 4, 2, 8)),
        (32, ANY, Tiles(128, 32, 32, 32, 4, 2, 8)),
        (128, ANY, Tiles(64, 64, 128, 128, 4, 2, 8)),
        (256, ANY, Tiles(64, 64, 256, 256, 8, 2, 8)),
        (ANY, ANY, Tiles(64, 64, 64, 256, 8, 2, 8)),
    ),
    ("sm_80", "grad_cols", "half"): (
        (16, 64, Tiles(64, 64, 16, 16, 4, 2, 8)),
        (64, 64, Tiles(64, 32, 64, 64, 4, 2, 16)),
        (32, ANY, Tiles(128, 32, 32, 32, 4, 2, 8)),
        (64, ANY, Tiles(128, 64, 64, 64, 8, 2, 8)),
        (128, ANY, Tiles(128, 32, 128, 128, 8, 2, 8)),
        (ANY, ANY, Tiles(64, 64, 64, 256, 8, 2, 16)),
    ),
    ("sm_80", "forward", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 0, 8, 2, 8)),),
    ("sm_80", "grad_rows", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 8)),),
    ("sm_80", "grad_cols", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 8)),),
    ("sm_80", "forward", "tf32"): ((ANY, ANY, Tiles(64, 64, 32, 0, 4, 2, 8)),),
    ("sm_80", "grad_rows", "tf32"): (
        (32, ANY, Tiles(128, 64, 32, 32, 8, 2, 8)),
        (ANY, ANY, Tiles(64, 64, 32, 128, 8, 2, 8)),
    ),
    ("sm_80", "grad_cols", "tf32"): (
        (32, ANY, Tiles(128, 64, 32, 32, 8, 2, 8)),
        (ANY, ANY, Tiles(64, 64, 32, 128, 8, 2, 16)),
    ),
    ("sm_80", "forward", "ieee"): ((ANY, ANY, Tiles(64, 64, 16, 0, 8, 2, 1)),),
    ("sm_80", "grad_rows", "ieee"): ((ANY, ANY, Tiles(64, 16, 16, 64, 8, 2, 1)),),
    ("sm_80", "grad_cols", "ieee"): (
        (16, ANY, Tiles(32, 16, 16, 16, 4, 2, 1)),
        (ANY, ANY, Tiles(32, 32, 16, 64, 8, 2, 1)),
    ),
    ("sm_90", "forward", "half"): (
        (64, 256, Tiles(64, 128, 64, 0, 4, 3, 4)),
        (64, ANY, Tiles(128, 64, 64, 0, 4, 3, 4)),
        (128, 256, Tiles(64, 128, 128, 0, 4, 2, 4)),
        (128, ANY, Tiles(128, 64, 128, 0, 4, 2, 4)),
        (256, ANY, Tiles(128, 64, 256, 0, 8, 2, 4)),
        (ANY, ANY, Tiles(128, 256, 64, 0, 8, 3, 4)),
    ),
    ("sm_90", "grad_rows", "half"): (
        (64, 256, Tiles(64, 64, 64, 64, 4, 2, 4)),
        (64, ANY, Tiles(128, 64, 64, 64, 4, 2, 4)),
        (128, ANY, Tiles(64, 64, 128, 128, 4, 2, 4)),
        (256, ANY, Tiles(128, 64, 256, 256, 8, 2, 4)),
        (512, ANY, Tiles(64, 32, 512, 512, 8, 2, 4)),
        (ANY, ANY, Tiles(64, 64, 64, 256, 8, 2, 4)),
    ),
    ("sm_90", "grad_cols", "half"): (
        (32, 256, Tiles(64, 64, 32, 32, 4, 2, 4)),
        (32, ANY, Tiles(128, 32, 32, 32, 4, 2, 4)),
        (128, ANY, Tiles(64, 64, 128, 128, 4, 2, 4)),
        (512, 64, Tiles(64, 64, 64, 256, 8, 2, 4)),
        (256, ANY, Tiles(128, 32, 256, 256, 8, 2, 4)),
        (512, ANY, Tiles(128, 32, 512, 256, 8, 2, 4)),
        (ANY, ANY, Tiles(64, 64, 64, 256, 8, 2, 4)),
    ),
    ("sm_90", "forward", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 0, 8, 2, 4)),),
    ("sm_90", "grad_rows", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 4)),),
    ("sm_90", "grad_cols", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 4)),),
    ("sm_90", "forward", "tf32"): ((ANY, ANY, Tiles(128, 64, 32, 0, 8, 2, 4)),),
    ("sm_90", "grad_rows", "tf32"): ((ANY, ANY, Tiles(128, 64, 32, 128, 8, 2, 4)),),
    ("sm_90", "grad_cols", "tf32"): (
        (32, ANY, Tiles(128, 64, 32, 32, 8, 2, 4)),
        (ANY, ANY, Tiles(64, 64, 32, 128, 8, 2, 4)),
    ),
    ("sm_90", "forward", "ieee"): ((ANY, ANY, Tiles(64, 64, 16, 0, 8, 2, 1)),),
    ("sm_90", "grad_rows", "ieee"): ((ANY, ANY, Tiles(64, 16, 16, 64, 8, 2, 1)),),
    ("sm_90", "grad_cols", "ieee"): (
        (16, ANY, Tiles(32, 16, 16, 16, 4, 2, 1)),
        (ANY, ANY, Tiles(32, 32, 16, 64, 8, 2, 1)),
    ),
    ("sm_100", "forward", "half"): (
        (64, ANY, Tiles(128, 64, 64, 0, 4, 3, 1)),
        (128, ANY, Tiles(128, 64, 128, 0, 4, 2, 1)),
        (256, ANY, Tiles(128, 32, 256, 0, 4, 2, 1)),
        (ANY, 64, Tiles(64, 64, 64, 0, 4, 2, 1)),
        (ANY, ANY, Tiles(128, 128, 64, 0, 8, 3, 1)),
    ),
    ("sm_100", "grad_rows", "half"): (
        (32, 64, Tiles(64, 32, 32, 32, 4, 2, 1)),
        (128, ANY, Tiles(128, 64, 128, 128, 4, 2, 1)),
        (256, ANY, Tiles(128, 64, 256, 256, 8, 2, 1)),
        (512, ANY, Tiles(64, 32, 512, 512, 8, 2, 1)),
        (ANY, ANY, Tiles(128, 64, 64, 256, 8, 2, 1)),
    ),
    ("sm_100", "grad_cols", "half"): (
        (32, ANY, Tiles(128, 64, 32, 32, 8, 2, 1)),
        (128, 64, Tiles(64, 64, 128, 128, 8, 2, 1)),
        (128, 1000, Tiles(128, 32, 128, 128, 8, 2, 1)),
        (128, ANY, Tiles(128, 64, 128, 128, 8, 2, 1)),
        (256, 256, Tiles(64, 64, 64, 256, 8, 2, 1)),
        (256, ANY, Tiles(64, 32, 256, 256, 8, 2, 1)),
        (ANY, 64, Tiles(64, 64, 64, 256, 8, 2, 1)),
        (ANY, ANY, Tiles(128, 64, 64, 256, 8, 2, 1)),
    ),
    ("sm_100", "forward", "narrow"): ((ANY, ANY, Tiles(64, 32, 32, 0, 4, 2, 1)),),
    ("sm_100", "grad_rows", "narrow"): (
        (ANY, 64, Tiles(64, 32, 32, 64, 8, 2, 1)),
        (ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 1)),
    ),
    ("sm_100", "grad_cols", "narrow"): ((ANY, ANY, Tiles(128, 32, 32, 64, 8, 2, 1)),),
    ("sm_100", "forward", "tf32"): ((ANY, ANY, Tiles(64, 64, 32, 0, 4, 2, 1)),),
    ("sm_100", "grad_rows", "tf32"): ((ANY, ANY, Tiles(128, 64, 32, 128, 8, 2, 1)),),
    ("sm_100", "grad_cols", "tf32"): (
        (32, ANY, Tiles(64, 64, 32, 32, 8, 2, 1)),
        (ANY, ANY, Tiles(128, 64, 32, 128, 8, 2, 1)),
    ),
    ("sm_100", "forward", "ieee"): ((ANY, ANY, Tiles(64, 64, 16, 0, 8, 2, 1)),),
    ("sm_100", "grad_rows", "ieee"): ((ANY, ANY, Tiles(64, 16, 16, 64, 8, 2, 1)),),
    ("sm_100", "grad_cols", "ieee"): (
        (16, ANY, Tiles(32, 16, 16, 16, 4, 2, 1)),
        (ANY, ANY, Tiles(32, 32, 16, 64, 8, 2, 1)),
    ),
}

# Compute capabilities with tables of their own; every other GPU takes those of sm_80, which fit it too.
GPUS = {80: "sm_80", 90: "sm_90", 100: "sm_100", 103: "sm_100"}
DEFAULT = "sm_80"


def tiles_for(capability: int, kernel: str, products: str, depth: int, r: int) -> Tiles:
    """The table's tiles for `r` positions of this depth on a GPU of compute capability `10 * major + minor`.

    A side longer than its problem is cut to the power of two that covers it, and warps that it would leave without
    work go with it.
    """
    rows = TABLE[GPUS.get(capability, DEFAULT), kernel, products]
    tiles = next(tiles for max_depth, max_r, tiles in rows if depth <= max_depth and r <= max_r)
    return fit(tiles, depth, r)


def fit(tiles: Tiles, depth: int, r: int) -> Tiles:
    """Tiles cut to the problem."""
    covers_depth, covers_r = max(16, _power_of_two(depth)), max(64, _power_of_two(r))
    m = min(tiles.m, covers_r)
    return tiles._replace(
        m=m,
        n=min(tiles.n, covers_r),
        d=min(tiles.d, covers_depth),
        out=min(tiles.out, covers_depth),
        num_warps=max(4, tiles.num_warps * m // tiles.m),
    )


def _power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
