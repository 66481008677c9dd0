// Stand-in for the CUDA runtime's header: kernels compile with a host compiler and run on the CPU (see README.md).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Vector types, aligned like CUDA's.
#define EMULATED_VECTORS(name, T)                                                    \
  struct name##1 { T x; };                                                           \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct name##3 { T x, y, z; };                                                     \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##1 make_##name##1(T x) { return {x}; }                                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(char, signed char)
EMULATED_VECTORS(uchar, unsigned char)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(ushort, unsigned short)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(uint, unsigned)
EMULATED_VECTORS(longlong, long long)
EMULATED_VECTORS(ulonglong, unsigned long long)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
#undef EMULATED_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// The part of the runtime that launchers use. What would allocate or wait is left out on purpose.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value);

template <class... Args>
cudaError_t cudaFuncSetAttribute(void (*function)(Args...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(function), attribute, value);
}

namespace emulator {

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, void (*run)(const void*), const void* call);

// What a thread waits for. Threads that wait together must do so at the same place.
enum class Wait { barrier, barrier_or, barrier_and, barrier_count, warp, shuffle, any, all, ballot };
struct Site {
  const char* file;
  int line;
};
int block_barrier(Wait kind, int predicate, Site site);
uint64_t warp_exchange(Wait kind, unsigned mask, uint64_t value, int source_lane, Site site);
int lane();

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void note_atomic(const void* address, size_t bytes);
void* shared_memory();

// One instruction moves at most 16 bytes, from an address that is a multiple of their number.
template <class T>
void check_packet(const T* address) {
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0, "no instruction moves so many bytes");
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T))
    fail("misaligned access of %zu bytes at %p", sizeof(T), static_cast<const void*>(address));
}

// Hides a value from the compiler, so that it fuses no multiplication with an addition.
template <class T>
T opaque(T value) {
  asm volatile("" : "+m"(value));
  return value;
}

template <class T>
using Same = std::common_type_t<T>;

}  // namespace emulator

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel arguments are limited to 4 KB");
  static_assert((std::is_trivially_copyable_v<Params> && ...), "kernel arguments are copied byte by byte");
  const Call call{kernel, {std::forward<Args>(args)...}};
  const auto run = [](const void* packed) {
    const Call& call = *static_cast<const Call*>(packed);
    std::apply(call.first, call.second);
  };
  return emulator::launch(*config, reinterpret_cast<const void*>(kernel), run, &call);
}

namespace fastmix {

inline unsigned char* emulated_shared() { return static_cast<unsigned char*>(emulator::shared_memory()); }

}  // namespace fastmix

// Barriers, votes and shuffles.
#define EMULATED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATED_HERE \
  emulator::Site { file, line }

inline void __syncthreads(EMULATED_SITE) { emulator::block_barrier(emulator::Wait::barrier, 0, EMULATED_HERE); }
inline int __syncthreads_or(int predicate, EMULATED_SITE) {
  return emulator::block_barrier(emulator::Wait::barrier_or, predicate, EMULATED_HERE);
}
inline int __syncthreads_and(int predicate, EMULATED_SITE) {
  return emulator::block_barrier(emulator::Wait::barrier_and, predicate, EMULATED_HERE);
}
inline int __syncthreads_count(int predicate, EMULATED_SITE) {
  return emulator::block_barrier(emulator::Wait::barrier_count, predicate, EMULATED_HERE);
}

inline void __syncwarp(unsigned mask = 0xffffffff, EMULATED_SITE) {
  emulator::warp_exchange(emulator::Wait::warp, mask, 0, emulator::lane(), EMULATED_HERE);
}
inline int __any_sync(unsigned mask, int predicate, EMULATED_SITE) {
  return int(emulator::warp_exchange(emulator::Wait::any, mask, predicate != 0, emulator::lane(), EMULATED_HERE));
}
inline int __all_sync(unsigned mask, int predicate, EMULATED_SITE) {
  return int(emulator::warp_exchange(emulator::Wait::all, mask, predicate != 0, emulator::lane(), EMULATED_HERE));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_SITE) {
  return unsigned(
      emulator::warp_exchange(emulator::Wait::ballot, mask, predicate != 0, emulator::lane(), EMULATED_HERE));
}

namespace emulator {

// The lanes of a warp form sections of `width`; a lane whose source lies outside its section keeps its own value.
template <class T>
T shuffle(unsigned mask, T value, int source, bool inside, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(Wait::shuffle, mask, bits, inside ? source : lane(), site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATED_SITE) {
  const int base = emulator::lane() & ~(width - 1);
  return emulator::shuffle(mask, value, base + (source & (width - 1)), true, EMULATED_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, EMULATED_SITE) {
  const int lane = emulator::lane(), end = (lane & ~(width - 1)) + width, source = lane ^ lane_mask;
  return emulator::shuffle(mask, value, source, source < end, EMULATED_HERE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATED_SITE) {
  const int lane = emulator::lane(), end = (lane & ~(width - 1)) + width, source = lane + int(delta);
  return emulator::shuffle(mask, value, source, source < end, EMULATED_HERE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATED_SITE) {
  const int lane = emulator::lane(), base = lane & ~(width - 1), source = lane - int(delta);
  return emulator::shuffle(mask, value, source, source >= base, EMULATED_HERE);
}

#undef EMULATED_SITE
#undef EMULATED_HERE

inline void __threadfence() {}
inline void __threadfence_block() {}

// Loads and stores with cache hints.
#define EMULATED_LOAD(name)          \
  template <class T>                 \
  T name(const T* address) {         \
    emulator::check_packet(address); \
    return *address;                 \
  }
#define EMULATED_STORE(name)                       \
  template <class T>                               \
  void name(T* address, emulator::Same<T> value) { \
    emulator::check_packet(address);               \
    *address = value;                              \
  }
EMULATED_LOAD(__ldg)
EMULATED_LOAD(__ldcg)
EMULATED_LOAD(__ldcs)
EMULATED_STORE(__stcg)
EMULATED_STORE(__stcs)
#undef EMULATED_LOAD
#undef EMULATED_STORE

// Atomics, on integers alone: sums of floating numbers would depend on the order of the threads.
#define EMULATED_ATOMIC(name, result)                                                  \
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>                  \
  __attribute__((no_sanitize("thread"))) T name(T* address, emulator::Same<T> value) { \
    emulator::check_packet(address);                                                   \
    emulator::note_atomic(address, sizeof(T));                                         \
    const T old = *address;                                                            \
    *address = (result);                                                               \
    return old;                                                                        \
  }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMin, old < value ? old : value)
EMULATED_ATOMIC(atomicMax, old > value ? old : value)
EMULATED_ATOMIC(atomicAnd, old& value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef EMULATED_ATOMIC

template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
__attribute__((no_sanitize("thread"))) T atomicCAS(T* address, emulator::Same<T> expected, emulator::Same<T> value) {
  emulator::check_packet(address);
  emulator::note_atomic(address, sizeof(T));
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

// Arithmetic.
inline float __fmul_rn(float a, float b) { return emulator::opaque(a * b); }
inline float __fadd_rn(float a, float b) { return emulator::opaque(emulator::opaque(a) + emulator::opaque(b)); }
inline float __fsub_rn(float a, float b) { return emulator::opaque(emulator::opaque(a) - emulator::opaque(b)); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }

namespace emulator {

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Conversions to integers saturate, and NaN becomes 0.
template <class T>
T saturated(double value, double low, double high) {
  return value >= high ? T(high) : value > low ? T(value) : value <= low ? T(low) : T(0);
}

}  // namespace emulator

inline unsigned __float_as_uint(float a) { return emulator::bits<unsigned>(a); }
inline int __float_as_int(float a) { return emulator::bits<int>(a); }
inline float __uint_as_float(unsigned a) { return emulator::bits<float>(a); }
inline float __int_as_float(int a) { return emulator::bits<float>(a); }
inline int __float2int_rn(float a) { return emulator::saturated<int>(rint(a), -2147483648.0, 2147483647.0); }
inline unsigned __float2uint_rn(float a) { return emulator::saturated<unsigned>(rint(a), 0, 4294967295.0); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t(b) << 32) | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i), byte = (bytes >> (8 * (choice & 7))) & 0xff;
    result |= (choice & 8 ? byte >> 7 ? 0xffu : 0u : byte) << (8 * i);
  }
  return result;
}

// Of a number and a NaN, the number.
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A first, B second) {
  const std::common_type_t<A, B> a = first, b = second;
  return b < a || a != a ? b : a;
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A first, B second) {
  const std::common_type_t<A, B> a = first, b = second;
  return a < b || a != a ? b : a;
}
