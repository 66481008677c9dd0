// CUDA kernels of `transport`. A sample belongs to some lanes of a warp, to a warp or to a block, with one block of the
// image or few a thread; all that changes lies in shared memory.
#include <algorithm>

#include "block.cuh"
#include "transport.h"

namespace fastmix {
namespace cuda {

__device__ __forceinline__ void lower(const CudaLanes&, uint64_t& slot, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(&slot), static_cast<unsigned long long>(value));
}

__device__ __forceinline__ void lower(const CudaBlock&, uint64_t& slot, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(&slot), static_cast<unsigned long long>(value));
}

namespace {

constexpr int kThreads = 256;      // of a block that works on one sample, at most
constexpr int kLanes = 128;        // of a block that works on several
constexpr int kCellsOfWarp = 128;  // most blocks of an image that a warp works on

__device__ __forceinline__ char* shared_bytes() { return reinterpret_cast<char*>(shared_floats()); }

template <template <class> class Plan>
__global__ void __launch_bounds__(kLanes, 8) solve_by_lanes(Transport call, int lanes, int memory) {
  const int plan = static_cast<int>(threadIdx.x) / lanes;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * (blockDim.x / lanes) + plan;
  if (sample >= call.n) return;
  const CudaLanes block(lanes);
  Plan<CudaLanes>(block, call, sample, shared_bytes() + plan * memory).solve();
}

template <template <class> class Plan>
__global__ void __launch_bounds__(kThreads, 4) solve_by_block(Transport call) {
  const CudaBlock block(shared_bytes());
  Plan<CudaBlock>(block, call, blockIdx.x, shared_bytes() + CudaBlock::kScratchBytes).solve();
}

// The threads that work on one sample.
int group(int cells) {
  if (cells > kCellsOfWarp)
    return std::min(kThreads, (cells + CudaLanes::kWarp - 1) / CudaLanes::kWarp * CudaLanes::kWarp);
  int lanes = 1;
  while (lanes < cells && lanes < CudaLanes::kWarp) lanes *= 2;
  return lanes;
}

template <template <class> class Plan>
int solve_all(const Transport& call) {
  const int threads = group(call.height * call.width), memory = Plan<CudaBlock>::memory(call.height, call.width);
  if (threads > CudaLanes::kWarp)
    return launch(call.queue, solve_by_block<Plan>, call.n, threads, CudaBlock::kScratchBytes + memory, call);
  const int64_t samples = kLanes / threads;
  return launch(call.queue, solve_by_lanes<Plan>, (call.n + samples - 1) / samples, kLanes, samples * memory, call,
                threads, memory);
}

}  // namespace

int transport(const Transport& call) {
  return call.exact ? solve_all<TransportPaths>(call) : solve_all<TransportRounds>(call);
}

}  // namespace cuda
}  // namespace fastmix
