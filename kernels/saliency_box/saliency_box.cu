// CUDA kernel of `saliency_box`: a map a block.
#include <algorithm>

#include "block.cuh"
#include "saliency_box.h"

namespace fastmix {
namespace cuda {
namespace {

constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads) find_kernel(SaliencyBox call) {
  const CudaBlock block(shared_floats());
  const int64_t room = static_cast<int64_t>(call.height + 1) * (call.width + 1);
  BoxFinder<CudaBlock>(block, call, blockIdx.x, call.sums ? call.sums + blockIdx.x * room : nullptr).find();
}

}  // namespace

int saliency_box(const SaliencyBox& call) {
  const int warps = (std::min(kThreads, call.height * call.width) + CudaLanes::kWarp - 1) / CudaLanes::kWarp;
  return launch(call.queue, find_kernel, call.n, warps * CudaLanes::kWarp, CudaBlock::kScratchBytes, call);
}

}  // namespace cuda
}  // namespace fastmix
