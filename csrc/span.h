// Spans of pixel values: widened to the accumulation type a tile at a time, narrowed with one rounding.
// Everything has internal linkage: this header is compiled once per instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtype.h"
#include "fastmix.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int64_t kTile = 512;  // elements: a handful of tiles stay in the first-level cache

inline void widen_f16(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = fastmix::widen_f16(from[i]);
}

inline void narrow_f16(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) to[i] = fastmix::narrow_f16(from[i]);
}

inline const void* at(const void* base, DType type, int64_t offset) {
  return static_cast<const char*>(base) + offset * size_of(type);
}

inline void* at(void* base, DType type, int64_t offset) { return static_cast<char*>(base) + offset * size_of(type); }

// `count` <= kTile values from `base + offset` as Acc: in place where they are stored so, else widened into `tile`.
inline const float* load(DType type, const void* base, int64_t offset, int64_t count, float* tile) {
  const void* from = at(base, type, offset);
  switch (type) {
    case DType::u8: {
      const uint8_t* __restrict v = static_cast<const uint8_t*>(from);
      for (int64_t i = 0; i < count; ++i) tile[i] = static_cast<float>(v[i]);
      return tile;
    }
    case DType::f16:
      widen_f16(static_cast<const uint16_t*>(from), tile, count);
      return tile;
    case DType::bf16: {
      const uint16_t* __restrict v = static_cast<const uint16_t*>(from);
      for (int64_t i = 0; i < count; ++i) tile[i] = widen_bf16(v[i]);
      return tile;
    }
    default:
      return static_cast<const float*>(from);
  }
}

inline const double* load(DType, const void* base, int64_t offset, int64_t, double*) {
  return static_cast<const double*>(base) + offset;
}

// Where a tile of results is to be computed: in the output itself when no rounding is needed.
inline float* place(DType type, void* base, int64_t offset, float* tile) {
  return type == DType::f32 ? static_cast<float*>(base) + offset : tile;
}

inline double* place(DType, void* base, int64_t offset, double*) { return static_cast<double*>(base) + offset; }

// Rounds a tile computed outside the output into it; nothing to do where `place` gave the output.
inline void store(DType type, void* base, int64_t offset, int64_t count, const float* tile) {
  void* to = at(base, type, offset);
  switch (type) {
    case DType::u8: {
      uint8_t* __restrict v = static_cast<uint8_t*>(to);
      for (int64_t i = 0; i < count; ++i) v[i] = static_cast<uint8_t>(round_u8(tile[i]));
      return;
    }
    case DType::f16:
      return narrow_f16(tile, static_cast<uint16_t*>(to), count);
    case DType::bf16: {
      uint16_t* __restrict v = static_cast<uint16_t*>(to);
      for (int64_t i = 0; i < count; ++i) v[i] = narrow_bf16(tile[i]);
      return;
    }
    default:
      return;
  }
}

inline void store(DType, void*, int64_t, int64_t, const double*) {}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
