// CPU kernels of `mix_binary_cross_entropy`: one pass over the logits forward, one pass backward.
#include "kernels/mix_cross_entropy/dense_targets.h"
#include "kernels/mix_cross_entropy/rows.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// The mixed targets of one row, a tile at a time.
template <class Acc>
class Targets {
 public:
  Targets(const Loss& l, int64_t n)
      : l_(l),
        n_(n),
        w_(weights<Acc>(l, n)),
        cut_(!std::isnan(l.threshold)),
        off_(l.smoothing / static_cast<double>(l.classes)),
        keep_(static_cast<Acc>(1 - l.smoothing)),
        half_(static_cast<Acc>(0.5 * l.smoothing)) {
    if (l.dense) return;
    const Acc off = static_cast<Acc>(off_), on = static_cast<Acc>(1 - l.smoothing + off_);
    label_[0] = w_.own_counts ? label(l.target, n) : -1;
    label_[1] = w_.partner_counts ? label(l.target_b, n) : -1;
    const bool same = label_[0] == label_[1];
    at_[0] = mixed(on, same ? on : off), at_[1] = mixed(same ? on : off, on), rest_ = mixed(off, off);
    std::fill(tile_, tile_ + kTile, rest_);
  }

  // Targets of the classes from c on; 0 beyond `count`, up to a whole group of lanes.
  const Acc* tile(int64_t c, int64_t count) {
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    if (l_.dense) {
      alignas(64) Acc other[kTile];
      const Acc* a = dense(0, c, count, tile_);
      const Acc* b = dense(1, c, count, other);
      for (int64_t i = 0; i < count; ++i) tile_[i] = mixed(smoothed(a[i]), smoothed(b[i]));
    } else {
      if (patched_) std::fill(tile_, tile_ + kTile, rest_);
      patched_ = padded != count;
      for (int side : {0, 1})
        if (label_[side] >= c && label_[side] < c + count) tile_[label_[side] - c] = at_[side], patched_ = true;
    }
    std::fill(tile_ + count, tile_ + padded, Acc(0));
    return tile_;
  }

  // Adds what the weights multiply: minus the sum over classes of either target times the logit.
  void add_terms(const Acc* v, int64_t c, int64_t count, double (&terms)[2]) const {
    if (cut_) return;
    double sum = 0;
    if (!l_.dense && off_ != 0)
      for (int64_t i = 0; i < count; ++i) sum += v[i];
    for (int side : {0, 1}) {
      const double weight = side ? w_.partner : w_.own;
      if (l_.dense) {
        alignas(64) Acc targets[kTile];
        const Acc* t = dense(side, c, count, targets);
        for (int64_t i = 0; i < count; ++i) terms[side] -= weighted(smoothed(t[i]), weighted_by(weight, v[i]));
      } else if (label_[side] >= 0) {
        terms[side] -= weighted(off_, weight == 0 && !std::isfinite(sum) ? finite_sum(v, count) : sum);
        if (label_[side] >= c && label_[side] < c + count)
          terms[side] -= (1 - l_.smoothing) * weighted_by(weight, v[label_[side] - c]);
      }
    }
  }

 private:
  // Products and sum are rounded one by one, as PyTorch does, so that a threshold decides the same.
  Acc mixed(Acc a, Acc b) const {
    const Acc t = static_cast<Acc>(w_.own) * a + static_cast<Acc>(w_.partner) * b;
    return !cut_ ? t : t > static_cast<Acc>(l_.threshold) ? Acc(1) : Acc(0);
  }

  // Dense targets of one side; of weight 0, those that are not finite are 0.
  const Acc* dense(int side, int64_t c, int64_t count, Acc* tile) const {
    const Acc* t = load(l_.target_type, side ? l_.target_b : l_.target, n_ * l_.classes + c, count, tile);
    if ((side ? w_.partner : w_.own) != 0) return t;
    for (int64_t i = 0; i < count; ++i) tile[i] = std::isfinite(t[i]) ? t[i] : Acc(0);
    return tile;
  }

  static double finite_sum(const Acc* v, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += weighted_by(0, v[i]);
    return sum;
  }

  Acc smoothed(Acc y) const { return y * keep_ + half_; }

  const Loss& l_;
  const int64_t n_;
  const Pair w_;
  const bool cut_;
  const double off_;
  const Acc keep_, half_;
  int64_t label_[2] = {-1, -1};
  Acc at_[2] = {}, rest_ = 0;
  bool patched_ = false;
  alignas(64) Acc tile_[kTile];
};

struct BinarySums {
  double loss = 0;
  double terms[2] = {0, 0};

  void add(const BinarySums& other) { loss += other.loss, terms[0] += other.terms[0], terms[1] += other.terms[1]; }
};

// Sum of log(1 + exp(-|z|)) and of max(z, 0) - t z over a tile. The logarithm is taken once, of the product of all
// 1 + u, which is carried as its distance from 1: nothing is lost where every u is small.
template <class Acc>
double tile_loss(const Acc* v, const Acc* t, int64_t count) {
  Acc linear[kLanes] = {}, beyond[kLanes] = {};
  by_lanes(v, count, -kInfinity<Acc>, [&](const Acc* z, int64_t i) {
    for (int l = 0; l < kLanes; ++l) {
      const Acc target = t[i + l], product = target * z[l];
      const Acc u = exp_down(z[l] > 0 ? -z[l] : z[l]);
      linear[l] += (z[l] > 0 ? z[l] : 0) - (target == 0 ? 0 : product);
      beyond[l] = beyond[l] + u + beyond[l] * u;
    }
  });
  double all = 0;  // below 2^kTile
  for (int l = 0; l < kLanes; ++l) all += beyond[l] + all * beyond[l];
  return sum_lanes(linear) + std::log1p(all);
}

static_assert(kTile <= 1000, "the product of a tile is a double");

template <class Acc>
BinarySums sums_of(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  Targets<Acc> targets(l, n);
  alignas(64) Acc tile[kTile];
  BinarySums sums;
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c);
    const Acc* v = load(l.type, l.logits, n * l.stride + c, count, tile);
    sums.loss += tile_loss(v, targets.tile(c, count), count);
    if (l.stats) targets.add_terms(v, c, count, sums.terms);
  }
  return sums;
}

double class_share(const Loss& l) { return l.sum_classes ? 1 : 1 / static_cast<double>(l.classes); }

template <class Acc>
double finish(const Loss& l, int64_t n, const BinarySums& sums) {
  const Pair w = weights<Acc>(l, n);
  const double share = class_share(l);
  for (int side : {0, 1})
    if (l.stats) static_cast<Acc*>(l.stats)[side * l.n + n] = static_cast<Acc>(share * sums.terms[side]);
  return w.counts() ? share * sums.loss : 0;
}

// out = factor * (sigmoid(v) - t)
template <class Acc>
void sigmoid_less_target(const Acc* __restrict v, const Acc* __restrict t, int64_t count, Acc factor,
                         Acc* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = factor * (sigmoid(v[i]) - t[i]);
}

template <class Acc>
void gradient(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  if (!weights<Acc>(l, n).counts()) return put_all(l, n, begin, end, Acc(0));
  Targets<Acc> targets(l, n);
  const Acc factor = static_cast<Acc>(row_grad<Acc>(l, n) * class_share(l));
  alignas(64) Acc tile[kTile], result[kTile];
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c), offset = n * l.classes + c;
    const Acc* v = load(l.type, l.logits, n * l.stride + c, count, tile);
    sigmoid_less_target(v, targets.tile(c, count), count, factor, place(l.type, l.grad_logits, offset, result));
    store(l.type, l.grad_logits, offset, count, result);
  }
}

}  // namespace

void mix_binary_cross_entropy(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    reduce_rows<Acc, BinarySums>(
        l, [&](int64_t n, int64_t begin, int64_t end) { return sums_of<Acc>(l, n, begin, end); },
        [&](int64_t n, const BinarySums& sums) { return finish<Acc>(l, n, sums); });
  });
}

void mix_binary_cross_entropy_grad(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    for_gradient(l, [&](int64_t n, int64_t begin, int64_t end) { gradient<Acc>(l, n, begin, end); });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
