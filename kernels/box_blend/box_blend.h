// Which part of the partner fills a box, and how it is resized along one axis; the same on host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastmix {

enum Resize : int { kResizeNearest, kResizeBilinear, kResizeAligned };

// Part [begin, end) of an axis, clipped to the axis.
struct Stretch {
  int64_t begin, end;

  FASTMIX_HD Stretch() : begin(0), end(0) {}
  FASTMIX_HD Stretch(int64_t first, int64_t last, int64_t size) : begin(clip(first, size)), end(clip(last, size)) {
    if (end < begin) end = begin;
  }

  FASTMIX_HD int64_t size() const { return end - begin; }
  FASTMIX_HD bool has(int64_t i) const { return begin <= i && i < end; }

 private:
  static FASTMIX_HD int64_t clip(int64_t v, int64_t size) { return v < 0 ? 0 : v < size ? v : size; }
};

// The box of one output and the region that fills it. A box that nothing fills is empty.
struct Placement {
  Stretch y, x, from_y, from_x;

  FASTMIX_HD Placement() {}
  FASTMIX_HD Placement(const int32_t* box, const int32_t* source, int64_t height, int64_t width)
      : y(box[0], box[2], height),
        x(box[1], box[3], width),
        from_y(source[0], source[2], height),
        from_x(source[1], source[3], width) {
    if (y.size() * x.size() * from_y.size() * from_x.size() == 0) y = x = Stretch();
  }
};

// How `size` values are made of `source` > 0 others: value i lies at `position(i) / one` among them, exactly, or, by
// "nearest", is `nearest(i)`.
struct Axis {
  int64_t size, source, step, start, one;
  float scale;
  bool nearest_mode;

  FASTMIX_HD Axis(int resize, int64_t size, int64_t source)
      : size(size),
        source(source),
        step(resize == kResizeAligned ? source - 1 : 2 * source),
        start(resize == kResizeAligned ? 0 : source - size),
        one(resize == kResizeAligned ? (size > 1 ? size - 1 : 1) : 2 * size),
        scale(static_cast<float>(source) / static_cast<float>(size)),
        nearest_mode(resize == kResizeNearest) {}

  // In float32, as F.interpolate has it.
  FASTMIX_HD int64_t nearest(int64_t i) const {
    const int64_t at = static_cast<int64_t>(static_cast<float>(i) * scale);
    return at < source ? at : source - 1;
  }

  FASTMIX_HD int64_t position(int64_t i) const {
    const int64_t at = i * step + start, last = (source - 1) * one;
    return at < 0 ? 0 : at < last ? at : last;
  }

  // The values made of input u are [first_of(u), end_of(u)).
  FASTMIX_HD int64_t first_of(int64_t u) const {
    if (!nearest_mode) {
      const int64_t before = (u - 1) * one - start;
      return u == 0 || step == 0 || before < 0 ? 0 : bound(before / step + 1);
    }
    if (u >= source) return size;
    int64_t i = bound(u * size / source);
    while (i > 0 && nearest(i - 1) >= u) --i;
    while (i < size && nearest(i) < u) ++i;
    return i;
  }
  FASTMIX_HD int64_t end_of(int64_t u) const {
    if (nearest_mode) return first_of(u + 1);
    return u >= source - 1 || step == 0 ? size : bound(((u + 1) * one - start + step - 1) / step);
  }

  // Weight of input u in such a value i.
  template <class Acc>
  FASTMIX_HD Acc weight(int64_t i, int64_t u) const {
    if (nearest_mode) return 1;
    const int64_t at = position(i) - u * one, distance = at < 0 ? -at : at;
    return distance < one ? static_cast<Acc>(one - distance) / static_cast<Acc>(one) : Acc(0);
  }

 private:
  FASTMIX_HD int64_t bound(int64_t i) const { return i < 0 ? 0 : i < size ? i : size; }
};

}  // namespace fastmix
