// The CUDA runtime that launchers see: two devices that differ in nothing, and what launches they refuse.
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "emulator.h"

namespace {

// Those of compute capability 9.0, but with few multiprocessors: blocks that loop over the work do so in small tests.
constexpr int kDevices = 2, kMultiprocessors = 2;
constexpr int kSharedMemory = 48 * 1024, kSharedMemoryOptIn = 227 * 1024;

int current_device = 0;
cudaError_t last_error = cudaSuccess;
std::map<const void*, int> shared_memory_limit;
struct {
  int64_t count;
  int device;
  cudaStream_t stream;
} last_launch;

cudaError_t error(cudaError_t found) {
  if (found != cudaSuccess) last_error = found;
  return found;
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (!count || count > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    return cudaErrorInvalidConfiguration;
  const auto limit = shared_memory_limit.find(kernel);
  const size_t allowed = limit == shared_memory_limit.end() ? kSharedMemory : limit->second;
  return config.dynamicSmemBytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

struct Text {
  cudaError_t error;
  const char *name, *meaning;
};
constexpr Text kTexts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaError_t(-1), "unrecognized error code", "unrecognized error code"},
};

const Text& text(cudaError_t error) {
  const Text* found = kTexts;
  while (found->error != error && found + 1 != std::end(kTexts)) ++found;
  return *found;
}

}  // namespace

cudaError_t emulator::launch(const cudaLaunchConfig_t& config, const void* kernel, void (*run)(const void*),
                             const void* call) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  if (const cudaError_t found = check(config, kernel)) return error(found);
  static const Guarded shared(kSharedMemoryOptIn);
  last_launch = {last_launch.count + 1, current_device, config.stream};
  gridDim = config.gridDim, blockDim = config.blockDim;
  running.kernel = kernel;
  running.shared = shared.end() - (config.dynamicSmemBytes + 15) / 16 * 16, running.shared_end = shared.end();
  const Watch watch;
  run_grid(run, call);
  running.kernel = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return error(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) { return text(error).name; }

const char* cudaGetErrorString(cudaError_t error) { return text(error).meaning; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  static const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMultiProcessorCount, kMultiprocessors},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, kSharedMemoryOptIn},
  };
  if (device < 0 || device >= kDevices) return error(cudaErrorInvalidDevice);
  *value = values.at(attribute);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > kSharedMemoryOptIn)
    return error(cudaErrorInvalidValue);
  shared_memory_limit[function] = value;
  return cudaSuccess;
}

// What tests set and ask, through ctypes.
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cuda_emulator_set_device(int device) { return cudaSetDevice(device); }

EXPORTED int cuda_emulator_get_device() { return current_device; }

// How many launches there were, and the device and stream of the last one.
EXPORTED int64_t cuda_emulator_launches(int* device, uintptr_t* stream) {
  *device = last_launch.device, *stream = reinterpret_cast<uintptr_t>(last_launch.stream);
  return last_launch.count;
}
