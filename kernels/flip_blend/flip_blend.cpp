// CPU kernel of `flip_blend`: both samples of a pair are read before either is written, a tile at a time, so that the
// result may replace the images.
#include <algorithm>
#include <utility>

#include "fastmix.h"
#include "pages.h"
#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// Weights of the own sample and of the other of its pair.
template <class Acc>
struct Share {
  Acc own, other;

  bool keeps() const { return own == 1 && other == 0; }
  bool takes() const { return own == 0 && other == 1; }
  bool mixes() const { return !keeps() && !takes(); }
};

struct Box {
  int64_t y0, x0, y1, x1;  // rows, and elements of a row

  Box(const Flip& f, int64_t n)
      : y0(clip(f.box[4 * n], f.height)),
        x0(clip(f.box[4 * n + 1], f.width) * f.inner),
        y1(clip(f.box[4 * n + 2], f.height)),
        x1(clip(f.box[4 * n + 3], f.width) * f.inner) {}

  bool crosses(int64_t y) const { return y0 <= y && y < y1 && x0 < x1; }
  static int64_t clip(int64_t v, int64_t size) { return std::max<int64_t>(0, std::min(v, size)); }
};

inline void swap_bytes(char* a, char* b, int64_t count) {
  constexpr int64_t kBlock = 64;
  char kept[kBlock], other[kBlock];
  for (; count >= kBlock; a += kBlock, b += kBlock, count -= kBlock) {
    std::memcpy(kept, a, kBlock), std::memcpy(other, b, kBlock);
    std::memcpy(a, other, kBlock), std::memcpy(b, kept, kBlock);
  }
  std::memcpy(kept, a, count), std::memcpy(a, b, count), std::memcpy(b, kept, count);
}

// The samples `first` and n - 1 - `first`.
template <class Acc>
class Pair {
 public:
  Pair(const Flip& f, int64_t first)
      : f_(f), first_(first), second_(f.n - 1 - first), size_(f.planes * f.height * f.width * f.inner) {
    outside_[0] = share(first_), outside_[1] = share(second_);
    inside_[0] = inside_[1] = {0, 1};
  }

  // Elements [begin, end) of both samples, outside all boxes.
  void blend(int64_t begin, int64_t end) const { mix(begin, end, false, false); }

  // Rows [begin, end) of a plane.
  void rows(int64_t plane, int64_t begin, int64_t end) const {
    const Box a(f_, first_), b(f_, second_);
    const int64_t row = f_.width * f_.inner, base = plane * f_.height * row;
    int64_t done = base + begin * row;  // what lies between two boxed stretches is one segment
    for (int64_t y = begin; y < end; ++y) {
      const bool in_a = a.crosses(y), in_b = b.crosses(y);
      if (!in_a && !in_b) continue;
      const int64_t start = base + y * row;
      // The ends of both boxes in order; those of a box that does not cross the row are those of the one that does.
      const Box &one = in_a ? a : b, &other = in_b ? b : a;
      const int64_t low = std::max(one.x0, other.x0), high = std::min(one.x1, other.x1);
      const int64_t ends[4] = {std::min(one.x0, other.x0), std::min(low, high), std::max(low, high),
                               std::max(one.x1, other.x1)};
      blend(done, start + ends[0]);
      for (int i = 0; i < 3; ++i)
        mix(start + ends[i], start + ends[i + 1], in_a && a.x0 <= ends[i] && ends[i] < a.x1,
            in_b && b.x0 <= ends[i] && ends[i] < b.x1);
      done = start + ends[3];
    }
    blend(done, base + end * row);
  }

 private:
  Share<Acc> share(int64_t n) const {
    if (first_ == second_ || !f_.lam) return {1, 0};
    const int64_t at = f_.lam_per_sample ? n : 0;
    const Acc own = static_cast<const Acc*>(f_.lam)[at];
    return {own, f_.lam_b ? static_cast<const Acc*>(f_.lam_b)[at] : 1 - own};
  }

  void mix(int64_t begin, int64_t end, bool in_a, bool in_b) const {
    if (begin >= end) return;
    Share<Acc> a = in_a ? inside_[0] : outside_[0], b = in_b ? inside_[1] : outside_[1];
    if (f_.adjoint) std::swap(a.other, b.other);
    if (first_ == second_) a = b = {1, 0};
    if (a.mixes() || b.mixes())
      blend_tiles(begin, end, a, b);
    else
      copy(begin, end, a.takes(), b.takes());
  }

  // Each sample from itself or, if it takes, from the other.
  void copy(int64_t begin, int64_t end, bool a_takes, bool b_takes) const {
    const int64_t bytes = (end - begin) * size_of(f_.type);
    char *to_a = out(first_, begin), *to_b = out(second_, begin);
    const char *a = x(first_, begin), *b = x(second_, begin);
    if (f_.x != f_.out) {
      std::memcpy(to_a, a_takes ? b : a, bytes);
      if (first_ != second_) std::memcpy(to_b, b_takes ? a : b, bytes);
    } else if (a_takes && b_takes) {
      swap_bytes(to_a, to_b, bytes);
    } else if (a_takes) {
      std::memcpy(to_a, b, bytes);
    } else if (b_takes) {
      std::memcpy(to_b, a, bytes);
    }
  }

  void blend_tiles(int64_t begin, int64_t end, Share<Acc> a, Share<Acc> b) const {
    const bool in_place = f_.x == f_.out;
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t count = std::min(kTile, end - i), bytes = count * size_of(f_.type);
      alignas(64) char kept_a[kTile * 8], kept_b[kTile * 8];
      alignas(64) Acc wide_a[kTile], wide_b[kTile];
      const void *raw_a = x(first_, i), *raw_b = x(second_, i);
      if (in_place) raw_a = std::memcpy(kept_a, raw_a, bytes), raw_b = std::memcpy(kept_b, raw_b, bytes);
      const Acc *acc_a = load(f_.type, raw_a, 0, count, wide_a), *acc_b = load(f_.type, raw_b, 0, count, wide_b);
      write(first_ * size_ + i, count, a, raw_a, raw_b, acc_a, acc_b);
      write(second_ * size_ + i, count, b, raw_b, raw_a, acc_b, acc_a);
    }
  }

  void write(int64_t offset, int64_t count, Share<Acc> share, const void* raw_own, const void* raw_other,
             const Acc* __restrict own, const Acc* __restrict other) const {
    if (share.keeps() && f_.x == f_.out) return;
    if (!share.mixes()) {
      std::memcpy(at(f_.out, f_.type, offset), share.keeps() ? raw_own : raw_other, count * size_of(f_.type));
      return;
    }
    alignas(64) Acc tile[kTile];
    Acc* __restrict to = place(f_.type, f_.out, offset, tile);
    // What has no weight is not read: it may be infinite.
    if (share.own == 0 && share.other == 0)
      std::fill(to, to + count, Acc(0));
    else if (share.other == 0)
      for (int64_t i = 0; i < count; ++i) to[i] = own[i] * share.own;
    else if (share.own == 0)
      for (int64_t i = 0; i < count; ++i) to[i] = other[i] * share.other;
    else
      for (int64_t i = 0; i < count; ++i) to[i] = own[i] * share.own + other[i] * share.other;
    store(f_.type, f_.out, offset, count, to);
  }

  const char* x(int64_t n, int64_t element) const {
    return static_cast<const char*>(at(f_.x, f_.type, n * size_ + element));
  }

  char* out(int64_t n, int64_t element) const { return static_cast<char*>(at(f_.out, f_.type, n * size_ + element)); }

  const Flip& f_;
  int64_t first_, second_, size_;
  Share<Acc> outside_[2], inside_[2];
};

template <class Acc>
void mix_pairs(const Flip& f) {
  constexpr int64_t kElements = 8192;
  const int64_t row = f.width * f.inner, plane = f.height * row, size = f.planes * plane;
  if (size == 0) return;
  if (f.x != f.out) expect_result(f.out, f.n * size * size_of(f.type));
  const int64_t pairs = (f.n + 1) / 2;
  const int64_t rows = std::max<int64_t>(1, std::min(f.height, kElements / row));
  const int64_t strips = f.box ? f.planes * ((f.height + rows - 1) / rows) : (size + kElements - 1) / kElements;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const Pair<Acc> pair(f, item / strips);
      const int64_t strip = item % strips;
      if (f.box) {
        const int64_t in_plane = strips / f.planes, top = strip % in_plane * rows;
        pair.rows(strip / in_plane, top, std::min(f.height, top + rows));
      } else {
        pair.blend(strip * kElements, std::min(size, (strip + 1) * kElements));
      }
    }
  };
  parallel_for(pairs * strips, std::max<int64_t>(1, std::min<int64_t>(8, pairs * strips / 8)),
               f.n * size < 32768 ? 1 : f.queue.threads, body);
}

}  // namespace

void flip_blend(const Flip& f) {
  if (f.type == DType::f64)
    mix_pairs<double>(f);
  else
    mix_pairs<float>(f);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
