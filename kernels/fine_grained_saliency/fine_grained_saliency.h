// The arithmetic of `fine_grained_saliency`, host and device. README.md says what it computes.
#pragma once

#include <cstdint>

#include "block.h"
#include "dtype.h"
#include "fastmix.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kSurrounds = 6, kFarthest = 112;
constexpr int kSums = kSurrounds * 255 + 1;  // values that a sum of differences can have

// Half the side of a square: 12, 24, 48, 28, 56, 112.
FASTMIX_HD int reach_of(int i) { return (i < 3 ? 12 : 28) << i % 3; }

// The part of a side that the square around a pixel covers.
struct Stretch {
  int64_t begin, end;

  FASTMIX_HD Stretch(int64_t at, int64_t reach, int64_t side)
      : begin(at - reach + 1 > 0 ? at - reach + 1 : 0), end(at + reach + 1 < side ? at + reach + 1 : side) {}
  FASTMIX_HD int64_t size() const { return end - begin; }
};

// Of pixel -1 or `side`: the neighbour of the edge within the image.
FASTMIX_HD int64_t mirrored(int64_t at, int64_t side) {
  const int64_t inside = at < 0 ? 1 : at >= side ? side - 2 : at;
  return inside < 0 || inside >= side ? 0 : inside;
}

// Rounded half to even, saturated, 0 for NaN.
FASTMIX_HD int32_t byte_of(float v) { return static_cast<int32_t>(round_u8(v) & 0xff); }

// The factor that takes half the range of an image to 255; 0 if that is no number.
FASTMIX_HD float stretch_step(float low, float high) {
  const float step = 255.f / (high - low);
  return step > 0 && step <= 3.402823466e38f ? step : 0.f;
}

FASTMIX_HD int32_t grey_of(int32_t blue, int32_t green, int32_t red) {
  return (blue * 3735 + green * 19235 + red * 9798 + (1 << 14)) >> 15;
}

// A sum of differences in 255ths of the largest one, rounded down.
FASTMIX_HD int32_t stretched_sum(int32_t sum, int32_t largest) {
  if (largest == 0) return 0;
  return static_cast<int32_t>(255. * static_cast<double>(static_cast<float>(sum) / static_cast<float>(largest)));
}

// Where both parts are large the byte overflows, as it does in OpenCV's binaries.
FASTMIX_HD float saliency_of(int32_t parts) { return static_cast<float>(parts & 255) * (1.f / 255.f); }

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
