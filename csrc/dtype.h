// Pixel types and their conversion from and to float: on the host one value at a time, in CUDA kernels as packed words.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastmix.h"

#ifdef __CUDACC__
#define FASTMIX_HD __host__ __device__ __forceinline__
#else
#define FASTMIX_HD inline
#endif

namespace fastmix {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr DType kTag = DType::f32;
template <>
constexpr DType kTag<uint8_t> = DType::u8;
template <>
constexpr DType kTag<Half> = DType::f16;
template <>
constexpr DType kTag<BFloat16> = DType::bf16;

FASTMIX_HD int size_of(DType type) {
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

template <class To, class From>
FASTMIX_HD To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

FASTMIX_HD float widen_bf16(uint16_t v) { return bits<float>(static_cast<uint32_t>(v) << 16); }

FASTMIX_HD uint16_t narrow_bf16(float v) {
  const uint32_t u = bits<uint32_t>(v);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
}

FASTMIX_HD float widen_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, body = h & 0x7fff;
  if (body >= 0x7c00) return bits<float>(sign | 0x7f800000 | (body & 0x3ff) << 13);
  // The exponent is rebased by a multiplication, which also normalises subnormals.
  return bits<float>(sign | bits<uint32_t>(bits<float>(body << 13) * 0x1p112f));
}

FASTMIX_HD uint16_t narrow_f16(float v) {
  const uint32_t u = bits<uint32_t>(v), sign = u >> 16 & 0x8000, body = u & 0x7fffffff;
  if (body > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (body >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (body < 0x38800000)  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
    return static_cast<uint16_t>(sign | (bits<uint32_t>(bits<float>(body) + 0.5f) - 0x3f000000));
  return static_cast<uint16_t>(sign | (body - 0x38000000 + 0xfff + (body >> 13 & 1)) >> 13);
}

// The byte nearest to v in the low bits of the result: half to even, saturated, 0 for NaN.
FASTMIX_HD uint32_t round_u8(float v) {
  const float clamped = v > 0.f ? (v < 255.f ? v : 255.f) : 0.f;
  return bits<uint32_t>(clamped + 0x1p23f);  // the sum has no fraction bits left
}

// Four values of T as they lie in memory, in sizeof(T) words: `widen` makes floats of them, `narrow` rounds each once.
FASTMIX_HD void widen(const uint8_t*, const uint32_t* words, float* v) {
#ifdef __CUDA_ARCH__
  // A byte under the upper bytes of 2^23 is 2^23 + byte: cheaper than a conversion instruction.
  v[0] = __uint_as_float(__byte_perm(words[0], 0x4b000000, 0x7650)) - 0x1p23f;
  v[1] = __uint_as_float(__byte_perm(words[0], 0x4b000000, 0x7651)) - 0x1p23f;
  v[2] = __uint_as_float(__byte_perm(words[0], 0x4b000000, 0x7652)) - 0x1p23f;
  v[3] = __uint_as_float(__byte_perm(words[0], 0x4b000000, 0x7653)) - 0x1p23f;
#else
  for (int i = 0; i < 4; ++i) v[i] = static_cast<float>(words[0] >> 8 * i & 0xff);
#endif
}

FASTMIX_HD void narrow(const uint8_t*, const float* v, uint32_t* words) {
#ifdef __CUDA_ARCH__
  const uint32_t low = __byte_perm(round_u8(v[0]), round_u8(v[1]), 0x0040);
  words[0] = __byte_perm(low, __byte_perm(round_u8(v[2]), round_u8(v[3]), 0x0040), 0x5410);
#else
  words[0] = 0;
  for (int i = 0; i < 4; ++i) words[0] |= (round_u8(v[i]) & 0xff) << 8 * i;
#endif
}

FASTMIX_HD void widen(const Half*, const uint32_t* words, float* v) {
  for (int i = 0; i < 2; ++i) {
#ifdef __CUDA_ARCH__
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(v[2 * i]), "=f"(v[2 * i + 1])
        : "r"(words[i]));
#else
    v[2 * i] = widen_f16(static_cast<uint16_t>(words[i]));
    v[2 * i + 1] = widen_f16(static_cast<uint16_t>(words[i] >> 16));
#endif
  }
}

FASTMIX_HD void narrow(const Half*, const float* v, uint32_t* words) {
  for (int i = 0; i < 2; ++i) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(v[2 * i + 1]), "f"(v[2 * i]));
#else
    words[i] = narrow_f16(v[2 * i]) | static_cast<uint32_t>(narrow_f16(v[2 * i + 1])) << 16;
#endif
  }
}

FASTMIX_HD void widen(const BFloat16*, const uint32_t* words, float* v) {
  for (int i = 0; i < 2; ++i) {
    v[2 * i] = bits<float>(words[i] << 16);
    v[2 * i + 1] = bits<float>(words[i] & 0xffff0000);
  }
}

FASTMIX_HD void narrow(const BFloat16*, const float* v, uint32_t* words) {
  for (int i = 0; i < 2; ++i) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(v[2 * i + 1]), "f"(v[2 * i]));
#else
    words[i] = narrow_bf16(v[2 * i]) | static_cast<uint32_t>(narrow_bf16(v[2 * i + 1])) << 16;
#endif
  }
}

FASTMIX_HD void widen(const float*, const uint32_t* words, float* v) {
  for (int i = 0; i < 4; ++i) v[i] = bits<float>(words[i]);
}

FASTMIX_HD void narrow(const float*, const float* v, uint32_t* words) {
  for (int i = 0; i < 4; ++i) words[i] = bits<uint32_t>(v[i]);
}

}  // namespace fastmix
