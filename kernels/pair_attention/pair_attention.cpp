// CPU kernels of `pair_attention`. A block of rows of P exists at a time, [rows, positions], in second-level cache.
#include <limits>
#include <vector>

#include "gemm.h"
#include "parallel.h"
#include "vec_math.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kSumLanes = 32;

// Rows of P made at once: as many as keep [rows, positions] within half a megabyte, in whole register blocks.
template <class T>
int64_t block_rows(int64_t positions) {
  const int64_t fit =
      (int64_t{512} << 10) / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(1, padded<T>(positions));
  return std::max<int64_t>(1, std::min<int64_t>(8, fit / kMaxRows)) * kMaxRows;
}

// scores[i, s] = left[i] . right[s] for a block of rows; `right` packed by pack_transposed.
template <class T>
void score_block(int64_t rows, int64_t positions, int64_t dim, const T* left, const T* right, T* scores) {
  const int64_t stride = padded<T>(positions);
  for (int64_t s = 0; s < stride; s += kPanel<T>)
    panel<T>(rows, dim, left, dim, 1, right + s * dim, kPanel<T>, scores + s, stride, false);
}

// v = v * scale + bias; returns the largest.
template <class T>
T scaled_maximum(T* __restrict v, T scale, const T* __restrict bias, int64_t count) {
  T lanes[kSumLanes];
  std::fill(lanes, lanes + kSumLanes, -std::numeric_limits<T>::infinity());
  if (bias)
    for (int64_t i = 0; i < count; ++i) v[i] = v[i] * scale + bias[i];
  else
    for (int64_t i = 0; i < count; ++i) v[i] *= scale;
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int l = 0; l < kSumLanes; ++l) lanes[l] = v[i + l] > lanes[l] ? v[i + l] : lanes[l];
  for (; i < count; ++i) lanes[0] = v[i] > lanes[0] ? v[i] : lanes[0];
  return *std::max_element(lanes, lanes + kSumLanes);
}

template <class T>
void exp_minus(T* __restrict v, T offset, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = exp_(v[i] - offset);
}

template <class T>
T dot(const T* __restrict a, const T* __restrict b, int64_t count) {
  T lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  T total = 0;
  for (; i < count; ++i) total += a[i] * b[i];
  for (T lane : lanes) total += lane;
  return total;
}

template <class T>
T sum(const T* __restrict a, int64_t count) {
  T lanes[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += a[i + l];
  T total = 0;
  for (; i < count; ++i) total += a[i];
  for (T lane : lanes) total += lane;
  return total;
}

template <class T>
const T* vector_of(const void* base, int64_t n, int64_t positions) {
  return base ? static_cast<const T*>(base) + n * positions : nullptr;
}

template <class T>
T* vector_of(void* base, int64_t n, int64_t positions) {
  return base ? static_cast<T*>(base) + n * positions : nullptr;
}

// Splits the rows of every output so that a few outputs still feed all threads; rows do not depend on each other.
template <class F>
void for_row_ranges(const Attention& a, int64_t rows_per_block, F f) {
  const int64_t blocks = (a.positions + rows_per_block - 1) / rows_per_block;
  const int64_t n = a.outputs(), wanted = n ? (4 * a.threads + n - 1) / n : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(blocks, wanted));
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % parts;
      f(item / parts, part * blocks / parts * rows_per_block,
        std::min(a.positions, (part + 1) * blocks / parts * rows_per_block));
    }
  };
  const bool small = n * a.positions * a.positions * a.dim < 65536;
  parallel_for(n * parts, 1, small ? 1 : a.threads, body);
}

template <class T>
void rows_of(const Attention& a) {
  const int64_t r = a.positions, d = a.dim, rows = block_rows<T>(r);
  for_row_ranges(a, rows, [&](int64_t n, int64_t begin, int64_t end) {
    std::vector<T> keys(padded<T>(r) * d), scores(rows * padded<T>(r)), copy(rows * d);
    pack_transposed(a.type, a.k, a.index[n] * r * d, r, d, keys.data());
    const T* values = vector_of<T>(a.b, n, r);
    for (int64_t p0 = begin; p0 < end; p0 += rows) {
      const int64_t count = std::min(rows, end - p0);
      const T* queries = rows_as<T>(a.type, a.q, (n % a.n * r + p0) * d, count, d, d, copy.data());
      score_block<T>(count, r, d, queries, keys.data(), scores.data());
      for (int64_t i = 0; i < count; ++i) {
        T* row = &scores[i * padded<T>(r)];
        const T largest = scaled_maximum<T>(row, static_cast<T>(a.scale), vector_of<T>(a.key_bias, n, r), r);
        exp_minus(row, largest, r);
        const T total = sum(row, r);
        vector_of<T>(a.rows, n, r)[p0 + i] = dot(row, values, r) / total;
        vector_of<T>(a.lse, n, r)[p0 + i] = largest + std::log(total);
      }
    }
  });
}

// With lse at hand the columns of P do not depend on each other either: keys take the place of the queries.
template <class T>
void cols_of(const Attention& a) {
  const int64_t r = a.positions, d = a.dim, rows = block_rows<T>(r);
  for_row_ranges(a, rows, [&](int64_t n, int64_t begin, int64_t end) {
    std::vector<T> queries(padded<T>(r) * d), scores(rows * padded<T>(r)), copy(rows * d), minus_lse(r);
    pack_transposed(a.type, a.q, n % a.n * r * d, r, d, queries.data());
    const T* bias = vector_of<T>(a.key_bias, n, r);
    for (int64_t p = 0; p < r; ++p) minus_lse[p] = -vector_of<T>(a.lse, n, r)[p];
    for (int64_t s0 = begin; s0 < end; s0 += rows) {
      const int64_t count = std::min(rows, end - s0);
      const T* keys = rows_as<T>(a.type, a.k, (a.index[n] * r + s0) * d, count, d, d, copy.data());
      score_block<T>(count, r, d, keys, queries.data(), scores.data());
      for (int64_t i = 0; i < count; ++i) {
        T* column = &scores[i * padded<T>(r)];
        scaled_maximum<T>(column, static_cast<T>(a.scale), minus_lse.data(), r);
        exp_minus(column, bias ? -bias[s0 + i] : T(0), r);
        vector_of<T>(a.cols, n, r)[s0 + i] = dot(column, vector_of<T>(a.a, n, r), r);
      }
    }
  });
}

// Turns a row of scores into dS = P a (b - c), adding P a to `cols` and dS to `dbias`.
template <class T>
void score_gradient(T* __restrict row, T scale, T lse, T a, const T* __restrict b, T c, const T* __restrict bias,
                    T* __restrict cols, T* __restrict dbias, int64_t count) {
  if (bias)
    for (int64_t s = 0; s < count; ++s) row[s] = exp_(row[s] * scale + bias[s] - lse) * a;
  else
    for (int64_t s = 0; s < count; ++s) row[s] = exp_(row[s] * scale - lse) * a;
  if (cols)
    for (int64_t s = 0; s < count; ++s) cols[s] += row[s];
  for (int64_t s = 0; s < count; ++s) row[s] *= b[s] - c;
  if (dbias)
    for (int64_t s = 0; s < count; ++s) dbias[s] += row[s];
}

// out[rows, dim] = scale * from[rows, stride], rounded to the type of the gradients.
template <class T>
void store_scaled(const Attention& a, T* from, int64_t stride, int64_t rows, void* out, int64_t offset) {
  for (int64_t i = 0; i < rows; ++i) {
    T* row = from + i * stride;
    for (int64_t k = 0; k < a.dim; ++k) row[k] *= static_cast<T>(a.scale);
    if (size_of(a.grad_type) == sizeof(T))
      std::memcpy(at(out, a.grad_type, offset + i * a.dim), row, a.dim * sizeof(T));
    else
      for (int64_t k = 0; k < a.dim; k += kTile)
        store(a.grad_type, out, offset + i * a.dim + k, std::min(kTile, a.dim - k), row + k);
  }
}

// One thread owns a target j with all the samples n whose partner it is, so that no sum crosses threads.
template <class T>
void grad_of(const Attention& a) {
  const int64_t r = a.positions, d = a.dim, rows = block_rows<T>(r), stride = padded<T>(d), width = padded<T>(r);
  constexpr int64_t kDepth = 256;  // keys a step of dq reads: they stay in cache for all rows of the block
  auto body = [&](int64_t begin, int64_t end) {
    std::vector<T> packed(width * d), key_copy(r * stride), query_copy(rows * stride), scores(rows * width);
    std::vector<T> narrow_copy(rows * d), dq(rows * stride), dk(r * stride);
    for (int64_t j = begin; j < end; ++j) {
      pack_transposed(a.type, a.k, j * r * d, r, d, packed.data());
      const T* keys = rows_as<T>(a.type, a.k, j * r * d, r, d, stride, key_copy.data());
      std::fill(dk.begin(), dk.end(), T(0));
      for (int64_t i = a.start[j]; i < a.start[j + 1]; ++i) {
        const int64_t n = a.order[i];
        T *cols = vector_of<T>(a.cols, n, r), *dbias = vector_of<T>(a.dbias, n, r);
        if (cols) std::fill(cols, cols + r, T(0));
        if (dbias) std::fill(dbias, dbias + r, T(0));
        for (int64_t p0 = 0; p0 < r; p0 += rows) {
          const int64_t count = std::min(rows, r - p0), first = (n * r + p0) * d;
          score_block<T>(count, r, d, rows_as<T>(a.type, a.q, first, count, d, d, narrow_copy.data()), packed.data(),
                         scores.data());
          for (int64_t q = 0; q < count; ++q)
            score_gradient<T>(&scores[q * width], static_cast<T>(a.scale), vector_of<T>(a.lse, n, r)[p0 + q],
                              vector_of<T>(a.a, n, r)[p0 + q], vector_of<T>(a.b, n, r), vector_of<T>(a.c, n, r)[p0 + q],
                              vector_of<T>(a.key_bias, n, r), cols, dbias, r);
          for (int64_t s = 0; s < r && a.dq; s += kDepth)
            for (int64_t k = 0; k < stride; k += kPanel<T>)
              panel<T>(count, std::min(kDepth, r - s), &scores[s], width, 1, keys + s * stride + k, stride, &dq[k],
                       stride, s > 0);
          if (a.dq) store_scaled(a, dq.data(), stride, count, a.dq, first);
          const T* queries = rows_as<T>(a.type, a.q, first, count, d, stride, query_copy.data());
          for (int64_t s = 0; s < r && a.dk; s += kMaxRows)
            for (int64_t k = 0; k < stride; k += kPanel<T>)
              panel<T>(std::min<int64_t>(kMaxRows, r - s), count, &scores[s], 1, width, queries + k, stride,
                       &dk[s * stride + k], stride, true);
        }
      }
      if (a.dk) store_scaled(a, dk.data(), stride, r, a.dk, j * r * d);
    }
  };
  parallel_for(a.n, 1, a.n * r * r * d < 65536 ? 1 : a.threads, body);
}

}  // namespace

void pair_attention(const Attention& a) { a.type == DType::f64 ? rows_of<double>(a) : rows_of<float>(a); }

void pair_attention_cols(const Attention& a) { a.type == DType::f64 ? cols_of<double>(a) : cols_of<float>(a); }

void pair_attention_grad(const Attention& a) { a.type == DType::f64 ? grad_of<double>(a) : grad_of<float>(a); }

}  // namespace FASTMIX_ISA
}  // namespace fastmix
