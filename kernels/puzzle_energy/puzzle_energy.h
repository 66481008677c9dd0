// The layout of the pooled cells and the arithmetic of `puzzle_energy`, the same on host and device. Every product is
// rounded before it is added to, as in the published code, whose integers are to be met.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastmix.h"

#ifdef __CUDACC__
#define FASTMIX_HD __host__ __device__ __forceinline__
#else
#define FASTMIX_HD inline
#endif

namespace fastmix {

// Costs beyond this are cut off. Images in [0, 1] with a saliency of sum 1 stay a factor of ten below it.
constexpr int32_t kLargestCost = 1 << 24;

// Sides of the blocks and of the cells in them; only the cells at the boundaries between blocks are ever needed. A
// boundary has two lines of cells, above and below it (or left and right of it), for each channel.
struct CellGrid {
  int64_t channels, rows, columns, side;  // rows x columns blocks; pixels along a cell
  int64_t high, wide;                     // cells along a block

  explicit FASTMIX_HD CellGrid(const Energy& e)
      : channels(e.channels),
        rows(e.rows),
        columns(e.columns),
        side(e.side),
        high(e.height / e.rows / e.side),
        wide(e.width / e.columns / e.side) {}

  FASTMIX_HD int64_t across() const { return columns * wide; }
  FASTMIX_HD int64_t down() const { return rows * high; }

  // First cell of a line along boundary b between rows (columns) of blocks, on side 0 or 1 of it.
  FASTMIX_HD int64_t row_line(int64_t b, int side, int64_t channel) const {
    return ((2 * b + side) * channels + channel) * across();
  }
  FASTMIX_HD int64_t column_line(int64_t b, int side, int64_t channel) const {
    return row_line(rows - 1, 0, 0) + ((2 * b + side) * channels + channel) * down();
  }
  FASTMIX_HD int64_t count() const { return column_line(columns - 1, 0, 0); }

  // Cells along all boundaries, on one side and of one channel.
  FASTMIX_HD int64_t places() const { return (rows - 1) * across() + (columns - 1) * down(); }

  // Pairs of neighbouring blocks: first those one above the other, then those side by side.
  FASTMIX_HD int64_t row_edges() const { return (rows - 1) * columns; }
  FASTMIX_HD int64_t edges() const { return row_edges() + rows * (columns - 1); }
};

FASTMIX_HD float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

FASTMIX_HD double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Towards zero, as a cast in C; 0 for NaN.
template <class Acc>
FASTMIX_HD int32_t truncated(Acc v) {
  constexpr Acc kLargest = static_cast<Acc>(kLargestCost);
  const Acc clamped = v < kLargest ? (v > -kLargest ? v : -kLargest) : kLargest;
  return static_cast<int32_t>(v == v ? clamped : 0);
}

// A difference that is not finite, from a pixel that is not, counts as none.
template <class Acc>
FASTMIX_HD Acc finite_or_zero(Acc v) {
  return v - v == 0 ? v : 0;
}

template <class Acc>
FASTMIX_HD Acc half_sum(Acc a, Acc b) {
  return (a + b) / 2;
}

// Settings in the precision of the costs.
template <class Acc>
struct EnergyScale {
  double whole;      // of the integers: 1000 a block
  Acc smooth, data;  // of unequal labels, and of the differences
};

template <class Acc>
FASTMIX_HD EnergyScale<Acc> energy_scale(const Energy& e) {
  const double blocks = static_cast<double>(e.rows * e.columns);
  const double smooth = e.beta / sqrt(blocks) / 16;
  return {1000 * blocks, static_cast<Acc>(smooth), static_cast<Acc>(smooth * e.gamma)};
}

// In p_ab, a (b) says whether the upper or left (lower or right) block of a pair shows the own image.
template <class Acc>
FASTMIX_HD int32_t edge_weight(const EnergyScale<Acc>& s, Acc p00, Acc p01, Acc p10, Acc p11) {
  return truncated(rounded_product(static_cast<Acc>(s.whole), (p10 + p01 - p11 - p00) / 2 + s.smooth));
}

// Share of the partner in a block of label l.
FASTMIX_HD double partner_share(int l, int labels) { return l == labels - 1 ? 1. : l * (1. / (labels - 1)); }

// -eta / blocks * log( C(L-1, l) lam^(L-1-l) (1-lam)^l + 1e-8 ), the binomial prior of label l.
FASTMIX_HD double prior(const Energy& e, double lam, int l) {
  lam = lam > 0 ? (lam < 1 ? lam : 1) : 0;
  const int most = e.labels - 1;
  double likelihood = 1;
  for (int i = 0; i < most - l; ++i) likelihood *= lam;
  for (int i = 0; i < l; ++i) likelihood *= (1 - lam);
  for (int i = 0; i < l; ++i) likelihood = likelihood * (most - i) / (i + 1);
  return e.eta * -log(likelihood + 1e-8) / static_cast<double>(e.rows * e.columns);
}

// Cost of a label from the costs of showing the own image and the partner.
template <class Acc>
FASTMIX_HD int32_t label_cost(double whole, double share, double prior, Acc own, Acc partner) {
  const double both =
      rounded_product(1 - share, static_cast<double>(own)) + rounded_product(share, static_cast<double>(partner));
  return truncated(rounded_product(whole, both + prior));
}

}  // namespace fastmix
