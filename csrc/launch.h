// Launching CUDA kernels. All of them go through here, so that a host compiler can stand in for CUDA in the tests.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastmix.h"

namespace fastmix {
namespace cuda {

constexpr int64_t kMostBlocks = INT32_MAX;  // of one launch

// The dynamic shared memory of the block; there is no other.
__device__ __forceinline__ float* shared_floats() {
#ifdef __CUDACC__
  extern __shared__ float4 dynamic_shared_memory[];
  return reinterpret_cast<float*>(dynamic_shared_memory);
#else
  return reinterpret_cast<float*>(emulated_shared());
#endif
}

// Makes a device current as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) : error_(cudaGetDevice(&before_)) {
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = true;
    }
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

// Runs `blocks` blocks of a kernel on the queue's stream; nothing if there are none. The result is a cudaError_t.
template <class... Params>
int launch(const Queue& queue, void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
           Params... params) {
  if (blocks == 0) return cudaSuccess;
  const OnDevice current(queue.device);
  if (current.error() != cudaSuccess) return current.error();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params...);
  if (error != cudaSuccess) cudaGetLastError();  // reported by our result, so that nobody else finds it again
  return error;
}

}  // namespace cuda
}  // namespace fastmix
