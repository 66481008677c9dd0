// Interpolation along one axis, the same on host and device: which inputs an output reads and how much of each.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTMIX_HD __host__ __device__ __forceinline__
#else
#define FASTMIX_HD inline
#endif

namespace fastmix {

enum Mode : int { kNearest, kBilinear, kBicubic };

// Output i of `size` reads inputs first .. first + count - 1 of `source`, clamped to [0, source - 1].
template <class Acc>
struct Taps {
  int64_t first;
  int count;
  Acc weight[4];
};

// Keys' cubic convolution with a = -0.75 at a distance of at most 1, and from 1 to 2.
template <class Acc>
FASTMIX_HD Acc cubic_near(Acc d) {
  return (Acc(1.25) * d - Acc(2.25)) * d * d + 1;
}

template <class Acc>
FASTMIX_HD Acc cubic_far(Acc d) {
  return ((Acc(-0.75) * d + Acc(3.75)) * d - 6) * d + 3;
}

// Coordinates are exact: output i lies at ((2 i + 1) source - size) / (2 size), as align_corners=False means.
template <class Acc>
FASTMIX_HD Taps<Acc> taps(int mode, int64_t i, int64_t size, int64_t source) {
  if (mode == kNearest) return {i * source / size, 1, {1, 0, 0, 0}};
  int64_t numerator = (2 * i + 1) * source - size;
  if (mode == kBilinear && numerator < 0) numerator = 0;
  const int64_t whole = 2 * size;
  const int64_t first = numerator >= 0 ? numerator / whole : -((whole - 1 - numerator) / whole);
  const Acc t = static_cast<Acc>(numerator - first * whole) / static_cast<Acc>(whole);
  if (mode == kBilinear) return {first, 2, {1 - t, t, 0, 0}};
  return {first - 1, 4, {cubic_far(t + 1), cubic_near(t), cubic_near(1 - t), cubic_far(2 - t)}};
}

}  // namespace fastmix
