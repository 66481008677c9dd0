"""Every Triton kernel compiles for GPUs that are not here, and its machine code is what the design promises.

What is compiled is listed in bench/aot_variants.py. `make test` compiles the core variants for sm_90, `make test-all`
those for every architecture and each further one for a single architecture in turn; FASTMIX_COMPILE_ALL=1 compiles
everything for all (several minutes).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

import static_report
from aot import CAPABILITIES, CUDA_SOURCES, ROOT, compile_launch
from aot_variants import ATTENTIONS, CORE, F16, F32, IEEE, VARIANTS, attention, launches
from tune_attention import PROBLEMS

from fastmix.kernels.pair_attention import tiles
from fastmix.kernels.triton_common import record_launches

# Bytes that one program may have; the tiles of sm_80 serve the smallest GPUs too.
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTC"}


def pairs(variants: dict) -> list:
    """(variant, compute capability) to compile."""
    everything = os.environ.get("FASTMIX_COMPILE_ALL") == "1"
    chosen = []
    for i, name in enumerate(variants):
        one = CAPABILITIES[i % len(CAPABILITIES)]
        chosen += [(name, c) for c in CAPABILITIES if everything or name in CORE or c == one]
    quick = [name in CORE and c == 90 for name, c in chosen]
    return [
        pytest.param(name, c, id=f"{name}-sm{c}", marks=[] if now else pytest.mark.slow)
        for (name, c), now in zip(chosen, quick, strict=True)
    ]


# One architecture in the quick tests.
each_gpu = pytest.mark.parametrize(
    "capability", [pytest.param(c, marks=[] if c == 90 else pytest.mark.slow) for c in CAPABILITIES]
)


def compiled(name, capability):
    found = [(launch.kernel.__name__, compile_launch(launch, capability)) for launch in launches(name, capability)]
    assert found
    return found


@pytest.mark.parametrize("name, capability", pairs(VARIANTS))
def test_nothing_spills(name, capability):
    for kernel, binary in compiled(name, capability):
        assert binary.count("EXIT") > 0, kernel
        assert binary.local_accesses == 0, kernel
        assert binary.shared <= SHARED_LIMIT[capability], kernel


@pytest.mark.parametrize("name, capability", pairs(ATTENTIONS))
def test_products_run_on_tensor_cores(name, capability):
    for kernel, binary in compiled(name, capability):
        assert binary.tensor_core.startswith(TENSOR_CORE[capability]) is (name not in IEEE), kernel


@each_gpu
@pytest.mark.parametrize("name", ["f16-d32-r4096"])
def test_threads_do_not_talk_inside_the_forward_loops(name, capability):
    for kernel, binary in compiled(name, capability)[:2]:
        loop = binary.shortest_loop(r"MUFU\.EX2", 8)
        assert loop and not [instruction for instruction in loop if instruction.startswith("SHFL")], kernel


@each_gpu
@pytest.mark.parametrize("name", ["blend-f32", "box_blend-f32"])
def test_float32_blends_use_no_fused_multiply_add(name, capability):
    for kernel, binary in compiled(name, capability):
        assert binary.count(r"FMUL\S*") > 0, kernel
        assert binary.count(r"FFMA\S*") == 0, kernel


@each_gpu
@pytest.mark.parametrize("name", ["blend-f32", "box_blend-f32", "mask_blend-bilinear-f32"])
def test_images_are_accessed_in_128_bits(name, capability):
    kernel, binary = compiled(name, capability)[0]
    assert binary.wide_loads > 0, kernel
    assert binary.wide_stores > 0, kernel


@pytest.mark.parametrize("name, capability", pairs(VARIANTS))
def test_the_static_report_is_current(name, capability):
    if reason := static_report.stale():
        pytest.skip(reason)
    expected = static_report.committed_rows().get((name, f"sm_{capability}"))
    assert static_report.triton_rows(name, capability) == expected, "run `python bench/static_report.py`"


def test_the_static_report_lists_everything():
    if reason := static_report.stale():
        pytest.skip(reason)
    listed = [*VARIANTS, *(str(source.relative_to(ROOT)) for source in CUDA_SOURCES)]
    rows = static_report.committed_rows()
    assert set(rows) <= {(name, f"sm_{c}") for name in listed for c in CAPABILITIES}
    for name in VARIANTS:
        for c in CAPABILITIES:
            kernels = [row.split("|")[2].strip() for row in rows[name, f"sm_{c}"]]
            assert kernels == [launch.kernel.__name__ for launch in launches(name, c)]


def test_check_prints_the_difference_and_fails(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(static_report, "REPORT", tmp_path / "report.md")
    monkeypatch.setattr(static_report, "report", lambda: "| kernel | 40 |\n")
    monkeypatch.setattr(sys, "argv", ["static_report.py", "--check"])
    assert static_report.stale()
    assert static_report.main() == 1
    (tmp_path / "report.md").write_text("| kernel | 41 |\n")
    assert static_report.main() == 1
    assert "-| kernel | 41 |\n+| kernel | 40 |\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["static_report.py"])
    assert static_report.main() == 0
    monkeypatch.setattr(sys, "argv", ["static_report.py", "--check"])
    assert static_report.main() == 0


KERNELS = ["forward", "grad_rows", "grad_cols"]
PRODUCTS = ["half", "narrow", "tf32", "ieee"]


def test_the_tile_table_is_complete_and_every_row_can_be_reached():
    assert set(tiles.TABLE) == {(gpu, k, p) for gpu in set(tiles.GPUS.values()) for k in KERNELS for p in PRODUCTS}
    for key, rows in tiles.TABLE.items():
        assert rows[-1][:2] == (tiles.ANY, tiles.ANY), key
        for i, (depth, r, row) in enumerate(rows):
            earlier = [before for before in rows[:i] if before[0] >= depth and before[1] >= r]
            assert not earlier, f"{key}: row {i} is never taken"
            assert all(size & (size - 1) == 0 for size in row._replace(num_stages=1)), f"{key}: row {i}"


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 103, 120, 0])
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_fit_any_problem(kernel, products, capability):
    for depth in [1, 16, 17, 64, 100, 128, 200, 512, 1024, 4096]:
        for r in [1, 49, 64, 65, 196, 4096, 16384]:
            found = tiles.tiles_for(capability, kernel, products, depth, r)
            assert found.m >= 16 and found.n >= 16 and found.d >= 16
            assert found.n % (2 * found.groups) == 0 or found.groups == 1
            assert found.m < 2 * max(64, r) and found.n < 2 * max(64, r) and found.d < 2 * max(16, depth)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_masks_are_left_out_only_where_blocks_divide_the_problem(capability):
    for dtype, depth, r in itertools.product([F16, F32], [16, 24, 75, 128, 192, 320, 512, 640, 1024], [64, 96, 196]):
        with record_launches(capability) as recorded:
            attention(dtype, depth, r)
        for _, _, meta in recorded:
            assert not meta["FULL_N"] or r % meta["BLOCK_N"] == 0
            assert not meta["FULL_D"] or (depth % meta["BLOCK_D"] == 0 and depth % meta.get("BLOCK_OUT", 1) == 0)
            assert meta["HELD"] is (depth <= meta["BLOCK_D"])


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_tuner_prints_a_table_that_says_the_same(capability, tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "bench" / "tune_attention.py"), "--dry-run", "--capability", str(capability)]
    command += ["--csv", str(tmp_path / "candidates.csv")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len((tmp_path / "candidates.csv").read_text().splitlines()) > 500
    rows = "".join(line for line in printed if not line.startswith("#"))
    table = eval(f"{{{rows}}}", {"ANY": tiles.ANY, "Tiles": tiles.Tiles})
    problems = [(k, p, shape.depth, shape.r) for k in KERNELS for p in PRODUCTS for shape in PROBLEMS[p]]
    before = [tiles.tiles_for(capability, *problem) for problem in problems]
    monkeypatch.setattr(tiles, "TABLE", table)
    assert [tiles.tiles_for(capability, *problem) for problem in problems] == before
