# Every target sets up what it needs in .venv by itself; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
cxx_in = $(wildcard $(foreach ending,cpp h cu cuh,$(1)/*.$(ending)))
NATIVE_FILES := $(call cxx_in,csrc) $(call cxx_in,kernels/*)
CXX_FILES := $(NATIVE_FILES) $(call cxx_in,tests/ops) $(call cxx_in,tests/gpu/cuda_emulator)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
RESULTS := bench/results/cpu-2-cores.json
BUILD_FILES := setup.py CMakeLists.txt $(NATIVE_FILES)

.PHONY: demo test test-all bench bench-report docs static-report lint format clean

demo: .venv/.train
	$(BIN)/python -m fastmix demo

# Triton's interpreter is chosen when Triton is imported: tests/gpu/test_triton_interpret.py starts processes of its own.
# Every kind of test, without the long sweeps: marked "slow".
test: .venv/.dev
	$(PYTEST) -m "not slow"

test-all: .venv/.dev
	$(PYTEST)

bench: .venv/.dev
	$(BIN)/python -m fastmix bench --json bench/results/latest.json

# The README's section of results, from the committed numbers.
bench-report: .venv/.dev
	$(BIN)/python -m fastmix.bench.report $(RESULTS) README.md

# API pages from the docstrings, into docs/api; a warning is an error.
docs: .venv/.dev
	$(BIN)/python -W error -m pdoc --docformat google --no-show-source --output-directory docs/api fastmix '!fastmix.kernels' '!fastmix._'

# What the compilers make of every GPU kernel; needs nvcc, no GPU.
static-report: .venv/.dev
	$(BIN)/python bench/static_report.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf .venv build dist fastmix.egg-info fastmix/_C*.so .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.tools:
	$(PYTHON) -m venv .venv
	$(PIP) "setuptools>=77" "pybind11>=2.12" "cmake>=3.24" ninja
	touch $@

.venv/.compiled: .venv/.tools $(BUILD_FILES)
	$(BIN)/python setup.py --quiet build_ext
	touch $@

# One pip call settles the pinned torch together with all that depends on it; any other order could fetch a newer one.
.venv/.packages-train: .venv/.tools pyproject.toml
	FASTMIX_NO_EXT=1 $(PIP) --no-build-isolation --editable ".[pinned,train]"
	touch $@

.venv/.packages-dev: .venv/.tools pyproject.toml
	FASTMIX_NO_EXT=1 $(PIP) --no-build-isolation --editable ".[dev]"
	touch .venv/.packages-train $@

# The compiler runs while pip downloads.
.venv/.train .venv/.dev: .venv/.%: .venv/.tools pyproject.toml $(BUILD_FILES)
	$(MAKE) --no-print-directory --jobs=2 .venv/.compiled .venv/.packages-$*
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@
