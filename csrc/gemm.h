// A small matrix product for blocks that live in cache: C = A B or C += A B, with B in rows of kPanel columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kMaxRows = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kMaxRows = 6;
#else
constexpr int kVectorBytes = 16, kMaxRows = 6;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int kPanel = 2 * kLanes<T>;  // two vectors wide: with kMaxRows rows the sums fill the registers

template <class T>
inline int64_t padded(int64_t count) {
  return (count + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};

// Rows x kPanel block of C over `depth` steps. A is read at a[row * a_row + step * a_step].
template <class T, int Rows>
inline void block(int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, T* c,
                  int64_t c_row, bool accumulate) {
  using V = typename Vector<T>::type;
  V sum[Rows][2];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < 2; ++j)
      sum[i][j] = accumulate ? *reinterpret_cast<const V*>(c + i * c_row + j * kLanes<T>) : V{};
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = *reinterpret_cast<const V*>(b), b1 = *reinterpret_cast<const V*>(b + kLanes<T>);
    for (int i = 0; i < Rows; ++i) {
      const T v = a[i * a_row];
      sum[i][0] += v * b0;
      sum[i][1] += v * b1;
    }
    a += a_step, b += b_step;
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < 2; ++j) *reinterpret_cast<V*>(c + i * c_row + j * kLanes<T>) = sum[i][j];
}

// The same for any number of rows.
template <class T>
inline void panel(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step,
                  T* c, int64_t c_row, bool accumulate) {
  int64_t i = 0;
#define FASTMIX_ROWS(Rows)            \
  for (; i + Rows <= rows; i += Rows) \
  block<T, Rows>(depth, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, accumulate)
  FASTMIX_ROWS(kMaxRows);
  FASTMIX_ROWS(4);
  FASTMIX_ROWS(1);
#undef FASTMIX_ROWS
}

// Copies rows of a [count, dim] matrix into panels: to[panel][k][kPanel] holds column k of kPanel rows, the transposed
// operand of a product over k. Rows past the end are zero.
template <class T>
inline void pack_transposed(DType type, const void* from, int64_t offset, int64_t count, int64_t dim, T* to) {
  constexpr int64_t kWidth = kPanel<T>, kDepth = 16;
  alignas(64) T rows[kWidth][kDepth];
  for (int64_t p = 0; p < count; p += kWidth)
    for (int64_t k = 0; k < dim; k += kDepth) {
      const int64_t depth = std::min(kDepth, dim - k);
      for (int64_t i = 0; i < kWidth; ++i) {
        if (p + i < count) {
          T* row = rows[i];
          const T* source = load(type, from, offset + (p + i) * dim + k, depth, row);
          if (source != row) std::memcpy(row, source, depth * sizeof(T));
        } else {
          std::fill(rows[i], rows[i] + kDepth, T(0));
        }
      }
      T* panel_start = to + p * dim + k * kWidth;
      for (int64_t step = 0; step < depth; ++step)
        for (int64_t i = 0; i < kWidth; ++i) panel_start[step * kWidth + i] = rows[i][step];
    }
}

// Rows of a [count, dim] matrix as T, `stride` apart, zero beyond dim: in place where they are stored so already,
// else copied into `to`.
template <class T>
inline const T* rows_as(DType type, const void* from, int64_t offset, int64_t count, int64_t dim, int64_t stride,
                        T* to) {
  const bool in_place = stride == dim && size_of(type) == sizeof(T);
  if (in_place) return static_cast<const T*>(from) + offset;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < dim; k += kTile) {
      const int64_t length = std::min(kTile, dim - k);
      const T* source = load(type, from, offset + i * dim + k, length, to + i * stride + k);
      if (source != to + i * stride + k) std::memcpy(to + i * stride + k, source, length * sizeof(T));
    }
    std::fill(to + i * stride + dim, to + (i + 1) * stride, T(0));
  }
  return to;
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
