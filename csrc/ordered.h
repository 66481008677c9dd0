// Unsigned numbers in the order of floating values that are numbers; the two zeros are one.
#pragma once

#include "dtype.h"

namespace fastmix {

FASTMIX_HD uint32_t ordered(float value) {
  const uint32_t u = bits<uint32_t>(value + 0.f);
  return u ^ (u >> 31 ? ~uint32_t(0) : uint32_t(1) << 31);
}

FASTMIX_HD uint64_t ordered(double value) {
  const uint64_t u = bits<uint64_t>(value + 0.);
  return u ^ (u >> 63 ? ~uint64_t(0) : uint64_t(1) << 63);
}

}  // namespace fastmix
