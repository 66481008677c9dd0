// The loops of the three blends. A sample is walked strip by strip; a `Weights` type says how much the own image weighs
// along a strip, once for all channels:
//
//   struct Scratch                                   buffers of one thread
//   void strip(Scratch&, n, i, F f)                  calls f(Segment) for consecutive parts of strip i of output n
//
// Rows are handed out band by band over all samples, so that the rows of a partner are still in cache when they are
// wanted: a batch is read from memory about once.
#pragma once

#include <algorithm>
#include <vector>

#include "fastmix.h"
#include "pages.h"
#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// How a sample is cut: `planes` planes of `plane` elements, each a sequence of strips of `strip` elements (the last may
// be shorter), `inner` elements a pixel.
struct Grid {
  int64_t planes, plane, strip, inner;

  int64_t sample() const { return planes * plane; }
  int64_t strips() const { return strip ? (plane + strip - 1) / strip : 0; }
  int64_t length(int64_t i) const { return std::min(strip, plane - i * strip); }
};

// Strips of whole image rows: enough of them that a loop over a strip is worth its start.
struct RowGrid : Grid {
  int64_t height, rows;  // of the image, of a strip

  explicit RowGrid(const Mix& m)
      : Grid{m.channels_last ? 1 : m.channels, m.height * m.width * (m.channels_last ? m.channels : 1), 0,
             m.channels_last ? m.channels : 1},
        height(m.height) {
    constexpr int64_t kElements = 8192;
    const int64_t row = m.width * inner;
    rows = std::max<int64_t>(1, std::min(height, kElements / std::max<int64_t>(1, row)));
    strip = rows * row;
  }

  int64_t first_row(int64_t i) const { return i * rows; }
  int64_t end_row(int64_t i) const { return std::min(height, (i + 1) * rows); }
};

// Part [begin, end) of a strip: one weight for all of it, or `weights[e]` for element begin + e.
template <class Acc>
struct Segment {
  int64_t begin, end;
  Acc weight;
  const Acc* weights;
  bool has_exact;  // some of the weights are exactly 0 or 1
};

template <class Acc>
inline Segment<Acc> flat(int64_t begin, int64_t end, Acc weight) {
  return {begin, end, weight, nullptr, false};
}

template <class Acc>
inline void mix_tile(const Segment<Acc>& s, int64_t skip, const Acc* __restrict own, const Acc* __restrict partner,
                     Acc* __restrict out, int64_t count) {
  if (s.weights) {
    const Acc* __restrict w = s.weights + skip;
    if (s.has_exact)
      for (int64_t i = 0; i < count; ++i) {
        const Acc mixed = own[i] * w[i] + partner[i] * (1 - w[i]);
        out[i] = w[i] == 1 ? own[i] : w[i] == 0 ? partner[i] : mixed;
      }
    else
      for (int64_t i = 0; i < count; ++i) out[i] = own[i] * w[i] + partner[i] * (1 - w[i]);
  } else if (s.weight == 1 || s.weight == 0) {
    std::memcpy(out, s.weight == 1 ? own : partner, count * sizeof(Acc));
  } else {
    const Acc w = s.weight, u = 1 - w;
    for (int64_t i = 0; i < count; ++i) out[i] = own[i] * w + partner[i] * u;
  }
}

// Normalisation of a tile: by plane, or by a repeating pattern where channels are interleaved.
template <class Acc>
class Affine {
 public:
  Affine(const Mix& m, const Grid& grid)
      : scale_(static_cast<const Acc*>(m.scale)), shift_(static_cast<const Acc*>(m.shift)), inner_(grid.inner) {
    if (!scale_ || inner_ == 1) return;
    for (int64_t i = 0; i < kTile + inner_; ++i) {
      scales_.push_back(scale_[i % inner_]);
      if (shift_) shifts_.push_back(shift_[i % inner_]);
    }
  }

  bool active() const { return scale_ != nullptr; }

  // `offset` counts elements from the start of a strip of plane `plane`.
  void apply(Acc* __restrict v, int64_t plane, int64_t offset, int64_t count) const {
    if (inner_ == 1) {
      const Acc a = scale_[plane], b = shift_[plane];
      for (int64_t i = 0; i < count; ++i) v[i] = v[i] * a + b;
    } else {
      const Acc* __restrict a = &scales_[offset % inner_], * __restrict b = &shifts_[offset % inner_];
      for (int64_t i = 0; i < count; ++i) v[i] = v[i] * a[i] + b[i];
    }
  }

  // The linear part alone, for gradients.
  void scale(Acc* __restrict v, int64_t plane, int64_t offset, int64_t count) const {
    if (inner_ == 1) {
      for (int64_t i = 0; i < count; ++i) v[i] *= scale_[plane];
    } else {
      const Acc* __restrict a = &scales_[offset % inner_];
      for (int64_t i = 0; i < count; ++i) v[i] *= a[i];
    }
  }

 private:
  const Acc *scale_, *shift_;
  int64_t inner_;
  std::vector<Acc> scales_, shifts_;
};

template <class F>
inline void for_tiles(int64_t begin, int64_t end, F f) {
  for (int64_t i = begin; i < end; i += kTile) f(i, std::min(kTile, end - i));
}

// Mixes one segment of one plane. `own` and `partner` start at the strip, `out` counts elements from the start of the
// tensor to the strip.
template <class Acc>
inline void mix_segment(const Mix& m, const Affine<Acc>& affine, const Segment<Acc>& s, int64_t plane, const void* own,
                        const void* partner, int64_t out) {
  if (!affine.active() && m.x_type == m.out_type && !s.weights && (s.weight == 1 || s.weight == 0)) {
    std::memcpy(at(m.out, m.out_type, out + s.begin), at(s.weight == 1 ? own : partner, m.x_type, s.begin),
                (s.end - s.begin) * size_of(m.x_type));
    return;
  }
  for_tiles(s.begin, s.end, [&](int64_t i, int64_t count) {
    alignas(64) Acc a[kTile], b[kTile], c[kTile];
    Acc* to = place(m.out_type, m.out, out + i, c);
    mix_tile(s, i - s.begin, load(m.x_type, own, i, count, a), load(m.x_type, partner, i, count, b), to, count);
    if (affine.active()) affine.apply(to, plane, i, count);
    store(m.out_type, m.out, out + i, count, to);
  });
}

// sum += share * g, the share being the own image's or the partner's.
template <class Acc>
inline void add_share(const Segment<Acc>& s, bool complement, int64_t skip, const Acc* __restrict g,
                      Acc* __restrict sum, int64_t count) {
  if (s.weights) {
    const Acc* __restrict w = s.weights + skip;
    for (int64_t e = 0; e < count; ++e) {
      const Acc share = complement ? 1 - w[e] : w[e];
      sum[e] += share == 0 ? 0 : share * g[e];
    }
  } else if (const Acc share = complement ? 1 - s.weight : s.weight; share != 0) {
    for (int64_t e = 0; e < count; ++e) sum[e] += share * g[e];
  }
}

// Calls f(state, first strip, end strip, i) for all bands of strips and all i < count, bands outermost.
template <class MakeState, class F>
inline void for_bands(const Mix& m, const Grid& grid, int64_t count, MakeState make_state, F f) {
  constexpr int64_t kBandElements = 16384;
  const int64_t band = std::max<int64_t>(1, kBandElements / std::max<int64_t>(1, grid.strip * grid.planes));
  const int64_t bands = (grid.strips() + band - 1) / band;
  const int64_t total = count * grid.sample();
  auto body = [&](int64_t begin, int64_t end) {
    auto state = make_state();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / count;
      f(state, b * band, std::min((b + 1) * band, grid.strips()), item % count);
    }
  };
  parallel_for(bands * count, std::max<int64_t>(1, std::min<int64_t>(8, bands * count / 8)),
               total < 32768 ? 1 : m.queue.threads, body);
}

// Strips of one image as they are to be mixed: the image's own memory, or a copy with its blocks moved by a plan.
class Source {
 public:
  Source(const Mix& m, const Grid& grid) : m_(m), grid_(grid) {}

  // Strip i of all planes of `sample`, its blocks taken from where `plan` [plan_height, plan_width] says.
  void take(int64_t sample, const int32_t* plan, int64_t i) {
    base_ = static_cast<const char*>(at(m_.x, m_.x_type, sample * grid_.sample() + i * grid_.strip));
    stride_ = grid_.plane * size_of(m_.x_type);
    if (!plan) return;
    moved_.resize(grid_.planes * grid_.strip * size_of(m_.x_type));
    const int64_t rows = grid_.strip / (m_.width * grid_.inner), block = m_.height / m_.plan_height;
    const int64_t first = i * rows, last = std::min(m_.height, first + rows);
    for (int64_t y = first, end; y < last; y = end) {
      end = std::min(last, (y / block + 1) * block);
      move_rows(plan, y - first, end - first, y / block);
    }
    base_ = moved_.data();
    stride_ = grid_.strip * size_of(m_.x_type);
  }

  const void* plane(int64_t p) const { return base_ + p * stride_; }

 private:
  // Rows [begin, end) of the strip, which lie in one row of blocks. Neighbouring blocks that
  // stay neighbours are copied together.
  void move_rows(const int32_t* plan, int64_t begin, int64_t end, int64_t block_row) {
    const int64_t columns = m_.plan_width, block = m_.height / m_.plan_height, here = block_row * columns;
    const int64_t row = m_.width * grid_.inner * size_of(m_.x_type), piece = row / columns;
    auto source = [&](int64_t column) { return plan[here + column] < 0 ? here + column : plan[here + column]; };
    for (int64_t column = 0, next; column < columns; column = next) {
      const int64_t from = source(column), room = columns - std::max(column, from % columns);
      for (next = column + 1; next - column < room && source(next) == from + next - column;) ++next;
      const int64_t rows_up = (from / columns - block_row) * block;
      for (int64_t p = 0; p < grid_.planes; ++p) {
        const char* read = base_ + p * stride_ + (begin + rows_up) * row + from % columns * piece;
        char* write = &moved_[p * grid_.strip * size_of(m_.x_type) + begin * row + column * piece];
        for (int64_t y = begin; y < end; ++y, read += row, write += row)
          std::memcpy(write, read, (next - column) * piece);
      }
    }
  }

  const Mix& m_;
  const Grid& grid_;
  const char* base_ = nullptr;
  int64_t stride_ = 0;  // bytes from plane to plane
  std::vector<char> moved_;
};

template <class Acc, class Weights>
void mix_images(const Mix& m, const Grid& grid, const Weights& weights) {
  struct State {
    typename Weights::Scratch scratch;
    Source own, partner;
  };
  const Affine<Acc> affine(m, grid);
  const int64_t blocks = m.plan_height * m.plan_width;
  expect_result(m.out, m.outputs() * grid.sample() * size_of(m.out_type));
  for_bands(
      m, grid, m.outputs(), [&] { return State{typename Weights::Scratch(weights), Source(m, grid), Source(m, grid)}; },
      [&](State& state, int64_t begin, int64_t end, int64_t n) {
        for (int64_t i = begin; i < end; ++i) {
          state.own.take(n % m.n, m.plan ? m.plan + n * blocks : nullptr, i);
          state.partner.take(m.index[n], m.partner_plan ? m.partner_plan + n * blocks : nullptr, i);
          weights.strip(state.scratch, n, i, [&](const Segment<Acc>& s) {
            for (int64_t p = 0, out = n * grid.sample() + i * grid.strip; p < grid.planes; ++p, out += grid.plane)
              mix_segment(m, affine, s, p, state.own.plane(p), state.partner.plane(p), out);
          });
        }
      });
}

// out[j] = w[j] g[j] + sum over n with index[n] == j of (1 - w[n]) g[n]: the adjoint of mix_images for the images.
// A zero weight contributes nothing, even of a gradient that is not finite.
template <class Acc, class Weights>
void mix_grad_x(const Mix& m, const Grid& grid, const Weights& weights) {
  struct State {
    typename Weights::Scratch scratch;
    std::vector<Acc> sum;
  };
  expect_result(m.out, m.n * grid.sample() * size_of(m.out_type));
  for_bands(
      m, grid, m.n,
      [&] { return State{typename Weights::Scratch(weights), std::vector<Acc>(grid.planes * grid.strip)}; },
      [&](State& state, int64_t begin, int64_t end, int64_t j) {
        for (int64_t strip = begin; strip < end; ++strip) {
          std::fill(state.sum.begin(), state.sum.end(), Acc(0));
          auto add = [&](int64_t n, bool complement) {
            weights.strip(state.scratch, n, strip, [&](const Segment<Acc>& s) {
              for (int64_t p = 0; p < grid.planes; ++p)
                for_tiles(s.begin, s.end, [&](int64_t i, int64_t count) {
                  alignas(64) Acc tile[kTile];
                  const int64_t offset = n * grid.sample() + p * grid.plane + strip * grid.strip + i;
                  const Acc* g = load(m.grad_type, m.grad, offset, count, tile);
                  add_share(s, complement, i - s.begin, g, &state.sum[p * grid.strip + i], count);
                });
            });
          };
          add(j, false);
          for (int64_t i = m.start[j]; i < m.start[j + 1]; ++i) add(m.order[i], true);
          for (int64_t p = 0; p < grid.planes; ++p)
            for_tiles(0, grid.length(strip), [&](int64_t i, int64_t count) {
              const int64_t offset = j * grid.sample() + p * grid.plane + strip * grid.strip + i;
              alignas(64) Acc tile[kTile];
              Acc* to = place(m.out_type, m.out, offset, tile);
              std::memcpy(to, &state.sum[p * grid.strip + i], count * sizeof(Acc));
              store(m.out_type, m.out, offset, count, to);
            });
        }
      });
}

// `v` with 0 for what is not finite and of weight `zero`, that is, not looked at: what mixes to nothing has no say in
// the gradient of its weight either. All have the weight `all`, or each its own, `weights`, if that is not null.
template <class Acc>
const Acc* looked_at(const Acc* v, int64_t count, Acc all, const Acc* weights, Acc zero, Acc* copy) {
  if (!weights && all != zero) return v;
  for (int64_t e = 0; e < count; ++e) copy[e] = std::isfinite(v[e]) || (weights && weights[e] != zero) ? v[e] : Acc(0);
  return copy;
}

// dot[e] = sum over planes of scale * g * (x[n] - x[index[n]]) along strip i: the gradient of each element's weight,
// still to be summed over the `inner` elements of a pixel. All elements have the weight `all`, or each its own.
template <class Acc>
void weight_gradient(const Mix& m, const Grid& grid, const Affine<Acc>& affine, int64_t n, int64_t strip, Acc all,
                     const Acc* weights, Acc* dot) {
  const int64_t length = grid.length(strip);
  std::fill(dot, dot + length, Acc(0));
  for (int64_t p = 0; p < grid.planes; ++p) {
    const int64_t offset = p * grid.plane + strip * grid.strip;
    for_tiles(0, length, [&](int64_t i, int64_t count) {
      alignas(64) Acc a[kTile], b[kTile], c[kTile], d[kTile];
      const Acc* some = weights ? weights + i : nullptr;
      const Acc* __restrict own =
          looked_at(load(m.x_type, m.x, n * grid.sample() + offset + i, count, a), count, all, some, Acc(0), a);
      const Acc* __restrict partner = looked_at(load(m.x_type, m.x, m.index[n] * grid.sample() + offset + i, count, b),
                                                count, all, some, Acc(1), b);
      const Acc* __restrict g = load(m.grad_type, m.grad, n * grid.sample() + offset + i, count, c);
      Acc* __restrict sum = dot + i;
      if (affine.active()) {
        for (int64_t e = 0; e < count; ++e) d[e] = g[e] * (own[e] - partner[e]);
        affine.scale(d, p, i, count);
        for (int64_t e = 0; e < count; ++e) sum[e] += d[e];
      } else {
        for (int64_t e = 0; e < count; ++e) sum[e] += g[e] * (own[e] - partner[e]);
      }
    });
  }
}

// Sum in independent lanes, which vectorise without reassociating anything the compiler must not.
template <class Acc>
inline double sum_of(const Acc* __restrict v, int64_t count) {
  constexpr int kLanes = 32;
  Acc lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += v[i + lane];
  double total = 0;
  for (; i < count; ++i) total += v[i];
  for (Acc lane : lanes) total += lane;
  return total;
}

// Calls f(state, n) for every sample.
template <class MakeState, class F>
inline void for_samples(const Mix& m, int64_t work, MakeState make_state, F f) {
  auto body = [&](int64_t begin, int64_t end) {
    auto state = make_state();
    for (int64_t n = begin; n < end; ++n) f(state, n);
  };
  parallel_for(m.n, 1, m.n * work < 32768 ? 1 : m.queue.threads, body);
}

inline int64_t lam_at(const Mix& m, int64_t n) { return m.lam_per_sample ? n : 0; }

// Runs f(Acc()) with the accumulation type of the call.
template <class F>
inline void with_acc(DType type, F f) {
  if (type == DType::f64)
    f(double());
  else
    f(float());
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
