// exp and sigmoid that compilers vectorise.
#pragma once

#include <cmath>

#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// a * b + c, in one rounding where the hardware has it.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) to about 1 ulp: x = k ln2 + r, |r| <= ln2 / 2, a polynomial in r, and k added to the exponent in two halves so
// that subnormal results come out. NaN stays NaN; the clamps send the rest to 0 or infinity.
inline float exp_(float x) {
  const float shifter = 0x1.8p23f;
  float c = x > 104.f ? 104.f : x;
  c = c < -110.f ? -110.f : c;
  const float k = (c * 0x1.715476p0f + shifter) - shifter;
  const float r = multiply_add(k, -0x1.7f7d1cp-20f, multiply_add(k, -0x1.62e4p-1f, c));  // ln2 in two parts
  float p = 0x1.6850e4p-10f;
  p = multiply_add(p, r, 0x1.123bccp-7f);
  p = multiply_add(p, r, 0x1.555b98p-5f);
  p = multiply_add(p, r, 0x1.55548ep-3f);
  p = multiply_add(p, r, 0x1.fffff8p-2f);
  p = multiply_add(p * r, r, r) + 1.f;
  const int32_t n = static_cast<int32_t>(k), half = n >> 1;
  return p * bits<float>((half + 127) << 23) * bits<float>((n - half + 127) << 23);
}

inline double exp_(double x) { return std::exp(x); }

// The same for x <= 0 in two thirds of the instructions: what is below 2^-126 becomes 0.
inline float exp_down(float x) {
  const float shifter = 0x1.8p23f;
  const float c = x < -88.f ? -88.f : x;
  const float shifted = multiply_add(c, 0x1.715476p0f, shifter), k = shifted - shifter;
  const float r = multiply_add(k, -0x1.7f7d1cp-20f, multiply_add(k, -0x1.62e4p-1f, c));
  float p = 0x1.6850e4p-10f;
  p = multiply_add(p, r, 0x1.123bccp-7f);
  p = multiply_add(p, r, 0x1.555b98p-5f);
  p = multiply_add(p, r, 0x1.55548ep-3f);
  p = multiply_add(p, r, 0x1.fffff8p-2f);
  p = multiply_add(p * r, r, r) + 1.f;
  return p * bits<float>((bits<uint32_t>(shifted) + 127u) << 23);  // k is in the low bits of `shifted`
}

inline double exp_down(double x) { return std::exp(x); }

template <class Acc>
inline Acc sigmoid(Acc x) {
  return 1 / (1 + exp_(-x));
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
