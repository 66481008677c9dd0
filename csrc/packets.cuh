// How a thread accesses an image: by packets of V values, whose type is known to the compiler, or value by value.
#pragma once

#include <algorithm>

#include "dtype.h"
#include "launch.h"

namespace fastmix {
namespace cuda {

constexpr int kPacketBytes = 16;  // what one instruction moves

// The value itself. What is computed from it in a loop is not kept in registers from one round to the next.
__device__ __forceinline__ float fresh(float value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+f"(value));
#endif
  return value;
}

__device__ __forceinline__ int fresh(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

struct Image {
  const void* data;
  DType type;
};

// V neighbouring values of T, moved as a whole.
template <class T, int V>
struct Vector {
  static constexpr int kWords = V * sizeof(T) / 4;
  static constexpr bool kFinite = sizeof(T) == 1;  // whether every value is
  struct Raw {
    uint32_t words[kWords];
  };

  template <class Lane>
  static __device__ __forceinline__ Raw load(const Image& image, int64_t offset, const Lane&) {
    const T* from = static_cast<const T*>(image.data) + offset;
    if constexpr (kWords == 4) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
      return {v.x, v.y, v.z, v.w};
    } else if constexpr (kWords == 2) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
      return {v.x, v.y};
    } else {
      return {__ldg(reinterpret_cast<const unsigned*>(from))};
    }
  }

  // Results are not read again here: they need not stay in the cache.
  template <class Lane>
  static __device__ __forceinline__ void store(const Image& image, int64_t offset, const Lane&, const Raw& raw) {
    T* to = static_cast<T*>(const_cast<void*>(image.data)) + offset;
    const uint32_t* v = raw.words;
    if constexpr (kWords == 4)
      __stcs(reinterpret_cast<uint4*>(to), make_uint4(v[0], v[1], v[2], v[3]));
    else if constexpr (kWords == 2)
      __stcs(reinterpret_cast<uint2*>(to), make_uint2(v[0], v[1]));
    else
      __stcs(reinterpret_cast<unsigned*>(to), v[0]);
  }

  // Values j .. j + 3, j a multiple of 4.
  static __device__ __forceinline__ void widen(const Image&, const Raw& raw, int j, float (&v)[4]) {
    fastmix::widen(static_cast<const T*>(nullptr), raw.words + j / 4 * sizeof(T), v);
  }

  static __device__ __forceinline__ void narrow(const Image&, Raw& raw, int j, const float (&v)[4]) {
    fastmix::narrow(static_cast<const T*>(nullptr), v, raw.words + j / 4 * sizeof(T));
  }
};

// Four values of any type, each as far from an offset as the lane says: a step apart, so that neighbouring threads
// access neighbouring values, or wherever a plan takes them from.
struct Singles {
  static constexpr bool kFinite = false;
  struct Raw {
    uint32_t words[4];
  };

  template <class Lane>
  static __device__ __forceinline__ Raw load(const Image& image, int64_t offset, const Lane& lane) {
    switch (size_of(image.type)) {
      case 1:
        return load_as<uint8_t>(image, offset, lane);
      case 2:
        return load_as<uint16_t>(image, offset, lane);
      default:
        return load_as<uint32_t>(image, offset, lane);
    }
  }

  template <class Lane>
  static __device__ __forceinline__ void store(const Image& image, int64_t offset, const Lane& lane, const Raw& raw) {
    switch (size_of(image.type)) {
      case 1:
        return store_as<uint8_t>(image, offset, lane, raw);
      case 2:
        return store_as<uint16_t>(image, offset, lane, raw);
      default:
        return store_as<uint32_t>(image, offset, lane, raw);
    }
  }

  static __device__ __forceinline__ void widen(const Image& image, const Raw& raw, int, float (&v)[4]) {
    switch (image.type) {
      case DType::u8:
        return widen_as<uint8_t>(raw, v);
      case DType::f16:
        return widen_as<Half>(raw, v);
      case DType::bf16:
        return widen_as<BFloat16>(raw, v);
      default:
        return widen_as<float>(raw, v);
    }
  }

  static __device__ __forceinline__ void narrow(const Image& image, Raw& raw, int, const float (&v)[4]) {
    switch (image.type) {
      case DType::u8:
        return narrow_as<uint8_t>(v, raw);
      case DType::f16:
        return narrow_as<Half>(v, raw);
      case DType::bf16:
        return narrow_as<BFloat16>(v, raw);
      default:
        return narrow_as<float>(v, raw);
    }
  }

 private:
  template <class T>
  static __device__ __forceinline__ void widen_as(const Raw& raw, float (&v)[4]) {
    constexpr int kBits = 8 * sizeof(T), kPerWord = 4 / sizeof(T);
    uint32_t words[sizeof(T)] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) words[k / kPerWord] |= raw.words[k] << k % kPerWord * kBits;
    fastmix::widen(static_cast<const T*>(nullptr), words, v);
  }

  template <class T>
  static __device__ __forceinline__ void narrow_as(const float (&v)[4], Raw& raw) {
    constexpr int kBits = 8 * sizeof(T), kPerWord = 4 / sizeof(T);
    uint32_t words[sizeof(T)];
    fastmix::narrow(static_cast<const T*>(nullptr), v, words);
#pragma unroll
    for (int k = 0; k < 4; ++k) raw.words[k] = words[k / kPerWord] >> k % kPerWord * kBits;
  }

  template <class Word, class Lane>
  static __device__ __forceinline__ Raw load_as(const Image& image, int64_t offset, const Lane& lane) {
    const Word* from = static_cast<const Word*>(image.data) + offset;
    const auto distance = lane.distances();
    Raw raw;
#pragma unroll
    for (int k = 0; k < 4; ++k) raw.words[k] = lane.has(k) ? __ldg(from + distance(k)) : 0;
    return raw;
  }

  template <class Word, class Lane>
  static __device__ __forceinline__ void store_as(const Image& image, int64_t offset, const Lane& lane,
                                                  const Raw& raw) {
    Word* to = static_cast<Word*>(const_cast<void*>(image.data)) + offset;
    const auto distance = lane.distances();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (lane.has(k)) __stcs(to + distance(k), static_cast<Word>(raw.words[k]));
  }
};

// How the two image tensors of a call are accessed, equally many values of each at a time.
template <class A, class B>
struct Pair {
  static constexpr int kWidth = kPacketBytes / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));
  static constexpr int kDraws = kWidth > 8 ? 1 : 2;  // that a thread has registers for
  static constexpr int kBlocks = 4;                  // of kThreads on a multiprocessor, at least
  static constexpr bool kStrided = false;
  using X = Vector<A, kWidth>;
  using Y = Vector<B, kWidth>;
  static bool matches(DType x, DType y) { return x == kTag<A> && y == kTag<B>; }
};

struct AnyPair {
  static constexpr int kWidth = 4, kDraws = 1, kBlocks = 3;
  static constexpr bool kStrided = true;
  using X = Singles;
  using Y = Singles;
};

// The pairs that have kernels of their own. All others, and images that are not aligned, are accessed value by value.
template <class... P>
struct Pairs {};
using MixPairs =
    Pairs<Pair<uint8_t, uint8_t>, Pair<uint8_t, Half>, Pair<uint8_t, BFloat16>, Pair<uint8_t, float>, Pair<Half, Half>,
          Pair<BFloat16, BFloat16>, Pair<float, Half>, Pair<float, BFloat16>, Pair<float, float>>;
using GradPairs =
    Pairs<Pair<Half, Half>, Pair<BFloat16, BFloat16>, Pair<Half, float>, Pair<BFloat16, float>, Pair<float, float>>;
using WeightGradPairs = Pairs<Pair<uint8_t, Half>, Pair<uint8_t, BFloat16>, Pair<uint8_t, float>, Pair<Half, Half>,
                              Pair<BFloat16, BFloat16>, Pair<float, Half>, Pair<float, BFloat16>, Pair<float, float>>;

inline int packet_width(DType x, DType y) { return kPacketBytes / std::max(size_of(x), size_of(y)); }

// Whether each row of `width` values consists of aligned packets.
inline bool fits_packets(int64_t width, const Image& x, const Image& y) {
  const int packet = packet_width(x.type, y.type);
  const auto aligned = [&](const Image& image) {
    return reinterpret_cast<uintptr_t>(image.data) % (packet * size_of(image.type)) == 0;
  };
  return width % packet == 0 && aligned(x) && aligned(y);
}

// Calls f(P()) with the way to access images of these types.
template <class... P, class F>
int with_pair(Pairs<P...>, const Image& x, const Image& y, bool packets, F f) {
  int error = cudaSuccess;
  const bool found = packets && ((P::matches(x.type, y.type) && (error = f(P()), true)) || ...);
  return found ? error : f(AnyPair());
}

}  // namespace cuda
}  // namespace fastmix
