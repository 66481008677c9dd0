"""The emulator of CUDA itself: right kernels run, and each kind of mistake is caught."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator.harness import SOURCE, built
from cuda_emulator.selftest import SelfTest, floats


@pytest.fixture(scope="module")
def library(pytestconfig) -> Path:
    return built(pytestconfig, "selftest.so")


@pytest.fixture(scope="module")
def emulator(library) -> SelfTest:
    return SelfTest(library)


def test_every_thread_runs_once_and_knows_its_place(emulator):
    grid, block = (2, 3, 4), (4, 2, 3)
    out = floats(2 * 3 * 4 * 4 * 2 * 3)
    assert emulator.launch("number", floats(1), out, grid=grid, block=block) == 0
    assert list(out) == list(range(len(out)))


@pytest.mark.parametrize("seed", range(5))
def test_barriers_and_shuffles(emulator, seed):
    emulator.seed(seed)
    given, out = floats(512), floats(3)
    given[:] = range(512)
    assert emulator.launch("good_sum", given, out, 512, (3, 1, 1), (128, 1, 1), shared=16) == 0
    assert list(out) == [512 * 511 / 2] * 3
    turned = floats(512)
    assert emulator.launch("good_reverse", given, turned, 512, block=(64, 1, 1), shared=256) == 0
    assert list(turned) == [64 * (i // 64) + 63 - i % 64 for i in range(512)]
    assert emulator.launch("good_reverse_lanes", given, turned, block=(64, 1, 1), shared=256) == 0
    assert list(turned[:64]) == [*range(31, -1, -1), *range(63, 31, -1)]


def test_exchanges_between_lanes(emulator):
    given, out = floats(32), floats(32 * 5)
    rng = random.Random(0)
    values = [rng.choice([-1, 1]) * (i + 1) for i in range(32)]
    given[:] = values
    assert emulator.launch("exchange", given, out, block=(32, 1, 1)) == 0
    votes = sum(value > 0 for value in values)
    for i in range(32):
        shuffled = [
            values[i // 8 * 8 + (i + 1) % 8],
            values[i ^ 5],
            values[i + 3 if i % 16 < 13 else i],
            values[i - 2 if i >= 2 else i],
        ]
        assert list(out[5 * i : 5 * i + 4]) == shuffled
        assert out[5 * i + 4] == votes + 100 + 10000 * votes + 100000


def test_the_order_of_blocks_is_drawn(emulator):
    found = set()
    for seed in range(20):
        emulator.seed(seed)
        out = floats(2)
        assert emulator.launch("first_block", floats(1), out, grid=(100, 1, 1), block=(1, 1, 1)) == 0
        found.add(out[0])
    assert len(found) > 10


def test_only_the_strict_functions_are_not_fused(emulator):
    given, out = floats(3), floats(3)
    given[:] = [1 + 2**-12, 1 + 2**-12, -1 - 2**-11]
    assert emulator.launch("strict_and_fused", given, out, block=(1, 1, 1)) == 0
    assert list(out[:2]) == [0, 2**-24] and out[2] in (0, 2**-24)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"grid": (0, 1, 1)}, 9),
        ({"grid": (1, 65536, 1)}, 9),
        ({"block": (1025, 1, 1)}, 9),
        ({"block": (32, 32, 2)}, 9),
        ({"block": (1, 1, 65)}, 9),
        ({"shared": 48 * 1024 + 1}, 1),
        ({"shared": 60_000, "shared_limit": 60_000}, 0),
        ({"shared": 1, "shared_limit": 228 * 1024}, 0),  # the limit itself is refused
    ],
)
def test_launches_have_limits(emulator, change, error):
    call = {"grid": (1, 1, 1), "block": (1, 1, 1)} | change
    assert emulator.launch("number", floats(1), floats(1), **call) == error


# Kernel, threads, n: see selftest.cu.
MISTAKES = [
    ("sum_without_barrier", 128, 128, "reads shared memory that no thread has written"),
    ("reverse_without_barrier", 64, 256, "race: (reads|writes) 4 bytes of shared memory at .*, which thread .* has"),
    ("same_place_twice", 64, 64, "race: writes 4 bytes of memory at .*, which thread .* has written"),
    (
        "same_place_in_two_blocks",
        64,
        64,
        "race: writes 4 bytes of memory at .*, which another block of",
    ),
    ("reverse_lanes_without_sync", 64, 0, "reads shared memory that no thread has written"),
    ("copy_packets", 8, 33, "undefined behaviour: misaligned access"),
    ("copy_hinted_packets", 8, 33, "misaligned access of 16 bytes"),
    ("read_one_behind", 64, 100, "illegal access"),
    ("read_one_before", 64, 100, "illegal access"),
    ("write_past_shared_memory", 64, 1, "illegal access"),
    ("read_unwritten_shared_memory", 64, 0, "reads shared memory that no thread has written"),
    ("barrier_in_a_branch", 64, 5, "divergent barrier.*\n.*59 threads have ended\n.*5 threads wait in __syncthreads"),
    ("two_barriers_in_branches", 64, 5, "divergent barrier.*(\n.* (5|59) threads wait in __syncthreads at.*){2}"),
    ("shuffle_in_a_branch", 64, 5, "divergent barrier.*\n(.*\n)?.*5 threads wait in a shuffle"),
    ("shuffle_from_an_ended_lane", 32, 5, "lane . asks for the value of lane 31, which takes no part"),
    ("shuffle_outside_its_mask", 32, 0, "is not in its own mask"),
]


@pytest.mark.parametrize(("kernel", "threads", "n", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_caught(library, kernel, threads, n, message):
    command = [sys.executable, "-m", "cuda_emulator.selftest", str(library), kernel, str(threads), str(n)]
    run = subprocess.run(command, cwd=SOURCE.parent, capture_output=True, text=True)
    assert run.returncode < 0, run.stdout + run.stderr
    assert re.search(f"cuda_emulator: .*{message}", run.stderr), run.stderr
    assert f"grid (2, 1, 1) of ({threads}, 1, 1) threads" in run.stderr
