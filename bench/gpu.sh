#!/usr/bin/env bash
# Everything there is to know about this checkout on a GPU, with one command and without a network:
#
#   bench/gpu.sh [OUT] [STAGE...]     stages: test sanitize bench, by default all; the build comes before any
#   bench/gpu.sh --dry-run [OUT]      without a GPU: builds, checks the generated code, walks the benchmark
#
# Needs torch, triton, pybind11, cmake, ninja, setuptools >= 77, pytest and nvcc; PYTHON chooses the interpreter.
# Results and logs go to OUT, by default bench/results/<name of the GPU>. Nothing is installed: the build and all caches
# live in build/gpu, which git ignores. All stages together take less than 20 minutes.
#
# shellcheck disable=SC2329  # stages are functions called by name
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$root/build/gpu
python=${PYTHON:-python3}
[[ $python != [^/]*/* ]] || python=$PWD/$python

die() {
  echo "bench/gpu.sh: $1" >&2
  exit 2
}

dry=0 out='' stages=()
for word in "$@"; do
  case $word in
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,9s/^#$//; 2,9s/^# //; 2,9p' "${BASH_SOURCE[0]}" && exit ;;
    test | sanitize | bench) stages+=("$word") ;;
    -*) die "unknown option $word" ;;
    *) [[ -z $out ]] || die "one folder at most, got $out and $word" && out=$(realpath -m "$word") ;;
  esac
done
[[ ${#stages[@]} -gt 0 ]] || stages=(test sanitize bench)

cuda_home=${CUDA_HOME:-${CUDA_PATH:-/usr/local/cuda}}
nvcc=$(command -v nvcc || command -v "$cuda_home/bin/nvcc" || true)
sanitizer=$(command -v compute-sanitizer || command -v "$cuda_home/bin/compute-sanitizer" || true)

describe_gpu='
import re, torch
if torch.cuda.is_available():
    print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))
    print("%d%d" % torch.cuda.get_device_capability())
'
gpu=() # its name, its compute capability
mapfile -t gpu < <("$python" -c "$describe_gpu")
if ((!dry)) && [[ ${#gpu[@]} -eq 0 ]]; then
  die "$python sees no CUDA device; --dry-run does without"
fi
if [[ -z $out ]] && ((dry)); then
  out=$(mktemp -d "${TMPDIR:-/tmp}/fastmix-dry-run.XXXXXX")
elif [[ -z $out ]]; then
  out=$root/bench/results/${gpu[0]}
fi
logs=$out/logs site=$work/site source=$work/source
mkdir -p "$work" "$logs"

export PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$work/cache/triton TORCHINDUCTOR_CACHE_DIR=$work/cache/inductor
export MPLCONFIGDIR=$work/cache/matplotlib CUBLAS_WORKSPACE_CONFIG=:4096:8
pytest=("$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -m gpu -q)

summary=() failed=0 built=1
# stage NAME FUNCTION ARGUMENT...: runs it in $work, keeps its log and notes how it ended. The next stage runs anyway,
# unless there is no build: it would look at some other one.
stage() {
  local name=$1 start=$SECONDS status outcome
  if ((!built)); then
    summary+=("| $name | not run without a build | |")
    return
  fi
  shift
  printf '\n== %s\n' "$name"
  set +e
  (
    set -e
    cd "$work"
    "$@"
  ) 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  set -e
  case $status in
    0) outcome=passed ;;
    75) outcome='skipped, its log says why' ;;
    124 | 137) outcome='FAILED: its time was up' failed=1 ;;
    *) outcome="FAILED: exit status $status" failed=1 ;;
  esac
  summary+=("| $name | $outcome | $((SECONDS - start)) s |")
}

# limited SECONDS COMMAND...
limited() {
  timeout --kill-after=10 "$@"
}

# build SECONDS: from a copy, so that the checkout stays as it is; CMake's folder is kept for the next time.
build() {
  local settings=(FASTMIX_CUDA=auto)
  mkdir -p "$source"
  find "$source" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
  rm -rf "$site" "$source"/build/lib* "$source"/build/bdist*
  tar -C "$root" --exclude-vcs --exclude=./build --exclude=./.venv --exclude=./dist --exclude=./runs --exclude=./shared \
    --exclude=./bench/results --exclude='./.*_cache' --exclude='*.egg-info' --exclude=__pycache__ --exclude='*.so' \
    -cf - . | tar -C "$source" -xf -
  if [[ -n $nvcc ]]; then
    # For this GPU alone; without one, for one architecture: the static report looks at the others.
    settings=(FASTMIX_CUDA=1 "FASTMIX_CUDA_ARCHS=${FASTMIX_CUDA_ARCHS:-${gpu[1]:-90}}" "CUDACXX=${CUDACXX:-$nvcc}")
  fi
  limited "$1" env "${settings[@]}" "$python" -m pip install --disable-pip-version-check --no-cache-dir --no-index \
    --no-build-isolation --no-deps --target "$site" "$source"
  "$python" - "$site" "$dry" <<'PYTHON'
import sys
from pathlib import Path

import fastmix
from fastmix import native

site, dry = Path(sys.argv[1]), sys.argv[2] == "1"
assert site in Path(fastmix.__file__).parents, f"{fastmix.__file__} is not the build in {site}"
reason = native.why_unavailable() or (None if dry else native.why_no_cuda())
sys.exit(reason and f"the build cannot be used: {reason}")
PYTHON
}

gpu_tests() {
  local parallel=()
  if "$python" -c 'import xdist' 2>/dev/null; then
    parallel=(-n 8 --dist worksteal)
  fi
  limited 300 "${pytest[@]}" "${parallel[@]}" --junitxml="$logs/test.xml" --ignore="$root/tests/gpu/test_gpu_large.py" \
    "$root/tests"
}

# By themselves, since they want most of the memory.
large_tests() {
  limited 60 "${pytest[@]}" --junitxml="$logs/test-large.xml" "$root/tests/gpu/test_gpu_large.py"
}

# sanitized TOOL SECONDS COMMAND...: looks at our kernels only; status 9 if it finds something.
sanitized() {
  local tool=$1 seconds=$2 name filter=(--kernel-name kernel_substring=fastmix)
  shift 2
  while read -r name; do
    filter+=(--kernel-name "kernel_substring=$name")
  done < <(sed -n 's/^def \(_[a-z0-9_]*_kernel\)(.*/\1/p' "$root"/kernels/*/triton_kernel.py "$root/kernels/triton_common.py")
  # Without torch's memory cache each tensor is an allocation of its own, whose ends are watched.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$seconds" "$sanitizer" --tool "$tool" --target-processes application-only \
    --report-api-errors no --error-exitcode 9 "${filter[@]}" "$@"
}

sanitize() {
  local tool=$1 status
  if [[ -z $sanitizer ]]; then
    echo "compute-sanitizer is neither in PATH nor in $cuda_home/bin"
    return 75
  fi
  # Its silence means something only if it finds a planted race and a planted access past the end.
  cat >planted.cu <<'CUDA'
namespace fastmix {
__global__ void planted(int* x) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  x[2 * threadIdx.x] = shared[63 - threadIdx.x];
}
}  // namespace fastmix
int main() {
  int* x;
  cudaMalloc(&x, 64 * sizeof(int));
  fastmix::planted<<<1, 64>>>(x);
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
CUDA
  limited 20 "$nvcc" -arch="sm_${gpu[1]}" -o planted planted.cu
  set +e
  sanitized "$tool" 20 ./planted >planted.log 2>&1
  status=$?
  set -e
  if ((status != 9)); then
    cat planted.log
    echo "$tool overlooked a planted error (exit status $status)"
    return 1
  fi
  sanitized "$tool" 110 "${pytest[@]}" "$root/tests/gpu/test_gpu_small.py"
}

benchmark() {
  limited 370 "$python" "$root/bench/gpu.py" --out "$out" --seconds 300
}

static_report() {
  if [[ -z $nvcc ]]; then
    echo "nvcc is neither in PATH nor in $cuda_home/bin"
    return 75
  fi
  limited 1800 "$python" "$root/bench/static_report.py" --check
}

collect() {
  limited 300 "${pytest[@]}" --collect-only "$root/tests"
}

dry_benchmark() {
  limited 900 "$python" "$root/bench/gpu.py" --dry-run --out "$out"
}

stage build build $((dry ? 1200 : 150))
built=$((!failed))
if ((dry)); then
  stage static-report static_report
  stage collect collect
  stage bench dry_benchmark
  stages=()
fi
for name in "${stages[@]}"; do
  case $name in
    test)
      stage test gpu_tests
      stage test-large large_tests
      ;;
    sanitize)
      stage memcheck sanitize memcheck
      stage racecheck sanitize racecheck
      ;;
    bench) stage bench benchmark ;;
  esac
done

echo
{
  printf '| stage | outcome | time |\n|---|---|---|\n'
  printf '%s\n' "${summary[@]}"
} | tee "$out/summary.md"
echo "results in $out"
exit "$failed"
