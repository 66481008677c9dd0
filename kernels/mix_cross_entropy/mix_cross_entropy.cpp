// CPU kernels of `mix_cross_entropy`: one pass over the logits forward, one pass backward.
#include "softmax_sums.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// log(1 + e^x)
double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

double log_add(double x, double y) {
  const double most = std::max(x, y);
  return most == -kInfinity<double> ? most : most + std::log(std::exp(x - most) + std::exp(y - most));
}

// Whether a row gets the decoupled part. The sums of such a row leave out both labels, because what remains when one
// label is taken away must not be a difference of large numbers.
bool decoupled(const Loss& l, int64_t n, const Pair& w) {
  return l.decouple != 0 && w.own != 0 && w.partner != 0 && label(l.target, n) != label(l.target_b, n);
}

// `v` with the logits of the classes `hidden` (none if negative) replaced by -inf, from class `first` on.
template <class Acc>
const Acc* without(const Acc* v, int64_t first, int64_t count, const int64_t (&hidden)[2], Acc* copy) {
  for (int64_t c : hidden)
    if (c >= first && c < first + count) {
      if (v != copy) std::copy(v, v + count, copy);
      copy[c - first] = -kInfinity<Acc>;
      v = copy;
    }
  return v;
}

template <class Acc>
SoftmaxSums sums_of(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  const bool apart = decoupled(l, n, weights<Acc>(l, n));
  const int64_t hidden[2] = {apart ? label(l.target, n) : -1, apart ? label(l.target_b, n) : -1};
  alignas(64) Acc tile[kTile], copy[kTile];
  SoftmaxSums sums;
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c);
    const Acc* all = load(l.type, l.logits, n * l.stride + c, count, tile);
    const Acc* v = without(all, c, count, hidden, copy);
    sums.raise(largest_of(v, count));
    const Acc base = static_cast<Acc>(sums.base());
    sums.exps += exp_sum(v, count, base);
    if (l.smoothing != 0) sums.uniform.add(distance(all, count, base));
  }
  return sums;
}

template <class Acc>
double finish(const Loss& l, int64_t n, const SoftmaxSums& sums) {
  const Pair w = weights<Acc>(l, n);
  const int64_t a = label(l.target, n), b = label(l.target_b, n);
  keep<Acc>(l, n, sums);
  const double za = w.own_counts ? logit<Acc>(l, n, a) : 0, zb = w.partner_counts ? logit<Acc>(l, n, b) : 0;
  double own, partner, lse_less_base, extra = 0;
  if (decoupled(l, n, w)) {
    const double rest = sums.base() + std::log(sums.exps);
    own = softplus(log_add(rest, zb) - za), partner = softplus(log_add(rest, za) - zb);
    lse_less_base = log_add(log_add(rest, za), zb) - sums.base();
    extra = l.decouple * (softplus(rest - za) + softplus(rest - zb));
  } else {
    lse_less_base = std::log(sums.exps);
    own = sums.base() - za + lse_less_base, partner = sums.base() - zb + lse_less_base;
  }
  if (l.smoothing != 0) {
    const double even = l.smoothing * (sums.uniform.sum / static_cast<double>(l.classes) + lse_less_base);
    own = (1 - l.smoothing) * own + even, partner = (1 - l.smoothing) * partner + even;
  }
  keep<Acc>(l, 2, n, own = w.own_counts ? weighted_by(w.own, own) : 0);
  keep<Acc>(l, 3, n, partner = w.partner_counts ? weighted_by(w.partner, partner) : 0);
  return weighted(w.own, own) + weighted(w.partner, partner) + extra;
}

// Gradient of one row: `factor * exp(z - base) - rest`, and what the classes of the labels have instead.
struct RowGrad {
  double base, factor, rest, own, partner;
};

template <class Acc>
RowGrad row_gradient(const Loss& l, int64_t n, const Pair& w) {
  const double g = row_grad<Acc>(l, n), base = kept<Acc>(l, 0, n), exps = kept<Acc>(l, 1, n);
  const double mass = w.own + w.partner;
  RowGrad row{base, g * mass / exps, g * mass * l.smoothing / static_cast<double>(l.classes), 0, 0};
  const double hard_own = g * (1 - l.smoothing) * w.own, hard_partner = g * (1 - l.smoothing) * w.partner;
  const int64_t a = label(l.target, n), b = label(l.target_b, n);
  const double za = w.own_counts ? logit<Acc>(l, n, a) : 0, zb = w.partner_counts ? logit<Acc>(l, n, b) : 0;
  if (decoupled(l, n, w)) {
    const double rest = base + std::log(exps), no_b = log_add(rest, za), no_a = log_add(rest, zb);
    const double lse = log_add(no_b, zb);
    auto share = [&](double z) {
      return mass * std::exp(z - lse) + l.decouple * (std::exp(z - no_b) + std::exp(z - no_a));
    };
    row.factor = exps == 0 ? 0 : g * share(base);
    row.own = g * (mass * std::exp(za - lse) + l.decouple * (std::exp(za - no_b) - 1)) - row.rest - hard_own;
    row.partner = g * (mass * std::exp(zb - lse) + l.decouple * (std::exp(zb - no_a) - 1)) - row.rest - hard_partner;
  } else {
    const bool same = w.own_counts && w.partner_counts && a == b;
    row.own = row.factor * std::exp(za - base) - row.rest - hard_own - (same ? hard_partner : 0);
    row.partner = row.factor * std::exp(zb - base) - row.rest - hard_partner - (same ? hard_own : 0);
  }
  return row;
}

template <class Acc>
void gradient(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  const Pair w = weights<Acc>(l, n);
  if (!w.any()) return put_all(l, n, begin, end, Acc(0));
  const RowGrad row = row_gradient<Acc>(l, n, w);
  const Acc base = static_cast<Acc>(row.base), factor = static_cast<Acc>(row.factor), rest = static_cast<Acc>(row.rest);
  alignas(64) Acc tile[kTile], result[kTile];
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c), offset = n * l.classes + c;
    const Acc* v = load(l.type, l.logits, n * l.stride + c, count, tile);
    scaled_exp(v, count, base, factor, rest, place(l.type, l.grad_logits, offset, result));
    store(l.type, l.grad_logits, offset, count, result);
  }
  const int64_t a = label(l.target, n), b = label(l.target_b, n);
  if (w.own_counts && a >= begin && a < end) put<Acc>(l, n, a, row.own);
  if (w.partner_counts && b >= begin && b < end) put<Acc>(l, n, b, row.partner);
}

}  // namespace

void mix_cross_entropy(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    reduce_rows<Acc, SoftmaxSums>(
        l, [&](int64_t n, int64_t begin, int64_t end) { return sums_of<Acc>(l, n, begin, end); },
        [&](int64_t n, const SoftmaxSums& sums) { return finish<Acc>(l, n, sums); });
  });
}

void mix_cross_entropy_grad(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    for_gradient(l, [&](int64_t n, int64_t begin, int64_t end) { gradient<Acc>(l, n, begin, end); });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
