// CUDA kernel of `spectral_mask`: the largest pixels of images that are there already, an image a block.
#include <algorithm>

#include "block.cuh"
#include "spectral_mask.h"

namespace fastmix {
namespace cuda {

__device__ __forceinline__ void increase(const CudaBlock&, int& number, int by) { atomicAdd(&number, by); }

namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads) select_kernel(SpectralMask call) {
  char* memory = reinterpret_cast<char*>(shared_floats());
  const CudaBlock block(memory);
  TopSelection<CudaBlock>(block, call, blockIdx.x, memory + CudaBlock::kScratchBytes).write();
}

}  // namespace

int spectral_mask(const SpectralMask& call) {
  const int64_t warps =
      (std::min<int64_t>(kThreads, call.height * call.width) + CudaLanes::kWarp - 1) / CudaLanes::kWarp;
  return launch(call.queue, select_kernel, call.n, static_cast<int>(warps) * CudaLanes::kWarp,
                CudaBlock::kScratchBytes + TopSelection<CudaBlock>::kMemoryBytes, call);
}

}  // namespace cuda
}  // namespace fastmix
