// The largest pixels of one image, on one execution block: a radix select on the bits of float32 values.
#pragma once

#include <cstdint>

#include "block.h"
#include "fastmix.h"
#include "ordered.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits, kGroup = 32, kGroups = kBins / kGroup;

// Adds to a number that several members count in; found by the type of the block.
FASTMIX_HD void increase(const SerialBlock&, int& number, int by) { number += by; }

template <class Block>
class TopSelection {
 public:
  static constexpr int kMemoryBytes = (kBins + kGroups) * 4;

  FASTMIX_HD TopSelection(const Block& block, const SpectralMask& call, int64_t sample, void* memory)
      : block_(block),
        pixels_(static_cast<int>(call.height * call.width)),
        image_(call.field + sample * call.height * call.width),
        out_(call.out + sample * call.height * call.width),
        count_(call.count[sample]),
        bins_(static_cast<int*>(memory)),
        groups_(bins_ + kBins) {}

  FASTMIX_HD void write() {
    if (count_ <= 0 || count_ >= pixels_) return fill(count_ > 0);
    int wanted = static_cast<int>(count_), equal = pixels_;
    uint32_t edge = 0;
    int shift = 32;
    while (shift > 0) {
      const int bits = shift < kDigitBits ? shift : kDigitBits;
      shift -= bits;
      count_digits(edge, shift, bits);
      edge = edge << bits | find_digit(wanted, equal);
      block_.sync();
    }
    const int last = wanted == equal ? pixels_ : last_of(edge, wanted);
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      const uint32_t key = ordered(image_[i]);
      out_[i] = key > edge || (key == edge && i <= last) ? 1.f : 0.f;
    }
  }

 private:
  FASTMIX_HD void fill(bool ones) {
    for (int i = block_.rank(); i < pixels_; i += block_.size()) out_[i] = ones ? 1.f : 0.f;
  }

  // How often each next digit follows the digits of `edge`. Pixels that a member meets one after another often have
  // the same: they are counted together.
  FASTMIX_HD void count_digits(uint32_t edge, int shift, int bits) {
    for (int i = block_.rank(); i < kBins; i += block_.size()) bins_[i] = 0;
    block_.sync();
    int digit = 0, run = 0;
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      const uint32_t key = ordered(image_[i]) >> shift;
      if (shift + bits < 32 && key >> bits != edge) continue;
      const int next = static_cast<int>(key & ((1u << bits) - 1));
      if (next != digit && run > 0) {
        increase(block_, bins_[digit], run);
        run = 0;
      }
      digit = next, ++run;
    }
    if (run > 0) increase(block_, bins_[digit], run);
    block_.sync();
  }

  // The digit of the last pixel wanted, counted from the largest. `wanted` becomes how many are wanted of the pixels
  // with this digit, `equal` how many there are.
  FASTMIX_HD uint32_t find_digit(int& wanted, int& equal) {
    for (int g = block_.rank(); g < kGroups; g += block_.size()) {
      int sum = 0;
      for (int i = 0; i < kGroup; ++i) sum += bins_[g * kGroup + (i + g) % kGroup];  // side by side, not in one bank
      groups_[g] = sum;
    }
    block_.sync();
    int group = kGroups - 1;
    for (; groups_[group] < wanted; --group) wanted -= groups_[group];
    int digit = group * kGroup + kGroup - 1;
    for (; bins_[digit] < wanted; --digit) wanted -= bins_[digit];
    equal = bins_[digit];
    return static_cast<uint32_t>(digit);
  }

  // Place of pixel number `wanted` of those on the edge.
  FASTMIX_HD int last_of(uint32_t edge, int wanted) {
    int begin = 0, end = pixels_;  // it is in [begin, end)
    while (end - begin > 1) {
      const int middle = begin + (end - begin) / 2;
      int here = 0;
      for (int i = begin + block_.rank(); i < middle; i += block_.size()) here += ordered(image_[i]) == edge;
      here = block_.sum(here);
      if (here >= wanted) {
        end = middle;
      } else {
        wanted -= here;
        begin = middle;
      }
    }
    return begin;
  }

  const Block& block_;
  const int pixels_;
  const float* image_;
  float* out_;
  const int64_t count_;
  int *bins_, *groups_;
};

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
