// CUDA kernels of `grid_cut`. A grid belongs to some lanes of a warp, to a warp or to a block, with one site or few a
// thread; all that changes lies in shared memory. Grids that need all labels in one cut are left to a second kernel,
// which has more memory, but for few of them at a time.
#include <algorithm>

#include "block.cuh"
#include "grid_cut.h"

namespace fastmix {
namespace cuda {
namespace {

constexpr int kThreads = 256;               // of a block that works on one grid, at most
constexpr int kLanes = 128;                 // of a block that works on several
constexpr int kSitesOfWarp = 128;           // most sites that a warp works on
constexpr int kSlots = 64;                  // grids cut by the second kernel at the same time
constexpr int64_t kSharedBytes = 48 << 10;  // of a block, unless more is asked for
constexpr int64_t kLeft = INT64_MIN;        // instead of an energy: left to the second kernel

__device__ __forceinline__ int32_t* shared_ints() { return reinterpret_cast<int32_t*>(shared_floats()); }

template <class Block>
__device__ __forceinline__ void store(const Block& block, const GridCut<Block>& grid, const Cut& cut, int64_t sample) {
  const int64_t energy = grid.energy(), first = sample * cut.height * cut.width;
  for (int i = block.rank(); i < cut.height * cut.width; i += block.size()) cut.out[first + i] = grid.label(i);
  if (block.rank() == 0) cut.energy[sample] = energy;
}

template <class Block>
__device__ __forceinline__ void solve(const Block& block, const Cut& cut, int64_t sample, int32_t* memory) {
  GridCut<Block> grid(block, cut, sample, memory);
  if (cut.swap) {
    grid.swap_labels();
  } else if (grid.convex()) {
    grid.raise_labels();
  } else {
    if (block.rank() == 0) cut.energy[sample] = kLeft;
    return;
  }
  store(block, grid, cut, sample);
}

__global__ void __launch_bounds__(kLanes, 4) solve_by_lanes(Cut cut, int lanes, int64_t memory) {
  const int grid = static_cast<int>(threadIdx.x) / lanes;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * (blockDim.x / lanes) + grid;
  if (sample < cut.n) solve(CudaLanes(lanes), cut, sample, shared_ints() + grid * memory);
}

__global__ void __launch_bounds__(kThreads) solve_by_block(Cut cut) {
  int32_t* memory = shared_ints();
  solve(CudaBlock(memory), cut, blockIdx.x, memory + CudaBlock::kScratchBytes / 4);
}

template <int Layers>
__global__ void __launch_bounds__(kThreads, 1) cut_layers(Cut cut, int64_t memory) {
  const CudaBlock block(shared_ints());
  for (int64_t sample = blockIdx.x; sample < cut.n; sample += gridDim.x) {
    if (cut.energy[sample] != kLeft) continue;
    GridCut<CudaBlock> grid(block, cut, sample, cut.workspace + blockIdx.x * memory);
    grid.template cut_layers<Layers>();
    store(block, grid, cut, sample);
  }
}

// The threads that work on one grid.
int group(const Cut& cut) {
  const int64_t sites = cut.height * cut.width;
  if (sites > kSitesOfWarp) return static_cast<int>(std::min<int64_t>(kThreads, (sites + 31) / 32 * 32));
  int lanes = 1;
  while (lanes < sites && lanes < CudaLanes::kWarp) lanes *= 2;
  return lanes;
}

// int32 values.
int64_t memory(const Cut& cut, int layers) { return GridCut<CudaBlock>::memory(cut.height, cut.width, layers); }

bool may_leave_some(const Cut& cut) { return !cut.swap && cut.labels > 2; }

int solve_all(const Cut& cut) {
  const int threads = group(cut);
  const int64_t bytes = 4 * memory(cut, 1);
  if (threads <= CudaLanes::kWarp) {
    const int64_t grids = kLanes / threads;
    return launch(cut.queue, solve_by_lanes, (cut.n + grids - 1) / grids, kLanes, grids * bytes, cut, threads,
                  bytes / 4);
  }
  const int64_t shared = bytes + CudaBlock::kScratchBytes;
  if (shared > kSharedBytes) {
    const OnDevice current(cut.queue.device);
    if (current.error() != cudaSuccess) return current.error();
    const int limit = static_cast<int>(shared);
    if (const int error = cudaFuncSetAttribute(solve_by_block, cudaFuncAttributeMaxDynamicSharedMemorySize, limit))
      return error;
  }
  return launch(cut.queue, solve_by_block, cut.n, threads, shared, cut);
}

}  // namespace

int64_t grid_cut_workspace(const Cut& cut) {
  return may_leave_some(cut) ? std::min<int64_t>(cut.n, kSlots) * memory(cut, cut.labels - 1) : 0;
}

int grid_cut(const Cut& cut) {
  if (const int error = solve_all(cut)) return error;
  if (!may_leave_some(cut)) return cudaSuccess;
  return launch(cut.queue, cut.labels == 3 ? cut_layers<2> : cut_layers<3>, std::min<int64_t>(cut.n, kSlots),
                std::max(CudaLanes::kWarp, group(cut)), CudaBlock::kScratchBytes, cut, memory(cut, cut.labels - 1));
}

}  // namespace cuda
}  // namespace fastmix
