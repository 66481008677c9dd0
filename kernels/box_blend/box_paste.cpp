// CPU kernels of `box_blend` with a source: each row of a box is made from one or two rows of the partner, resized
// along y as they are read, then along x.
#include "kernels/box_blend/box_blend.h"
#include "pixels.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// Which input each value of an axis begins with, and the weight of the one after it.
template <class Acc>
struct Taps {
  std::vector<int32_t> first;
  std::vector<Acc> next;

  void make(int resize, int64_t size, int64_t source) {
    first.resize(size), next.assign(size, 0);
    if (size == 0) return;
    const Axis axis(resize, size, source);
    if (axis.nearest_mode) {
      for (int64_t i = 0; i < size; ++i) first[i] = static_cast<int32_t>(axis.nearest(i));
      return;
    }
    for (int64_t i = 0, whole = 0; i < size; ++i) {
      const int64_t at = axis.position(i);
      while ((whole + 1) * axis.one <= at) ++whole;
      first[i] = static_cast<int32_t>(whole);
      next[i] = static_cast<Acc>(at - whole * axis.one) / static_cast<Acc>(axis.one);
    }
  }
};

// What is known of one output at a time.
template <class Acc>
struct Box {
  int64_t output = -1;
  Placement place;
  Taps<Acc> along_y, along_x;
  bool resizes_x = false;

  void open(const Mix& m, int64_t n) {
    if (output == n) return;
    output = n;
    place = Placement(m.box + 4 * n, m.source + 4 * n, m.height, m.width);
    along_y.make(m.resize, place.y.size(), place.from_y.size());
    along_x.make(m.resize, place.x.size(), place.from_x.size());
    resizes_x = place.x.size() != place.from_x.size();
  }
};

// Calls f(begin, end) for the elements of strip i that no box covers.
template <class F>
void outside(const RowGrid& grid, int64_t width, const Placement& place, int64_t i, F f) {
  const int64_t row = width * grid.inner;
  int64_t done = 0;
  for (int64_t y = grid.first_row(i), start = 0; y < grid.end_row(i); ++y, start += row) {
    if (!place.y.has(y)) continue;
    f(done, start + place.x.begin * grid.inner);
    done = start + place.x.end * grid.inner;
  }
  f(done, grid.length(i));
}

template <class Acc>
Acc lam_of(const Mix& m, int64_t n) {
  return m.lam ? static_cast<const Acc*>(m.lam)[lam_at(m, n)] : Acc(1);
}

// to[x] = from[first[x]] for pixels of `inner` elements.
template <class T>
void gather(const T* __restrict from, const std::vector<int32_t>& first, int64_t inner, T* __restrict to) {
  const int64_t count = static_cast<int64_t>(first.size());
  const int32_t* __restrict at = first.data();
  if (inner == 1)
    for (int64_t x = 0; x < count; ++x) to[x] = from[at[x]];
  else
    for (int64_t x = 0; x < count; ++x)
      for (int64_t c = 0; c < inner; ++c) to[x * inner + c] = from[at[x] * inner + c];
}

// The same between neighbours; one of weight 0 takes no part, whatever it is. A pixel more than `from` has is read.
template <class Acc>
void interpolate(const Acc* __restrict from, const Taps<Acc>& taps, int64_t inner, Acc* __restrict to) {
  const int64_t count = static_cast<int64_t>(taps.first.size());
  const int32_t* __restrict first = taps.first.data();
  const Acc* __restrict next = taps.next.data();
  const auto between = [](Acc a, Acc b, Acc t) { return t == 0 ? a : a * (1 - t) + b * t; };
  if (inner == 1) {
    for (int64_t x = 0; x < count; ++x) to[x] = between(from[first[x]], from[first[x] + 1], next[x]);
    return;
  }
  for (int64_t x = 0; x < count; ++x) {
    const Acc* __restrict a = from + first[x] * inner;
    for (int64_t c = 0; c < inner; ++c) to[x * inner + c] = between(a[c], a[c + inner], next[x]);
  }
}

template <class Acc>
class Paste {
 public:
  Paste(const Mix& m, const RowGrid& grid) : m_(m), grid_(grid), affine_(m, grid) {}

  struct Scratch {
    Box<Acc> box;
    std::vector<Acc> row, line;  // of the region, of the box
  };

  void strip(Scratch& s, int64_t n, int64_t i) const {
    s.box.open(m_, n);
    const Placement& place = s.box.place;
    const Acc lam = lam_of<Acc>(m_, n);
    const int64_t start = i * grid_.strip, row = m_.width * grid_.inner;
    const int64_t own = n % m_.n * grid_.sample() + start, partner = m_.index[n] * grid_.sample() + start;
    for (int64_t p = 0; p < grid_.planes; ++p) {
      const int64_t plane = p * grid_.plane, out = n * grid_.sample() + plane + start;
      outside(grid_, m_.width, place, i, [&](int64_t begin, int64_t end) {
        mix_segment(m_, affine_, flat<Acc>(begin, end, lam), p, at(m_.x, m_.x_type, own + plane),
                    at(m_.x, m_.x_type, partner + plane), out);
      });
      const int64_t first = std::max(place.y.begin, grid_.first_row(i)), end = std::min(place.y.end, grid_.end_row(i));
      for (int64_t y = first; y < end; ++y) box_row(s, n, p, y, n * grid_.sample() + plane + y * row);
    }
  }

 private:
  bool copies() const { return m_.resize == kResizeNearest && !affine_.active() && m_.x_type == m_.out_type; }

  // Row y of the image, as far as the box reaches; `out` counts elements to the start of the row.
  void box_row(Scratch& s, int64_t n, int64_t plane, int64_t y, int64_t out) const {
    const Placement& place = s.box.place;
    const int64_t inner = grid_.inner, i = y - place.y.begin, count = place.x.size() * inner;
    const int64_t from = m_.index[n] * grid_.sample() + plane * grid_.plane +
                         ((place.from_y.begin + s.box.along_y.first[i]) * m_.width + place.from_x.begin) * inner;
    out += place.x.begin * inner;
    if (copies()) return copy_row(s.box, from, out, count);
    const Acc* line = source_row(s, i, from);
    if (s.box.resizes_x) {
      s.line.resize(count);
      if (m_.resize == kResizeNearest)
        gather(line, s.box.along_x.first, inner, s.line.data());
      else
        interpolate(line, s.box.along_x, inner, s.line.data());
      line = s.line.data();
    }
    for_tiles(0, count, [&](int64_t e, int64_t length) {
      alignas(64) Acc tile[kTile];
      Acc* to = place_of(out + e, tile);
      std::memcpy(to, line + e, length * sizeof(Acc));
      if (affine_.active()) affine_.apply(to, plane, e, length);
      store(m_.out_type, m_.out, out + e, length, to);
    });
  }

  Acc* place_of(int64_t offset, Acc* tile) const {
    return fastmix::FASTMIX_ISA::place(m_.out_type, m_.out, offset, tile);
  }

  void copy_row(const Box<Acc>& box, int64_t from, int64_t out, int64_t count) const {
    const void* source = at(m_.x, m_.x_type, from);
    void* to = at(m_.out, m_.out_type, out);
    if (!box.resizes_x) {
      std::memcpy(to, source, count * size_of(m_.x_type));
      return;
    }
    switch (size_of(m_.x_type)) {
      case 1:
        return gather(static_cast<const uint8_t*>(source), box.along_x.first, grid_.inner, static_cast<uint8_t*>(to));
      case 2:
        return gather(static_cast<const uint16_t*>(source), box.along_x.first, grid_.inner, static_cast<uint16_t*>(to));
      case 4:
        return gather(static_cast<const float*>(source), box.along_x.first, grid_.inner, static_cast<float*>(to));
      default:
        return gather(static_cast<const double*>(source), box.along_x.first, grid_.inner, static_cast<double*>(to));
    }
  }

  // The region's row at `from`, or what lies between it and the next, for row i of the box.
  const Acc* source_row(Scratch& s, int64_t i, int64_t from) const {
    const int64_t count = s.box.place.from_x.size() * grid_.inner, next = from + m_.width * grid_.inner;
    const Acc t = s.box.along_y.next[i];
    s.row.resize(count + grid_.inner);
    for_tiles(0, count, [&](int64_t e, int64_t length) {
      alignas(64) Acc tiles[2][kTile];
      const Acc* __restrict a = load(m_.x_type, m_.x, from + e, length, tiles[0]);
      Acc* __restrict to = &s.row[e];
      if (t == 0) {
        std::memcpy(to, a, length * sizeof(Acc));
        return;
      }
      const Acc* __restrict b = load(m_.x_type, m_.x, next + e, length, tiles[1]);
      for (int64_t k = 0; k < length; ++k) to[k] = a[k] * (1 - t) + b[k] * t;
    });
    return s.row.data();
  }

  const Mix& m_;
  const RowGrid& grid_;
  const Affine<Acc> affine_;
};

// The adjoint of Paste: what the outputs give back to one strip of one image.
template <class Acc>
class PasteGrad {
 public:
  PasteGrad(const Mix& m, const RowGrid& grid) : m_(m), grid_(grid) {}

  struct Scratch {
    Box<Acc> box;
    std::vector<Acc> sum, line;  // of the strip in all planes, of a row of the box
  };

  // weight * gradient of output n, of what lies outside its box.
  void add_outside(Scratch& s, int64_t n, int64_t i, Acc weight) const {
    if (weight == 0) return;
    outside(grid_, m_.width, s.box.place, i, [&](int64_t begin, int64_t end) {
      for (int64_t p = 0; p < grid_.planes; ++p)
        for_tiles(begin, end, [&](int64_t e, int64_t count) {
          alignas(64) Acc tile[kTile];
          const int64_t offset = n * grid_.sample() + p * grid_.plane + i * grid_.strip + e;
          add(weight, load(m_.grad_type, m_.grad, offset, count, tile), count, &s.sum[p * grid_.strip + e]);
        });
    });
  }

  // What the box of output n took from its partner, of which the strip is a part.
  void add_box(Scratch& s, int64_t n, int64_t i) const {
    const Placement& place = s.box.place;
    const std::vector<int32_t>& rows = s.box.along_y.first;
    const int64_t width = m_.width * grid_.inner, count = place.x.size() * grid_.inner;
    if (count == 0) return;
    const int64_t first = std::max(place.from_y.begin, grid_.first_row(i));
    const int64_t end = std::min(place.from_y.end, grid_.end_row(i));
    for (int64_t y = first; y < end; ++y) {
      const int64_t u = y - place.from_y.begin;
      const int64_t from = std::lower_bound(rows.begin(), rows.end(), u - 1) - rows.begin();
      for (int64_t p = 0; p < grid_.planes; ++p) {
        s.line.assign(count, 0);
        for (int64_t j = from; j < place.y.size() && rows[j] <= u; ++j) {
          const Acc next = s.box.along_y.next[j], weight = rows[j] == u ? 1 - next : next;
          if (weight == 0) continue;
          const int64_t offset = n * grid_.sample() + p * grid_.plane + (place.y.begin + j) * width;
          for_tiles(0, count, [&](int64_t e, int64_t length) {
            alignas(64) Acc tile[kTile];
            const int64_t at = offset + place.x.begin * grid_.inner + e;
            add(weight, load(m_.grad_type, m_.grad, at, length, tile), length, &s.line[e]);
          });
        }
        spread(s, &s.sum[p * grid_.strip + (y - grid_.first_row(i)) * width + place.from_x.begin * grid_.inner]);
      }
    }
  }

 private:
  static void add(Acc weight, const Acc* __restrict g, int64_t count, Acc* __restrict sum) {
    for (int64_t e = 0; e < count; ++e) sum[e] += weight * g[e];
  }

  // A row of the box to the row of the region it was resized from.
  void spread(const Scratch& s, Acc* to) const {
    const Taps<Acc>& taps = s.box.along_x;
    const int64_t inner = grid_.inner;
    for (size_t x = 0; x < taps.first.size(); ++x) {
      const Acc t = taps.next[x], *g = &s.line[x * inner];
      Acc* a = to + taps.first[x] * inner;
      for (int64_t c = 0; c < inner; ++c) a[c] += (1 - t) * g[c];
      if (t != 0)
        for (int64_t c = 0; c < inner; ++c) a[inner + c] += t * g[c];
    }
  }

  const Mix& m_;
  const RowGrid& grid_;
};

}  // namespace

void box_paste(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    const Paste<Acc> paste(m, grid);
    for_bands(
        m, grid, m.outputs(), [] { return typename Paste<Acc>::Scratch(); },
        [&](typename Paste<Acc>::Scratch& scratch, int64_t begin, int64_t end, int64_t n) {
          for (int64_t i = begin; i < end; ++i) paste.strip(scratch, n, i);
        });
  });
}

void box_paste_grad_x(const Mix& m) {
  with_acc(m.grad_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    const PasteGrad<Acc> adjoint(m, grid);
    for_bands(
        m, grid, m.n, [] { return typename PasteGrad<Acc>::Scratch(); },
        [&](typename PasteGrad<Acc>::Scratch& s, int64_t begin, int64_t end, int64_t j) {
          for (int64_t i = begin; i < end; ++i) {
            s.sum.assign(grid.planes * grid.strip, 0);
            s.box.open(m, j);
            adjoint.add_outside(s, j, i, lam_of<Acc>(m, j));
            for (int64_t k = m.start[j]; k < m.start[j + 1]; ++k) {
              const int64_t n = m.order[k];
              s.box.open(m, n);
              adjoint.add_outside(s, n, i, 1 - lam_of<Acc>(m, n));
              adjoint.add_box(s, n, i);
            }
            for (int64_t p = 0; p < grid.planes; ++p)
              for_tiles(0, grid.length(i), [&](int64_t e, int64_t count) {
                const int64_t offset = j * grid.sample() + p * grid.plane + i * grid.strip + e;
                alignas(64) Acc tile[kTile];
                Acc* to = place(m.out_type, m.out, offset, tile);
                std::memcpy(to, &s.sum[p * grid.strip + e], count * sizeof(Acc));
                store(m.out_type, m.out, offset, count, to);
              });
          }
        });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
