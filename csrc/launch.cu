// What every CUDA call needs once: names of errors, sums of partial results.
#include "pixels.cuh"

namespace fastmix {
namespace cuda {
namespace {

__global__ void sum_rows_kernel(const float* values, int64_t columns, float divisor, float* out) {
  const float* row = values + blockIdx.x * columns;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) sum += row[i];
  sum = sum_of_block(sum, shared_floats());
  if (threadIdx.x == 0) out[blockIdx.x] = sum / divisor;
}

}  // namespace

int sum_rows(const Queue& queue, const float* values, int64_t rows, int64_t columns, int64_t divisor, float* out) {
  const int threads = columns > 4 * kWarp ? kThreads : kWarp;
  for (int64_t first = 0; first < rows; first += kMostBlocks) {
    const int64_t blocks = std::min(rows - first, kMostBlocks);
    if (int error = launch(queue, sum_rows_kernel, blocks, threads, threads / kWarp * sizeof(float),
                           values + first * columns, columns, static_cast<float>(divisor), out + first))
      return error;
  }
  return cudaSuccess;
}

int problem() {
  int version = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&version, cudaDevAttrComputeCapabilityMajor, 0);
  cudaGetLastError();
  return error;
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace cuda
}  // namespace fastmix
