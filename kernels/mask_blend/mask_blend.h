// Interpolation along one axis, the same on host and device: which inputs an output reads and how much of each.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastmix {

enum Mode : int { kNearest, kBilinear, kBicubic };

// Output i reads inputs first .. first + count - 1, clamped to those that there are.
template <class Acc, class Int = int64_t>
struct Taps {
  Int first;
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

// Coordinates are exact. Output i of `size` lies at `position / period` among the `source` inputs: nearest rounds
// i source / size down, the others take ((2 i + 1) source - size) / (2 size), as align_corners=False means. It is never
// below -1.
template <class Int>
FASTMIX_HD Int position(int mode, Int i, Int size, Int source) {
  if (mode == kNearest) return i * source;
  const Int at = (2 * i + 1) * source - size;
  return mode == kBilinear && at < 0 ? 0 : at;
}

template <class Int>
FASTMIX_HD Int period(int mode, Int size) {
  return mode == kNearest ? size : 2 * size;
}

// The taps of an output that lies a fraction t of the way from input `whole` to the next.
template <class Acc, class Int>
FASTMIX_HD Taps<Acc, Int> taps_around(int mode, Int whole, Acc t) {
  if (mode == kNearest) return {whole, 1, {1, 0, 0, 0}};
  if (mode == kBilinear) return {whole, 2, {1 - t, t, 0, 0}};
  return {whole - 1, 4, {cubic_far(t + 1), cubic_near(t), cubic_near(1 - t), cubic_far(2 - t)}};
}

template <class Acc>
FASTMIX_HD Taps<Acc> taps(int mode, int64_t i, int64_t size, int64_t source) {
  const int64_t at = position(mode, i, size, source), one = period(mode, size);
  const int64_t whole = (at + one) / one - 1;
  return taps_around(mode, whole, static_cast<Acc>(at - whole * one) / static_cast<Acc>(one));
}

}  // namespace fastmix
