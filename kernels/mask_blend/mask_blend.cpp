// CPU kernels of `mask_blend`. A row of weights is made from low-resolution rows that were upsampled along x once and
// are kept as long as rows of the same sample ask for them; the full-resolution mask never exists.
#include "kernels/mask_blend/mask_blend.h"

#include <numeric>

#include "pixels.h"
#include "vec_math.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// Taps of every output along one axis. Inputs are clamped when they are read.
template <class Acc>
struct Axis {
  int64_t source;
  int count;
  std::vector<int32_t> first;
  std::vector<Acc> weight[4];

  Axis(int mode, int64_t size, int64_t source_size) : source(source_size), count(1), first(size) {
    for (auto& w : weight) w.resize(size);
    for (int64_t i = 0; i < size; ++i) {
      const Taps<Acc> t = taps<Acc>(mode, i, size, source);
      count = t.count;
      first[i] = static_cast<int32_t>(t.first);
      for (int k = 0; k < 4; ++k) weight[k][i] = t.weight[k];
    }
  }

  int64_t clamp(int64_t j) const { return std::max<int64_t>(0, std::min(j, source - 1)); }
};

// a + t (b - a) rather than (1 - t) a + t b: exact where a == b, so flat parts of a mask stay what they are.
template <class Acc>
inline Acc lerp(Acc a, Acc b, Acc t) {
  return a + t * (b - a);
}

template <class Acc>
class MaskWeight {
 public:
  // `sums` [outputs, strips], if wanted, receives the sum of the weights of each strip.
  MaskWeight(const Mix& m, const RowGrid& grid, double* sums)
      : m_(m),
        grid_(grid),
        along_y_(m.mode, m.height, m.mask_height),
        along_x_(m.mode, m.width, m.mask_width),
        low_(static_cast<const Acc*>(m.mask)),
        sigmoid_late_(m.sigmoid && !m.sigmoid_first && m.mode != kNearest),
        sums_(sums) {
    if (m.sigmoid && !sigmoid_late_) {  // nearest copies values, so that the activation may as well come first
      activated_.resize(m.outputs() * m.mask_height * m.mask_width);
      const Acc* __restrict logits = low_;
      Acc* __restrict to = activated_.data();
      for (size_t i = 0; i < activated_.size(); ++i) to[i] = sigmoid(logits[i]);
      low_ = to;
    }
  }

  struct Scratch {
    explicit Scratch(const MaskWeight& w)
        : padded(w.m_.mask_width + 4),
          wide(w.m_.mask_height * w.m_.width),
          made(w.m_.mask_height),
          pixels(w.grid_.rows * w.m_.width),
          weights(w.grid_.inner > 1 ? w.grid_.strip : 0) {}

    int64_t sample = -1;
    std::vector<Acc> padded;           // one low-resolution row with its border repeated: one value before, three after
    std::vector<Acc> wide;             // [mask_height, width] rows upsampled along x
    std::vector<uint8_t> made;         // which of them hold sample `sample`
    std::vector<Acc> pixels, weights;  // of a strip: one a pixel, and for channels_last one an element
  };

  template <class F>
  void strip(Scratch& s, int64_t n, int64_t i, F f) const {
    const int64_t length = grid_.length(i), count = length / grid_.inner;
    const Summary summary = pixels(s, n, i);
    if (sums_) sums_[n * grid_.strips() + i] = summary.sum;
    const Acc* weights = s.pixels.data();
    if (grid_.inner > 1) {
      spread(weights, count, s.weights.data());
      weights = s.weights.data();
    }
    f(Segment<Acc>{0, length, 0, weights, summary.has_exact});
  }

  struct Summary {
    double sum;
    bool has_exact;
  };

  // Leaves the weight of each pixel of strip i in `s.pixels`.
  Summary pixels(Scratch& s, int64_t n, int64_t i) const {
    if (s.sample != n) {
      s.sample = n;
      std::fill(s.made.begin(), s.made.end(), 0);
    }
    const int64_t first = grid_.first_row(i), end = grid_.end_row(i), width = m_.width;
    Acc* weights = s.pixels.data();
    Summary summary{0, false};
    for (int64_t y = first; y < end; ++y, weights += width) {
      pixel_row(s, n, y, weights);
      const Summary row = sigmoid_late_ ? finish<true>(weights, width) : finish<false>(weights, width);
      summary.sum += row.sum;
      summary.has_exact |= row.has_exact;
    }
    return summary;
  }

  // Multiplies the gradient of the weights of strip i, those in `s.pixels`, by the derivative of an activation at full
  // resolution.
  void through_activation(const Scratch& s, int64_t i, Acc* __restrict grad) const {
    if (!sigmoid_late_) return;
    const Acc* __restrict w = s.pixels.data();
    for (int64_t e = 0; e < grid_.length(i) / grid_.inner; ++e) grad[e] *= w[e] * (1 - w[e]);
  }

  // Adds row y of a full-resolution gradient to the rows [mask_height, width] it was interpolated from.
  void adjoint_y(int64_t y, const Acc* __restrict grad, Acc* tall) const {
    for (int k = 0; k < along_y_.count; ++k) {
      Acc* __restrict to = tall + along_y_.clamp(along_y_.first[y] + k) * m_.width;
      const Acc w = along_y_.weight[k][y];
      for (int64_t x = 0; x < m_.width; ++x) to[x] += w * grad[x];
    }
  }

  // Gathers rows [mask_height, width] to the mask [mask_height, mask_width], through an early activation.
  void adjoint_x(int64_t n, const Acc* tall, Acc* grad_mask) const {
    const int64_t h = m_.mask_height, w = m_.mask_width;
    std::fill(grad_mask, grad_mask + h * w, Acc(0));
    for (int64_t i = 0; i < h; ++i)
      for (int64_t x = 0; x < m_.width; ++x)
        for (int k = 0; k < along_x_.count; ++k)
          grad_mask[i * w + along_x_.clamp(along_x_.first[x] + k)] += along_x_.weight[k][x] * tall[i * m_.width + x];
    if (m_.sigmoid && !sigmoid_late_)
      for (int64_t i = 0; i < h * w; ++i) {
        const Acc p = low_[n * h * w + i];
        grad_mask[i] *= p * (1 - p);
      }
  }

 private:
  // Row y upsampled, before a late activation.
  void pixel_row(Scratch& s, int64_t n, int64_t y, Acc* __restrict to) const {
    const int64_t first = along_y_.first[y], width = m_.width;
    if (m_.mode == kNearest) {
      std::memcpy(to, wide_row(s, n, first), width * sizeof(Acc));
    } else if (m_.mode == kBilinear) {
      const Acc* __restrict a = wide_row(s, n, first), * __restrict b = wide_row(s, n, along_y_.clamp(first + 1));
      const Acc t = along_y_.weight[1][y];
      for (int64_t x = 0; x < width; ++x) to[x] = lerp(a[x], b[x], t);
    } else {
      std::fill(to, to + width, Acc(0));
      for (int k = 0; k < 4; ++k) {
        const Acc* __restrict a = wide_row(s, n, along_y_.clamp(first + k));
        const Acc w = along_y_.weight[k][y];
        for (int64_t x = 0; x < width; ++x) to[x] += w * a[x];
      }
    }
  }

  // The late activation of a row, its sum and whether a weight is exactly 0 or 1, in one pass.
  template <bool kSigmoid>
  static Summary finish(Acc* __restrict w, int64_t count) {
    constexpr int kLanes = 32;
    Acc lanes[kLanes] = {};
    int exact[kLanes] = {};
    int64_t e = 0;
    for (; e + kLanes <= count; e += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc v = kSigmoid ? sigmoid(w[e + lane]) : w[e + lane];
        w[e + lane] = v;
        lanes[lane] += v;
        exact[lane] |= (v == 0) | (v == 1);
      }
    Summary summary{0, false};
    for (; e < count; ++e) {
      if (kSigmoid) w[e] = sigmoid(w[e]);
      summary.sum += w[e];
      summary.has_exact |= (w[e] == 0) | (w[e] == 1);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      summary.sum += lanes[lane];
      summary.has_exact |= exact[lane] != 0;
    }
    return summary;
  }

  // channels_last: one weight a pixel becomes one an element.
  void spread(const Acc* __restrict from, int64_t count, Acc* __restrict to) const {
    const int64_t inner = grid_.inner;
    if (inner == 3)
      for (int64_t e = 0; e < count; ++e) to[3 * e] = to[3 * e + 1] = to[3 * e + 2] = from[e];
    else
      for (int64_t e = 0; e < count; ++e) std::fill(to + e * inner, to + (e + 1) * inner, from[e]);
  }

  // Row i of the mask of sample n, upsampled along x.
  const Acc* wide_row(Scratch& s, int64_t n, int64_t i) const {
    const int64_t width = m_.width, source = m_.mask_width;
    Acc* __restrict to = &s.wide[i * width];
    if (s.made[i]) return to;
    s.made[i] = 1;
    const Acc* from = low_ + (n * m_.mask_height + i) * source;
    Acc* padded = s.padded.data();
    padded[0] = from[0];
    std::memcpy(padded + 1, from, source * sizeof(Acc));
    for (int k = 1; k <= 3; ++k) padded[source + k] = from[source - 1];
    const Acc* __restrict low = padded + 1;
    const int32_t* __restrict first = along_x_.first.data();
    if (m_.mode == kNearest) {
      for (int64_t x = 0; x < width; ++x) to[x] = low[first[x]];
    } else if (m_.mode == kBilinear) {
      const Acc* __restrict t = along_x_.weight[1].data();
      for (int64_t x = 0; x < width; ++x) to[x] = lerp(low[first[x]], low[first[x] + 1], t[x]);
    } else {
      for (int64_t x = 0; x < width; ++x) {
        Acc sum = 0;
        for (int k = 0; k < 4; ++k)
          sum += along_x_.weight[k][x] * low[std::max<int64_t>(-1, std::min<int64_t>(first[x] + k, source))];
        to[x] = sum;
      }
    }
    return to;
  }

  const Mix& m_;
  const RowGrid& grid_;
  const Axis<Acc> along_y_, along_x_;
  const Acc* low_;
  const bool sigmoid_late_;
  double* sums_;
  std::vector<Acc> activated_;
};

}  // namespace

void mask_blend(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    std::vector<double> sums(m.outputs() * grid.strips());
    mix_images<Acc>(m, grid, MaskWeight<Acc>(m, grid, sums.data()));
    for (int64_t n = 0; n < m.outputs(); ++n) {
      const auto first = sums.begin() + n * grid.strips();
      const double total = std::accumulate(first, first + grid.strips(), 0.0);
      static_cast<Acc*>(m.mean)[n] = static_cast<Acc>(total / static_cast<double>(m.height * m.width));
    }
  });
}

void mask_blend_grad_x(const Mix& m) {
  with_acc(m.grad_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    mix_grad_x<Acc>(m, grid, MaskWeight<Acc>(m, grid, nullptr));
  });
}

void mask_blend_grad_mask(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    const Affine<Acc> affine(m, grid);
    const MaskWeight<Acc> weights(m, grid, nullptr);
    struct State {
      typename MaskWeight<Acc>::Scratch scratch;
      std::vector<Acc> dot, tall;
    };
    const int64_t low = m.mask_height * m.mask_width;
    for_samples(
        m, grid.sample(),
        [&] {
          return State{typename MaskWeight<Acc>::Scratch(weights), std::vector<Acc>(grid.strip),
                       std::vector<Acc>(m.mask_height * m.width)};
        },
        [&](State& s, int64_t n) {
          const Acc of_mean = m.grad_mean ? static_cast<const Acc*>(m.grad_mean)[n] / (m.height * m.width) : Acc(0);
          std::fill(s.tall.begin(), s.tall.end(), Acc(0));
          for (int64_t i = 0; i < grid.strips(); ++i) {
            Acc* __restrict dot = s.dot.data();
            const int64_t count = grid.length(i) / grid.inner;
            std::fill(dot, dot + grid.length(i), Acc(0));
            weights.strip(s.scratch, n, i, [&](const Segment<Acc>& segment) {
              const Acc* exact = segment.has_exact ? segment.weights : nullptr;
              if (m.grad) weight_gradient(m, grid, affine, n, i, Acc(NAN), exact, dot);
            });
            if (grid.inner > 1)
              for (int64_t e = 0; e < count; ++e)
                dot[e] = std::accumulate(dot + e * grid.inner, dot + (e + 1) * grid.inner, Acc(0));
            for (int64_t e = 0; e < count; ++e) dot[e] += of_mean;
            weights.through_activation(s.scratch, i, dot);
            for (int64_t y = grid.first_row(i); y < grid.end_row(i); ++y)
              weights.adjoint_y(y, dot + (y - grid.first_row(i)) * m.width, s.tall.data());
          }
          weights.adjoint_x(n, s.tall.data(), static_cast<Acc*>(m.out) + n * low);
        });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
