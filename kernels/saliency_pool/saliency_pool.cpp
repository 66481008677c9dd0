// CPU kernels of `saliency_pool`: means of the saliency over blocks, one pass over the gradient, then shares.
#include "saliency_pool.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

int64_t sample_size(const Saliency& s) { return s.channels * s.height * s.width; }

// squares[p] += sum over `channels` interleaved values of pixel p.
template <int kChannels, class Acc>
void add_interleaved(const Acc* __restrict v, int64_t channels, int64_t count, Acc* __restrict squares) {
  const int64_t step = kChannels ? kChannels : channels;
  for (int64_t p = 0; p < count; ++p) {
    Acc sum = squares[p];
    for (int64_t c = 0; c < step; ++c) sum += v[p * step + c] * v[p * step + c];
    squares[p] = sum;
  }
}

// Roots of the sums over channels of the squares of `scale * grad` for pixels [first, first + count) of sample n.
template <class Acc>
class Roots {
 public:
  // Pixels that a call of `of` can take.
  static int64_t capacity(const Saliency& s) {
    return interleaved(s) ? std::max<int64_t>(1, kTile / s.channels) : kTile;
  }

  const Acc* of(const Saliency& s, int64_t n, int64_t first, int64_t count, Acc scale) {
    std::fill(squares_, squares_ + count, Acc(0));
    const int64_t pixels = s.height * s.width, sample = n * s.channels * pixels;
    if (!interleaved(s)) {
      for (int64_t c = 0; c < s.channels; ++c)
        add_interleaved<1>(values(s, sample + c * pixels + first, count, scale), 1, count, squares_);
    } else if (s.channels <= kTile) {
      const Acc* v = values(s, sample + first * s.channels, count * s.channels, scale);
      if (s.channels == 3)
        add_interleaved<3>(v, 3, count, squares_);
      else
        add_interleaved<0>(v, s.channels, count, squares_);
    } else {
      for (int64_t c = 0; c < s.channels; c += kTile) {
        const int64_t some = std::min(kTile, s.channels - c);
        add_interleaved<0>(values(s, sample + first * s.channels + c, some, scale), some, 1, squares_);
      }
    }
    const Acc channels = static_cast<Acc>(s.channels);
    for (int64_t p = 0; p < count; ++p) squares_[p] = std::sqrt(squares_[p] / channels);
    return squares_;
  }

 private:
  static bool interleaved(const Saliency& s) { return s.channels_last && s.channels > 1; }

  const Acc* values(const Saliency& s, int64_t offset, int64_t count, Acc scale) {
    const Acc* v = load(s.type, s.grad, offset, count, tile_);
    if (scale == 1) return v;
    for (int64_t i = 0; i < count; ++i) tile_[i] = v[i] * scale;
    return tile_;
  }

  alignas(64) Acc tile_[kTile], squares_[kTile];
};

// sums[j] += the pixels of block j in a whole row, one after another.
template <int kBlockWidth, class Acc>
void add_row(const Acc* __restrict v, int64_t width, int64_t blocks, Acc* __restrict sums) {
  const int64_t block_width = kBlockWidth ? kBlockWidth : width;
  for (int64_t j = 0; j < blocks; ++j) {
    Acc sum = sums[j];
    for (int64_t q = 0; q < block_width; ++q) sum += v[j * block_width + q];
    sums[j] = sum;
  }
}

// The same for `count` pixels from x on.
template <class Acc>
void add_piece(const Acc* v, int64_t x, int64_t count, int64_t block_width, Acc* sums) {
  for (int64_t p = 0, j = x / block_width; p < count; ++j) {
    const int64_t end = std::min(count, (j + 1) * block_width - x);
    Acc sum = sums[j];
    for (; p < end; ++p) sum += v[p];
    sums[j] = sum;
  }
}

// Means of the roots in row i of the blocks of sample n, each block added up row by row in the accumulation type.
template <class Acc>
void pool_blocks(const Saliency& s, int64_t n, int64_t i, Acc scale, Roots<Acc>& roots, std::vector<Acc>& sums) {
  const int64_t width = s.width, block_height = s.height / s.rows, block_width = width / s.columns;
  const int64_t capacity = roots.capacity(s), piece = std::min(width, capacity);
  const int64_t together = width <= capacity ? capacity / width : 1;  // rows of pixels at a time
  sums.assign(s.columns, 0);
  for (int64_t y = 0; y < block_height; y += together)
    for (int64_t x = 0; x < width; x += piece) {
      const int64_t rows = std::min(together, block_height - y), count = std::min(piece, width - x);
      const Acc* root = roots.of(s, n, (i * block_height + y) * width + x, rows * count, scale);
      for (int64_t row = 0; row < rows; ++row, root += count)
        if (block_width == 2 && count == width)
          add_row<2>(root, 2, s.columns, sums.data());
        else if (block_width == 4 && count == width)
          add_row<4>(root, 4, s.columns, sums.data());
        else if (count == width)
          add_row<0>(root, block_width, s.columns, sums.data());
        else
          add_piece(root, x, count, block_width, sums.data());
    }
  double* means = s.means + (n * s.rows + i) * s.columns;
  for (int64_t j = 0; j < s.columns; ++j) means[j] = sums[j] / static_cast<Acc>(block_height * block_width);
}

// Largest magnitude in sample n; infinite where a value is not finite.
template <class Acc>
Acc peak_of(const Saliency& s, int64_t n) {
  constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();
  alignas(64) Acc tile[kTile];
  Acc peak = 0;
  for (int64_t i = 0; i < sample_size(s); i += kTile) {
    const int64_t count = std::min(kTile, sample_size(s) - i);
    const Acc* v = load(s.type, s.grad, n * sample_size(s) + i, count, tile);
    for (int64_t e = 0; e < count; ++e) {
      const Acc size = std::fabs(v[e]);
      peak = size <= peak ? peak : size < kInfinity ? size : kInfinity;
    }
  }
  return peak;
}

template <class Acc>
void share_out(const Saliency& s, int64_t n, Roots<Acc>& roots, std::vector<Acc>& sums) {
  const int64_t blocks = s.rows * s.columns;
  double* means = s.means + n * blocks;
  auto total = [&] {
    double sum = 0;
    for (int64_t j = 0; j < blocks; ++j) sum += means[j];
    return sum;
  };
  double all = total();
  if (!squares_served(all, Acc())) {
    const Acc peak = peak_of<Acc>(s, n);
    if (peak > 0 && peak < std::numeric_limits<Acc>::infinity()) {
      for (int64_t i = 0; i < s.rows; ++i) pool_blocks(s, n, i, unit_scale(peak), roots, sums);
      all = total();
    } else {
      std::fill(means, means + blocks, 1.);
      all = static_cast<double>(blocks);
    }
  }
  for (int64_t j = 0; j < blocks; ++j) s.out[n * blocks + j] = static_cast<float>(means[j] / all);
}

template <class Acc, class F>
void for_items(const Saliency& s, int64_t items, int64_t grain, F f) {
  auto body = [&](int64_t begin, int64_t end) {
    Roots<Acc> roots;
    std::vector<Acc> sums;
    for (int64_t item = begin; item < end; ++item) f(item, roots, sums);
  };
  parallel_for(items, grain, s.n * sample_size(s) < 32768 ? 1 : s.queue.threads, body);
}

}  // namespace

void saliency_pool(const Saliency& s) {
  auto run = [&](auto acc) {
    using Acc = decltype(acc);
    const int64_t grain = std::max<int64_t>(1, s.n * s.rows / (8 * std::max(1, s.queue.threads)));
    for_items<Acc>(s, s.n * s.rows, grain, [&](int64_t item, auto& roots, auto& sums) {
      pool_blocks(s, item / s.rows, item % s.rows, Acc(1), roots, sums);
    });
    for_items<Acc>(s, s.n, std::max<int64_t>(1, s.n / 8),
                   [&](int64_t n, auto& roots, auto& sums) { share_out(s, n, roots, sums); });
  };
  if (s.type == DType::f64)
    run(double());
  else
    run(float());
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
