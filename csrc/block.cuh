// The execution blocks of block.h on CUDA.
#pragma once

#include "block.h"
#include "launch.h"

namespace fastmix {
namespace cuda {

// `size` neighbouring lanes of a warp, a power of two: several samples share a CUDA block, and its warps stay full.
class CudaLanes {
 public:
  static constexpr int kWarp = 32;

  __device__ __forceinline__ explicit CudaLanes(int size)
      : size_(size),
        rank_(static_cast<int>(threadIdx.x) & (size - 1)),
        mask_((0xffffffff >> (kWarp - size)) << (threadIdx.x % kWarp - rank_)) {}

  __device__ __forceinline__ int rank() const { return rank_; }
  __device__ __forceinline__ int size() const { return size_; }
  __device__ __forceinline__ void sync() const { __syncwarp(mask_); }
  __device__ __forceinline__ bool any(bool value) const {
    const bool result = __any_sync(mask_, value);
    sync();  // a vote alone orders no memory accesses
    return result;
  }
  template <class T>
  __device__ __forceinline__ T sum(T value) const {
    for (int step = size_ / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask_, value, step);
    sync();
    return value;
  }
  template <class T>
  __device__ __forceinline__ T min(T value) const {
    for (int step = size_ / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(mask_, value, step);
      value = other < value ? other : value;
    }
    sync();
    return value;
  }

 private:
  int size_, rank_;
  unsigned mask_;
};

// All threads of the CUDA block, whole warps of them.
class CudaBlock {
 public:
  static constexpr int kScratchBytes = 256;  // of shared memory: 8 bytes a warp

  __device__ __forceinline__ explicit CudaBlock(void* scratch) : scratch_(scratch) {}

  __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ bool any(bool value) const { return __syncthreads_or(value); }
  template <class T>
  __device__ __forceinline__ T sum(T value) const {
    T total = exchanged(CudaLanes(CudaLanes::kWarp).sum(value))[0];
    for (int i = 1; i < size() / CudaLanes::kWarp; ++i) total += warps<T>()[i];
    sync();
    return total;
  }
  template <class T>
  __device__ __forceinline__ T min(T value) const {
    T least = exchanged(CudaLanes(CudaLanes::kWarp).min(value))[0];
    for (int i = 1; i < size() / CudaLanes::kWarp; ++i) least = warps<T>()[i] < least ? warps<T>()[i] : least;
    sync();
    return least;
  }

 private:
  template <class T>
  __device__ __forceinline__ T* warps() const {
    static_assert(sizeof(T) <= sizeof(int64_t), "does not fit the scratch memory");
    return static_cast<T*>(scratch_);
  }

  // The values of all warps.
  template <class T>
  __device__ __forceinline__ const T* exchanged(T value) const {
    if (threadIdx.x % CudaLanes::kWarp == 0) warps<T>()[threadIdx.x / CudaLanes::kWarp] = value;
    sync();
    return warps<T>();
  }

  void* scratch_;
};

}  // namespace cuda
}  // namespace fastmix
