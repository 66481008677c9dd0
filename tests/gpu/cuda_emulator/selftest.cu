// Small kernels, right and wrong ones, that test the emulator itself.
#include <cuda_runtime.h>

#include <string_view>

namespace {

constexpr unsigned kAll = 0xffffffff;

float* shared_floats() { return reinterpret_cast<float*>(fastmix::emulated_shared()); }

// out[block] = sum of in, by all threads of the block; n is a multiple of their number.
template <bool kBarrier>
__device__ void sum(const float* in, float* out, int n) {
  float* parts = shared_floats();
  float total = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) total += in[i];
  for (int delta = 16; delta; delta /= 2) total += __shfl_xor_sync(kAll, total, delta);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = total;
  if (kBarrier) __syncthreads();
  if (threadIdx.x >= 32) return;
  total = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0;
  for (int delta = 16; delta; delta /= 2) total += __shfl_down_sync(kAll, total, delta);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

__global__ void good_sum(const float* in, float* out, int n) { sum<true>(in, out, n); }
__global__ void sum_without_barrier(const float* in, float* out, int n) { sum<false>(in, out, n); }

// Turns tiles of blockDim.x values around, in shared memory. Without the second barrier a fast thread overwrites what a
// slow one has yet to read.
template <bool kBarrier>
__device__ void reverse(const float* in, float* out, int n) {
  float* tile = shared_floats();
  const int size = blockDim.x, i = threadIdx.x;
  for (int begin = 0; begin < n; begin += size) {
    tile[i] = in[begin + i];
    __syncthreads();
    out[begin + i] = tile[size - 1 - i];
    if (kBarrier) __syncthreads();
  }
}

__global__ void good_reverse(const float* in, float* out, int n) { reverse<true>(in, out, n); }
__global__ void reverse_without_barrier(const float* in, float* out, int n) { reverse<false>(in, out, n); }

// The lanes of a warp turn 32 values around, in shared memory.
template <bool kSync>
__device__ void reverse_lanes(const float* in, float* out) {
  const int i = threadIdx.x, lane = i % 32;
  shared_floats()[i] = in[i];
  if (kSync) __syncwarp();
  out[i] = shared_floats()[i - lane + 31 - lane];
}

__global__ void good_reverse_lanes(const float* in, float* out, int) { reverse_lanes<true>(in, out); }
__global__ void reverse_lanes_without_sync(const float* in, float* out, int) { reverse_lanes<false>(in, out); }

__global__ void same_place_twice(const float*, float* out, int n) { out[threadIdx.x % (n / 2)] = 1; }
__global__ void same_place_in_two_blocks(const float*, float* out, int) { out[threadIdx.x] = 1; }

__global__ void copy_packets(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) reinterpret_cast<float4*>(out)[i] = reinterpret_cast<const float4*>(in)[i];
}

__global__ void copy_hinted_packets(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) __stcs(reinterpret_cast<float4*>(out) + i, __ldg(reinterpret_cast<const float4*>(in) + i));
}

__global__ void read_one_behind(const float* in, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in[i] + in[i + 1];
}

__global__ void read_one_before(const float* in, float* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in[i] + in[i - 1];
}

__global__ void write_past_shared_memory(const float* in, float* out, int n) {
  shared_floats()[threadIdx.x + n] = in[threadIdx.x];
  out[threadIdx.x] = shared_floats()[threadIdx.x + n];
}

__global__ void read_unwritten_shared_memory(const float*, float* out, int) {
  out[threadIdx.x] = shared_floats()[threadIdx.x];
}

__global__ void barrier_in_a_branch(const float*, float* out, int n) {
  if (int(threadIdx.x) < n) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void two_barriers_in_branches(const float*, float* out, int n) {
  if (int(threadIdx.x) < n)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void shuffle_in_a_branch(const float* in, float* out, int n) {
  if (int(threadIdx.x) < n) out[threadIdx.x] = __shfl_sync(kAll, in[threadIdx.x], 0);
  __syncthreads();
}

__global__ void shuffle_from_an_ended_lane(const float* in, float* out, int n) {
  if (int(threadIdx.x) >= n) return;
  out[threadIdx.x] = __shfl_sync(kAll, in[threadIdx.x], 31);
}

__global__ void shuffle_outside_its_mask(const float* in, float* out, int) {
  out[threadIdx.x] = __shfl_sync(0xffff, in[threadIdx.x], 0);
}

// out[0:5] of each thread: the four shuffles and what the votes say of `in > 0`.
__global__ void exchange(const float* in, float* out, int) {
  const int i = threadIdx.x;
  const float value = in[i];
  out[5 * i] = __shfl_sync(kAll, value, i + 1, 8);
  out[5 * i + 1] = __shfl_xor_sync(kAll, value, 5);
  out[5 * i + 2] = __shfl_down_sync(kAll, value, 3, 16);
  out[5 * i + 3] = __shfl_up_sync(kAll, value, 2);
  const int votes = __popc(__ballot_sync(kAll, value > 0)) + 100 * __any_sync(kAll, value > 0);
  out[5 * i + 4] = float(votes + 1000 * __all_sync(kAll, value > 0) + 10000 * __syncthreads_count(value > 0) +
                         100000 * __syncthreads_or(value > 0) + 1000000 * __syncthreads_and(value > 0));
}

// out[id] = id, the place of the thread in the grid of three dimensions.
__global__ void number(const float*, float* out, int) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int id = block * int(blockDim.x * blockDim.y * blockDim.z) + thread;
  out[id] = float(id);
}

// out[0] = the block that ran first.
__global__ void first_block(const float*, float* out, int) {
  if (atomicAdd(reinterpret_cast<int*>(out + 1), 1) == 0) out[0] = float(blockIdx.x);
}

__global__ void strict_and_fused(const float* in, float* out, int) {
  out[0] = __fadd_rn(__fmul_rn(in[0], in[1]), in[2]);
  out[1] = __fmaf_rn(in[0], in[1], in[2]);
  out[2] = in[0] * in[1] + in[2];
}

using Kernel = void (*)(const float*, float*, int);
constexpr std::pair<std::string_view, Kernel> kKernels[] = {
#define NAMED(name) {#name, name}
    NAMED(good_sum),
    NAMED(sum_without_barrier),
    NAMED(good_reverse),
    NAMED(reverse_without_barrier),
    NAMED(good_reverse_lanes),
    NAMED(reverse_lanes_without_sync),
    NAMED(same_place_twice),
    NAMED(same_place_in_two_blocks),
    NAMED(copy_packets),
    NAMED(copy_hinted_packets),
    NAMED(read_one_behind),
    NAMED(read_one_before),
    NAMED(write_past_shared_memory),
    NAMED(read_unwritten_shared_memory),
    NAMED(barrier_in_a_branch),
    NAMED(two_barriers_in_branches),
    NAMED(shuffle_in_a_branch),
    NAMED(shuffle_from_an_ended_lane),
    NAMED(shuffle_outside_its_mask),
    NAMED(exchange),
    NAMED(number),
    NAMED(first_block),
    NAMED(strict_and_fused),
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int selftest(const char* name, const unsigned* grid,
                                                               const unsigned* block, size_t shared_bytes,
                                                               size_t shared_limit, const float* in, float* out,
                                                               int n) {
  for (const auto& [known, kernel] : kKernels) {
    if (known != name) continue;
    if (shared_limit) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_limit));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid[0], grid[1], grid[2]), config.blockDim = dim3(block[0], block[1], block[2]);
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, kernel, in, out, n);
  }
  return -1;
}
