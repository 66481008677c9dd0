// Spans of pixel values: widened to the accumulation type a tile at a time, narrowed with one rounding.
// Everything has internal linkage: this header is compiled once per instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fastmix.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int64_t kTile = 512;  // elements: a handful of tiles stay in the first-level cache

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float widen_bf16(uint16_t v) { return bits<float>(static_cast<uint32_t>(v) << 16); }

inline uint16_t narrow_bf16(float v) {
  const uint32_t u = bits<uint32_t>(v);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
}

inline float widen_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, body = h & 0x7fff;
  if (body >= 0x7c00) return bits<float>(sign | 0x7f800000 | (body & 0x3ff) << 13);
  // The exponent is rebased by a multiplication, which also normalises subnormals.
  return bits<float>(sign | bits<uint32_t>(bits<float>(body << 13) * 0x1p112f));
}

inline uint16_t narrow_f16(float v) {
  const uint32_t u = bits<uint32_t>(v), sign = u >> 16 & 0x8000, body = u & 0x7fffffff;
  if (body > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (body >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (body < 0x38800000)  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
    return static_cast<uint16_t>(sign | (bits<uint32_t>(bits<float>(body) + 0.5f) - 0x3f000000));
  return static_cast<uint16_t>(sign | (body - 0x38000000 + 0xfff + (body >> 13 & 1)) >> 13);
}

inline void widen_f16(const uint16_t* from, float* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = widen_f16(from[i]);
}

inline void narrow_f16(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) to[i] = narrow_f16(from[i]);
}

inline int64_t size_of(DType type) {
  switch (type) {
    case DType::u8:
      return 1;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f32:
      return 4;
    default:
      return 8;
  }
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
      for (int64_t i = 0; i < count; ++i) {
        const float clamped = tile[i] > 0.f ? (tile[i] < 255.f ? tile[i] : 255.f) : 0.f;
        // Adding 2^23 rounds half to even; the integer is then in the low bits.
        v[i] = static_cast<uint8_t>(bits<uint32_t>(clamped + 0x1p23f));
      }
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
