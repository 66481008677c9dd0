// CPU kernels of `soft_cross_entropy`: logits and dense targets are read once forward and once backward.
#include "kernels/mix_cross_entropy/dense_targets.h"
#include "kernels/mix_cross_entropy/softmax_sums.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

template <class Acc>
SoftmaxSums sums_of(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  alignas(64) Acc tile[kTile], targets[kTile];
  SoftmaxSums sums;
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c);
    const Acc* v = load(l.type, l.logits, n * l.stride + c, count, tile);
    sums.raise(largest_of(v, count));
    const Acc base = static_cast<Acc>(sums.base());
    sums.exps += exp_sum(v, count, base);
    sums.own.add(distance(v, dense_tile(l, l.target, n, c, count, targets), count, base));
    if (l.target_b) sums.partner.add(distance(v, dense_tile(l, l.target_b, n, c, count, targets), count, base));
    if (l.smoothing != 0) sums.uniform.add(distance(v, count, base));
  }
  return sums;
}

template <class Acc>
double finish(const Loss& l, int64_t n, const SoftmaxSums& sums) {
  const Pair w = weights<Acc>(l, n);
  const double log_exps = std::log(sums.exps);
  auto term = [&](const Distance& d) {
    const double hard = d.sum + (d.mass == 0 ? 0 : d.mass * log_exps);
    if (l.smoothing == 0) return hard;
    return (1 - l.smoothing) * hard + l.smoothing * (sums.uniform.sum / static_cast<double>(l.classes) + log_exps);
  };
  const double own = weighted_by(w.own, term(sums.own));
  const double partner = l.target_b ? weighted_by(w.partner, term(sums.partner)) : 0;
  keep<Acc>(l, n, sums);
  keep<Acc>(l, 2, n, own), keep<Acc>(l, 3, n, partner);
  keep<Acc>(l, 4, n, weighted(w.own, sums.own.mass) + weighted(w.partner, sums.partner.mass));
  return weighted(w.own, own) + weighted(w.partner, partner);
}

// out = factor * exp(v - base) - own * a - partner * b - rest; b may be null.
template <class Acc>
void scaled_exp(const Acc* __restrict v, const Acc* __restrict a, const Acc* __restrict b, int64_t count, Acc base,
                Acc factor, Acc own, Acc partner, Acc rest, Acc* __restrict out) {
  if (b)
    for (int64_t i = 0; i < count; ++i) out[i] = factor * exp_down(v[i] - base) - (own * a[i] + partner * b[i]) - rest;
  else
    for (int64_t i = 0; i < count; ++i) out[i] = factor * exp_down(v[i] - base) - own * a[i] - rest;
}

template <class Acc>
void gradient(const Loss& l, int64_t n, int64_t begin, int64_t end) {
  const Pair w = weights<Acc>(l, n);
  if (!w.any()) return put_all(l, n, begin, end, Acc(0));
  const double g = row_grad<Acc>(l, n), even = g * l.smoothing * (w.own + w.partner);
  const double mass = g * (1 - l.smoothing) * kept<Acc>(l, 4, n) + even;
  const Acc base = kept<Acc>(l, 0, n), factor = static_cast<Acc>(mass / kept<Acc>(l, 1, n));
  const Acc own = static_cast<Acc>(g * (1 - l.smoothing) * w.own);
  const Acc partner = static_cast<Acc>(g * (1 - l.smoothing) * w.partner);
  const Acc rest = static_cast<Acc>(even / static_cast<double>(l.classes));
  alignas(64) Acc tile[kTile], a[kTile], b[kTile], result[kTile];
  std::fill(a, a + kTile, Acc(0));  // targets of weight 0 are not looked at
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c), offset = n * l.classes + c;
    const Acc* v = load(l.type, l.logits, n * l.stride + c, count, tile);
    const Acc* own_targets = w.own == 0 ? a : load(l.target_type, l.target, offset, count, a);
    const Acc* other = l.target_b && w.partner != 0 ? load(l.target_type, l.target_b, offset, count, b) : nullptr;
    scaled_exp(v, own_targets, other, count, base, factor, own, partner, rest,
               place(l.type, l.grad_logits, offset, result));
    store(l.type, l.grad_logits, offset, count, result);
  }
}

}  // namespace

void soft_cross_entropy(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    reduce_rows<Acc, SoftmaxSums>(
        l, [&](int64_t n, int64_t begin, int64_t end) { return sums_of<Acc>(l, n, begin, end); },
        [&](int64_t n, const SoftmaxSums& sums) { return finish<Acc>(l, n, sums); });
  });
}

void soft_cross_entropy_grad(const Loss& l) {
  with_type(l, [&](auto acc) {
    using Acc = decltype(acc);
    for_gradient(l, [&](int64_t n, int64_t begin, int64_t end) { gradient<Acc>(l, n, begin, end); });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
