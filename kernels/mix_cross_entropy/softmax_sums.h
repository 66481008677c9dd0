// The sums of a row that cross entropies are made of, found in one pass over its logits.
#pragma once

#include "rows.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// sum_c t_c (reference - z_c) and sum_c t_c for targets t. Nothing cancels: the reference is the largest logit.
struct Distance {
  double sum = 0, mass = 0;

  void raise(double by) {
    if (mass != 0) sum += by * mass;
  }
  void add(const Distance& other) { sum += other.sum, mass += other.mass; }
};

struct SoftmaxSums {
  double largest = -kInfinity<double>;
  double exps = 0;  // sum_c exp(z_c - base())
  Distance own, partner, uniform;

  double base() const { return largest == -kInfinity<double> ? 0 : largest; }

  void raise(double to) {
    if (!(to > largest)) return;
    const double by = to - largest;
    if (exps != 0) exps *= std::exp(-by);
    own.raise(by), partner.raise(by), uniform.raise(by);
    largest = to;
  }

  void add(SoftmaxSums other) {
    raise(other.largest), other.raise(largest);
    exps += other.exps;
    own.add(other.own), partner.add(other.partner), uniform.add(other.uniform);
  }
};

template <class Acc>
double largest_of(const Acc* v, int64_t count) {
  Acc lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -kInfinity<Acc>);
  by_lanes(v, count, -kInfinity<Acc>, [&](const Acc* z, int64_t) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = z[l] > lanes[l] ? z[l] : lanes[l];
  });
  return fold(lanes, [](Acc a, Acc b) { return a > b ? a : b; });
}

template <class Acc>
double exp_sum(const Acc* v, int64_t count, Acc base) {
  Acc lanes[kLanes] = {};
  by_lanes(v, count, -kInfinity<Acc>, [&](const Acc* z, int64_t) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += exp_down(z[l] - base);
  });
  return sum_lanes(lanes);
}

template <class Acc>
Distance distance(const Acc* v, int64_t count, Acc base) {
  Acc lanes[kLanes] = {};
  by_lanes(v, count, base, [&](const Acc* z, int64_t) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += base - z[l];
  });
  return {sum_lanes(lanes), static_cast<double>(count)};
}

// `t` can be read beyond `count`, up to a whole group of lanes.
template <class Acc>
Distance distance(const Acc* v, const Acc* t, int64_t count, Acc base) {
  Acc sums[kLanes] = {}, masses[kLanes] = {};
  by_lanes(v, count, base, [&](const Acc* z, int64_t i) {
    for (int l = 0; l < kLanes; ++l) {
      const Acc far = t[i + l] * (base - z[l]);
      sums[l] += t[i + l] == 0 ? 0 : far;
      masses[l] += t[i + l];
    }
  });
  return {sum_lanes(sums), sum_lanes(masses)};
}

// out = factor * exp(v - base) - rest
template <class Acc>
void scaled_exp(const Acc* __restrict v, int64_t count, Acc base, Acc factor, Acc rest, Acc* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = factor * exp_down(v[i] - base) - rest;
}

// What the passes leave behind of a row; two rows of `stats`.
template <class Acc>
void keep(const Loss& l, int64_t n, const SoftmaxSums& sums) {
  static_cast<Acc*>(l.stats)[n] = static_cast<Acc>(sums.base());
  static_cast<Acc*>(l.stats)[l.n + n] = static_cast<Acc>(sums.exps);
}

template <class Acc>
Acc kept(const Loss& l, int row, int64_t n) {
  return static_cast<const Acc*>(l.stats)[row * l.n + n];
}

template <class Acc>
void keep(const Loss& l, int row, int64_t n, double value) {
  static_cast<Acc*>(l.stats)[row * l.n + n] = static_cast<Acc>(value);
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
