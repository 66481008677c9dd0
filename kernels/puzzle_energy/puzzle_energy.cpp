// CPU kernels of `puzzle_energy`: the cells at block boundaries of every image, then the costs of every pair.
#include "puzzle_energy.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// sums[i] += the pixels v * scale + shift of cell i in one row of pixels, `step` values a pixel.
template <int kSide, int kStep, class Acc>
void add_pixels(const Acc* __restrict v, int64_t side, int64_t step, Acc scale, Acc shift, int64_t count,
                Acc* __restrict sums) {
  const int64_t s = kSide ? kSide : side, pixel = kStep ? kStep : step;
  for (int64_t i = 0; i < count; ++i) {
    Acc sum = sums[i];
    for (int64_t q = 0; q < s; ++q) sum += v[(i * s + q) * pixel] * scale + shift;
    sums[i] = sum;
  }
}

template <int kSide, class Acc>
void add_pixels(const Acc* v, int64_t side, int64_t step, Acc scale, Acc shift, int64_t count, Acc* sums) {
  if (step == 1) return add_pixels<kSide, 1>(v, side, step, scale, shift, count, sums);
  if (step == 3) return add_pixels<kSide, 3>(v, side, step, scale, shift, count, sums);
  add_pixels<kSide, 0>(v, side, step, scale, shift, count, sums);
}

// Pools the cells along the block boundaries of an image.
template <class Acc>
class Pooling {
 public:
  Pooling(const Energy& e, const CellGrid& grid)
      : e_(e),
        grid_(grid),
        sums_(grid.channels * grid.across()),
        pixels_(e.width * (e.channels_last ? e.channels : 1)) {}

  void image(int64_t n, Acc* cells) {
    const int64_t boundaries = grid_.columns - 1;
    for (int64_t y = 0; y < grid_.down(); ++y) {
      const int64_t i = y / grid_.high;
      const bool above = i + 1 < grid_.rows && y + 1 == (i + 1) * grid_.high, below = i > 0 && y == i * grid_.high;
      if (above || below || (boundaries > 0 && grid_.wide <= kWholeRow))
        pool(n, y, 0, grid_.across());
      else
        for (int64_t b = 0; b < boundaries; ++b) pool(n, y, (b + 1) * grid_.wide - 1, 2);
      for (int64_t c = 0; c < grid_.channels; ++c) {
        const Acc* line = &sums_[c * grid_.across()];
        if (above) std::copy_n(line, grid_.across(), cells + grid_.row_line(i, 0, c));
        if (below) std::copy_n(line, grid_.across(), cells + grid_.row_line(i - 1, 1, c));
        for (int64_t b = 0; b < boundaries; ++b)
          for (int side = 0; side < 2; ++side)
            cells[grid_.column_line(b, side, c) + y] = line[(b + 1) * grid_.wide - 1 + side];
      }
    }
  }

 private:
  // Up to this many cells along a block it is faster to pool a whole row than its cells at boundaries.
  static constexpr int64_t kWholeRow = 16;

  // Means of `count` cells from cell `first` on in row y of cells, all channels.
  void pool(int64_t n, int64_t y, int64_t first, int64_t count) {
    const int64_t channels = grid_.channels, side = grid_.side, planes = e_.channels_last ? 1 : channels;
    const int64_t step = e_.channels_last ? channels : 1;
    const Acc *scale = static_cast<const Acc*>(e_.scale), *shift = static_cast<const Acc*>(e_.shift);
    for (int64_t c = 0; c < channels; ++c) std::fill_n(&sums_[c * grid_.across() + first], count, Acc(0));
    for (int64_t row = y * side; row < (y + 1) * side; ++row)
      for (int64_t p = 0; p < planes; ++p) {
        const int64_t offset = (((n * planes + p) * e_.height + row) * e_.width + first * side) * step;
        const Acc* v = load(e_.type, e_.x, offset, count * side * step, pixels_.data());
        for (int64_t c = p; c < p + step; ++c)
          add(v + c - p, step, scale ? scale[c] : 1, scale ? shift[c] : 0, count, &sums_[c * grid_.across() + first]);
      }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = first; i < first + count; ++i) sums_[c * grid_.across() + i] /= static_cast<Acc>(side * side);
  }

  void add(const Acc* v, int64_t step, Acc scale, Acc shift, int64_t count, Acc* sums) const {
    if (grid_.side == 4) return add_pixels<4>(v, 4, step, scale, shift, count, sums);
    if (grid_.side == 2) return add_pixels<2>(v, 2, step, scale, shift, count, sums);
    add_pixels<0>(v, grid_.side, step, scale, shift, count, sums);
  }

  const Energy& e_;
  const CellGrid& grid_;
  std::vector<Acc> sums_, pixels_;
};

// The costs of one pair of images.
template <class Acc>
class Costs {
 public:
  Costs(const Energy& e, const CellGrid& grid)
      : e_(e),
        grid_(grid),
        scale_(energy_scale<Acc>(e)),
        own_(e.rows * e.columns),
        partner_(own_.size()),
        label_(own_.size()) {
    for (auto& p : p_) p.resize(grid.edges());
    for (auto& t : terms_) t.resize(std::max(grid.across(), grid.down()));
  }

  void pair(int64_t n) {
    const Acc* cells = static_cast<const Acc*>(e_.cells);
    const Acc *own = cells + n * grid_.count(), *partner = cells + e_.index[n] * grid_.count();
    for (int64_t b = 0; b < grid_.rows - 1; ++b) {
      differences(own + grid_.row_line(b, 0, 0), partner + grid_.row_line(b, 0, 0), grid_.across());
      price(grid_.columns, grid_.wide, b * grid_.columns, 1);
    }
    for (int64_t b = 0; b < grid_.columns - 1; ++b) {
      differences(own + grid_.column_line(b, 0, 0), partner + grid_.column_line(b, 0, 0), grid_.down());
      price(grid_.rows, grid_.high, grid_.row_edges() + b, grid_.columns - 1);
    }
    write_weights(n);
    fold(n);
    write_unary(n);
  }

 private:
  enum Shown { k00, k01, k10, k11 };  // whether the first and the second block of an edge show the own image

  // terms[ab][i] = mean over channels of the difference across the boundary at cell i.
  void differences(const Acc* own, const Acc* partner, int64_t length) {
    for (auto& t : terms_) std::fill_n(t.begin(), length, Acc(0));
    Acc* __restrict t00 = terms_[k00].data(), * __restrict t01 = terms_[k01].data();
    Acc* __restrict t10 = terms_[k10].data(), * __restrict t11 = terms_[k11].data();
    const int64_t across = grid_.channels * length;
    for (int64_t c = 0; c < grid_.channels; ++c) {
      const Acc* __restrict own0 = own + c * length, * __restrict own1 = own0 + across;
      const Acc* __restrict partner0 = partner + c * length, * __restrict partner1 = partner0 + across;
      for (int64_t i = 0; i < length; ++i) {
        t00[i] += std::fabs(partner0[i] - partner1[i]);
        t01[i] += std::fabs(partner0[i] - own1[i]);
        t10[i] += std::fabs(own0[i] - partner1[i]);
        t11[i] += std::fabs(own0[i] - own1[i]);
      }
    }
    const Acc channels = static_cast<Acc>(grid_.channels);
    for (auto& t : terms_)
      for (int64_t i = 0; i < length; ++i) t[i] /= channels;
  }

  // p[ab][first + j * stride] from the `cells` terms along edge j.
  void price(int64_t edges, int64_t cells, int64_t first, int64_t stride) {
    const Acc count = static_cast<Acc>(cells);
    for (int ab = 0; ab < 4; ++ab) {
      Acc* __restrict t = terms_[ab].data();
      for (int64_t j = 0; cells > 1 && j < edges; ++j) {
        Acc sum = 0;
        for (int64_t q = j * cells; q < (j + 1) * cells; ++q) sum += t[q];
        t[j] = sum / count;
      }
      for (int64_t j = 0; j < edges; ++j) t[j] = scale_.data * finite_or_zero(t[j]);
      for (int64_t j = 0; j < edges; ++j) p_[ab][first + j * stride] = t[j];
    }
  }

  void write_weights(int64_t n) const {
    const int64_t row_edges = grid_.row_edges(), column_edges = grid_.edges() - row_edges;
    auto write = [&](int64_t first, int64_t count, int32_t* __restrict to) {
      const Acc *p00 = &p_[k00][first], *p01 = &p_[k01][first], *p10 = &p_[k10][first], *p11 = &p_[k11][first];
      for (int64_t e = 0; e < count; ++e) to[e] = edge_weight(scale_, p00[e], p01[e], p10[e], p11[e]);
    };
    if (row_edges) write(0, row_edges, e_.weight_y + n * row_edges);
    if (column_edges) write(row_edges, column_edges, e_.weight_x + n * column_edges);
  }

  // Costs of showing the own image and of showing the partner at each block: saliency lost, and a share of each edge.
  void fold(int64_t n) {
    const int64_t columns = grid_.columns, blocks = grid_.rows * columns, inner = columns - 1;
    const Acc* saliency = static_cast<const Acc*>(e_.saliency);
    std::copy_n(saliency + e_.index[n] * blocks, blocks, own_.begin());
    std::copy_n(saliency + n * blocks, blocks, partner_.begin());
    add_first(0, grid_.row_edges(), 0);
    add_second(0, grid_.row_edges(), columns);
    for (int64_t i = 0; i < grid_.rows; ++i) add_first(grid_.row_edges() + i * inner, inner, i * columns);
    for (int64_t i = 0; i < grid_.rows; ++i) add_second(grid_.row_edges() + i * inner, inner, i * columns + 1);
  }

  // The shares of edges `edge` .. `edge + count - 1` in the blocks from `block` on, which are their first ends.
  void add_first(int64_t edge, int64_t count, int64_t block) {
    for (int64_t e = 0; e < count; ++e) {
      own_[block + e] += half_sum(p_[k10][edge + e], p_[k11][edge + e]);
      partner_[block + e] += half_sum(p_[k01][edge + e], p_[k00][edge + e]);
    }
  }

  void add_second(int64_t edge, int64_t count, int64_t block) {
    for (int64_t e = 0; e < count; ++e) {
      own_[block + e] += half_sum(p_[k01][edge + e], p_[k11][edge + e]);
      partner_[block + e] += half_sum(p_[k10][edge + e], p_[k00][edge + e]);
    }
  }

  void write_unary(int64_t n) {
    const int64_t blocks = grid_.rows * grid_.columns;
    const double lam = e_.lam[e_.lam_per_sample ? n : 0];
    for (int l = 0; l < e_.labels; ++l) {
      const double share = partner_share(l, e_.labels), likely = prior(e_, lam, l);
      int32_t* __restrict costs = label_.data();
      for (int64_t i = 0; i < blocks; ++i) costs[i] = label_cost(scale_.whole, share, likely, own_[i], partner_[i]);
      int32_t* to = e_.unary + n * blocks * e_.labels + l;
      for (int64_t i = 0; i < blocks; ++i) to[i * e_.labels] = costs[i];
    }
  }

  const Energy& e_;
  const CellGrid& grid_;
  const EnergyScale<Acc> scale_;
  std::vector<Acc> own_, partner_, terms_[4], p_[4];
  std::vector<int32_t> label_;
};

template <class Acc>
void energy_of(const Energy& e) {
  const CellGrid grid(e);
  const int threads = e.n * e.channels * e.height * e.width < 32768 ? 1 : e.queue.threads;
  const int64_t grain = std::max<int64_t>(1, e.n / (8 * std::max(1, threads)));
  auto pool = [&](int64_t begin, int64_t end) {
    Pooling<Acc> pooling(e, grid);
    for (int64_t n = begin; n < end; ++n) pooling.image(n, static_cast<Acc*>(e.cells) + n * grid.count());
  };
  parallel_for(e.n, grain, threads, pool);
  auto cost = [&](int64_t begin, int64_t end) {
    Costs<Acc> costs(e, grid);
    for (int64_t n = begin; n < end; ++n) costs.pair(n);
  };
  parallel_for(e.n, grain, threads, cost);
}

}  // namespace

void puzzle_energy(const Energy& e) { e.type == DType::f64 ? energy_of<double>(e) : energy_of<float>(e); }

}  // namespace FASTMIX_ISA
}  // namespace fastmix
