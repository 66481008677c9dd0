// What the losses share on the CPU: weights of labels, passes over rows of logits, reduction of rows.
// Everything has internal linkage: this header is compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pages.h"
#include "parallel.h"
#include "vec_math.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kChunk = 16 * kTile;  // classes that are summed by themselves, whatever the number of threads

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

// Weights of the labels of one row; a label that is left out has the weight 0.
struct Pair {
  double own, partner;
  bool own_counts = true, partner_counts = true;

  bool counts() const { return own_counts || partner_counts; }
  bool any() const { return own != 0 || partner != 0; }
};

inline int64_t label(const void* target, int64_t n) { return static_cast<const int64_t*>(target)[n]; }

template <class Acc>
Pair weights(const Loss& l, int64_t n) {
  const Acc own = l.lam ? static_cast<const Acc*>(l.lam)[l.lam_per_row ? n : 0] : Acc(1);
  const Acc partner = l.lam_b ? static_cast<const Acc*>(l.lam_b)[l.lam_b_per_row ? n : 0] : 1 - own;
  Pair pair{own, partner};
  if (!l.dense) {
    pair.own_counts = label(l.target, n) != l.ignore_index;
    pair.partner_counts = label(l.target_b, n) != l.ignore_index;
    if (!pair.own_counts) pair.own = 0;
    if (!pair.partner_counts) pair.partner = 0;
  }
  return pair;
}

// A weight of 0 removes a term that is not finite,
inline double weighted(double weight, double term) { return weight == 0 ? 0 : weight * term; }

// also from the gradient of that weight.
inline double weighted_by(double weight, double term) { return weight == 0 && !std::isfinite(term) ? 0 : term; }

template <class Acc>
double logit(const Loss& l, int64_t n, int64_t c) {
  Acc value[1];
  return *load(l.type, l.logits, n * l.stride + c, 1, value);
}

// Rounds one value of the gradient.
template <class Acc>
void put(const Loss& l, int64_t n, int64_t c, double value) {
  Acc v[1] = {static_cast<Acc>(value)};
  const int64_t offset = n * l.classes + c;
  *place(l.type, l.grad_logits, offset, v) = v[0];
  store(l.type, l.grad_logits, offset, 1, v);
}

template <class Acc>
void put_all(const Loss& l, int64_t n, int64_t begin, int64_t end, Acc value) {
  Acc tile[kTile];
  std::fill(tile, tile + kTile, value);
  for (int64_t c = begin; c < end; c += kTile) {
    const int64_t count = std::min(kTile, end - c), offset = n * l.classes + c;
    Acc* to = place(l.type, l.grad_logits, offset, tile);
    if (to != tile) std::copy(tile, tile + count, to);
    store(l.type, l.grad_logits, offset, count, tile);
  }
}

// f(v, i) for whole groups of lanes from i on; the last group is a copy filled up with `pad`.
template <class Acc, class F>
inline void by_lanes(const Acc* v, int64_t count, Acc pad, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(v + i, i);
  if (i == count) return;
  Acc last[kLanes];
  std::copy(v + i, v + count, last);
  std::fill(last + (count - i), last + kLanes, pad);
  f(last, i);
}

// Joins the lanes two by two.
template <class Acc, class F>
inline Acc fold(Acc (&lanes)[kLanes], F join) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] = join(lanes[l], lanes[l + half]);
  return lanes[0];
}

template <class Acc>
inline double sum_lanes(Acc (&lanes)[kLanes]) {
  return fold(lanes, [](Acc a, Acc b) { return a + b; });
}

// Gradient of the result in row n's own loss.
template <class Acc>
double row_grad(const Loss& l, int64_t n) {
  return static_cast<double>(static_cast<const Acc*>(l.grad)[l.reduction ? 0 : n]) * *static_cast<const Acc*>(l.scale);
}

inline int64_t chunks(const Loss& l) { return (l.classes + kChunk - 1) / kChunk; }

inline int threads_for(const Loss& l) { return l.n * l.classes < 32768 ? 1 : l.threads; }

// f(n, chunk, begin, end) for every row and chunk, one after another or, in no order, in parallel.
template <class F>
void for_chunks(const Loss& l, F f) {
  const int64_t parts = chunks(l), items = l.n * parts;
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / parts, chunk = item % parts;
      f(n, chunk, chunk * kChunk, std::min(l.classes, (chunk + 1) * kChunk));
    }
  };
  const int threads = threads_for(l);
  parallel_for(items, std::max<int64_t>(1, items / (8 * std::max(1, threads))), threads, body);
}

// The same for a pass that writes the gradient.
template <class F>
void for_gradient(const Loss& l, F f) {
  expect_result(l.grad_logits, l.n * l.classes * size_of(l.type));
  for_chunks(l, [&](int64_t n, int64_t, int64_t begin, int64_t end) { f(n, begin, end); });
}

// sums(n, begin, end) of the chunks of each row, added up in order, then row(n, sum), a double; `out` is made of those.
template <class Acc, class Sums, class F, class G>
void reduce_rows(const Loss& l, F sums, G row) {
  const int64_t parts = chunks(l);
  std::vector<double> losses(l.n);
  if (parts == 1 || l.n >= 2 * l.threads || threads_for(l) == 1) {
    auto body = [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        Sums all{};
        for (int64_t c = 0; c < l.classes; c += kChunk) all.add(sums(n, c, std::min(l.classes, c + kChunk)));
        losses[n] = row(n, all);
      }
    };
    parallel_for(l.n, std::max<int64_t>(1, l.n / (8 * std::max(1, l.threads))), threads_for(l), body);
  } else {
    std::vector<Sums> partial(l.n * parts);
    for_chunks(l, [&](int64_t n, int64_t chunk, int64_t begin, int64_t end) {
      partial[n * parts + chunk] = sums(n, begin, end);
    });
    for (int64_t n = 0; n < l.n; ++n) {
      Sums all{};
      for (int64_t chunk = 0; chunk < parts; ++chunk) all.add(partial[n * parts + chunk]);
      losses[n] = row(n, all);
    }
  }
  Acc* out = static_cast<Acc*>(l.out);
  double total = 0, scale = 1;
  if (l.reduction == 0)
    std::copy(losses.begin(), losses.end(), out);
  else
    for (double loss : losses) total += loss;
  if (l.reduction == 1) {
    int64_t counted = 0;
    for (int64_t n = 0; n < l.n; ++n) counted += weights<Acc>(l, n).counts();
    scale = 1. / static_cast<double>(counted);
    total /= static_cast<double>(counted);
  }
  if (l.reduction) *out = static_cast<Acc>(total);
  *static_cast<Acc*>(l.scale) = static_cast<Acc>(scale);
}

template <class F>
void with_type(const Loss& l, F f) {
  if (l.type == DType::f64)
    f(double());
  else
    f(float());
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
