// What `saliency_pool` does with sums, the same on host and device.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FASTMIX_HD __host__ __device__ __forceinline__
#else
#define FASTMIX_HD inline
#endif

namespace fastmix {

// Whether squares in the accumulation type have served: none overflowed, and the roots of those that were lost to
// underflow, below 2^-63 in float and 2^-511 in double, do not matter in a sum as large as this. False for NaN.
FASTMIX_HD bool squares_served(double total, float) { return total > 0x1p-36 && total < 0x1p120; }
FASTMIX_HD bool squares_served(double total, double) { return total > 0x1p-480 && total < 0x1p1000; }

// A power of two, neither zero nor infinite itself, that brings a positive finite `peak` near 1.
FASTMIX_HD float unit_scale(float peak) {
  int exponent;
  frexp(peak, &exponent);
  return ldexp(1.f, exponent > 126 ? -126 : exponent < -126 ? 126 : -exponent);
}

FASTMIX_HD double unit_scale(double peak) {
  int exponent;
  frexp(peak, &exponent);
  return ldexp(1., exponent > 1022 ? -1022 : exponent < -1022 ? 1022 : -exponent);
}

}  // namespace fastmix
