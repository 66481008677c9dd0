// The box of one saliency map, on one execution block.
#pragma once

#include <cmath>
#include <cstdint>

#include "block.h"
#include "dtype.h"
#include "fastmix.h"
#include "ordered.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// What is no number, or infinite, counts as 0.
FASTMIX_HD float finite_or_zero(float v) { return v - v == 0 ? v : 0.f; }

template <class Block>
class BoxFinder {
 public:
  // `sums`: with windows, (height + 1) * (width + 1) values.
  FASTMIX_HD BoxFinder(const Block& block, const SaliencyBox& call, int64_t sample, double* sums)
      : block_(block),
        call_(call),
        saliency_(call.saliency + sample * call.height * call.width),
        which_(call.per_sample ? sample : 0),
        sums_(sums),
        box_(call.box + 4 * sample) {}

  FASTMIX_HD void find() const {
    if (call_.window)
      find_window();
    else
      find_peak();
  }

 private:
  FASTMIX_HD void find_peak() const {
    const int cells = call_.height * call_.width;
    const int at = first_best(cells, [&](int i) { return finite_or_zero(saliency_[i]); });
    const double area = 1 - call_.lam[which_], side = std::sqrt(area > 0 ? area < 1 ? area : 1. : 0.);
    if (block_.rank() == 0) {
      around(at / call_.width, call_.height, call_.image_height, side, box_, box_ + 2);
      around(at % call_.width, call_.width, call_.image_width, side, box_ + 1, box_ + 3);
    }
  }

  // The middle of a cell, and half the side before and behind it.
  FASTMIX_HD static void around(int cell, int cells, int pixels, double side, int32_t* begin, int32_t* end) {
    const int64_t middle = (2 * int64_t(cell) + 1) * pixels / (2 * int64_t(cells));
    const int64_t half = static_cast<int64_t>(pixels * side) / 2;
    *begin = static_cast<int32_t>(middle > half ? middle - half : 0);
    *end = static_cast<int32_t>(middle + half < pixels ? middle + half : pixels);
  }

  FASTMIX_HD void find_window() const {
    const int height = limited(call_.window[2 * which_], call_.height);
    const int width = limited(call_.window[2 * which_ + 1], call_.width);
    const int columns = call_.width - width + 1, stride = call_.width + 1;
    integrate();
    const int at = first_best((call_.height - height + 1) * columns, [&](int i) {
      const double* corner = sums_ + i / columns * stride + i % columns;
      return (corner[height * stride + width] - corner[width]) - (corner[height * stride] - corner[0]);
    });
    if (block_.rank() == 0) {
      box_[0] = scaled(at / columns, call_.height, call_.image_height);
      box_[1] = scaled(at % columns, call_.width, call_.image_width);
      box_[2] = scaled(at / columns + height, call_.height, call_.image_height);
      box_[3] = scaled(at % columns + width, call_.width, call_.image_width);
    }
  }

  FASTMIX_HD static int limited(int side, int most) { return side < 0 ? 0 : side < most ? side : most; }

  FASTMIX_HD static int32_t scaled(int cell, int cells, int pixels) {
    return static_cast<int32_t>(int64_t(cell) * pixels / cells);
  }

  // Sums of all cells above and to the left: along the rows, then down the columns.
  FASTMIX_HD void integrate() const {
    const int stride = call_.width + 1;
    for (int y = block_.rank(); y < call_.height; y += block_.size()) {
      double sum = 0, *row = sums_ + (y + 1) * stride;
      row[0] = 0;
      for (int x = 0; x < call_.width; ++x)
        row[x + 1] = sum += static_cast<double>(finite_or_zero(saliency_[y * call_.width + x]));
    }
    block_.sync();
    for (int x = block_.rank(); x < stride; x += block_.size()) {
      double sum = sums_[x] = 0;
      for (int y = 1; y <= call_.height; ++y) sums_[y * stride + x] = sum += sums_[y * stride + x];
    }
    block_.sync();
  }

  // The first of `count` places with the largest value, or the smallest one.
  template <class Value>
  FASTMIX_HD int first_best(int count, Value value) const {
    using Key = decltype(ordered(value(0)));
    const Key worst = ~Key(0), flip = call_.smallest ? 0 : worst;
    Key best = worst;
    for (int i = block_.rank(); i < count; i += block_.size()) {
      const Key key = ordered(value(i)) ^ flip;
      best = key < best ? key : best;
    }
    best = block_.min(best);
    int at = count;
    for (int i = block_.rank(); i < count && at == count; i += block_.size())
      if ((ordered(value(i)) ^ flip) == best) at = i;
    return block_.min(at);
  }

  const Block& block_;
  const SaliencyBox& call_;
  const float* saliency_;
  const int64_t which_;
  double* sums_;
  int32_t* box_;
};

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
