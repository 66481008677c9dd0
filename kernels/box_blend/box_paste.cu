// CUDA kernels of `box_blend` with a source: values inside the box are gathered from the partner one by one.
#include "kernels/box_blend/box_blend.h"
#include "pixels.cuh"

namespace fastmix {
namespace cuda {
namespace {

// Which input a row or column of the image begins with, and the weight of the one after it.
struct Tap {
  int first;
  float next;

  __device__ Tap() : first(0), next(0) {}
  __device__ Tap(const Axis& axis, int64_t i, int64_t from) : next(0) {
    if (axis.nearest_mode) {
      first = static_cast<int>(from + axis.nearest(i));
      return;
    }
    const int64_t at = axis.position(i), whole = at / axis.one;
    first = static_cast<int>(from + whole);
    next = static_cast<float>(at - whole * axis.one) / static_cast<float>(axis.one);
  }

  __device__ int second() const { return next == 0.f ? first : first + 1; }
  __device__ float between(float a, float b) const { return next == 0.f ? a : mix(a, b, 1.f - next); }
};

struct Paste {
  const int32_t *box, *source;
  int64_t height, width;  // in pixels
  int resize;
  const float* lam;  // 1 if null
  bool per_output;

  explicit Paste(const Mix& m)
      : box(m.box),
        source(m.source),
        height(m.height),
        width(m.width),
        resize(m.resize),
        lam(static_cast<const float*>(m.lam)),
        per_output(m.lam_per_sample) {}

  __device__ Placement place(int64_t output) const {
    return Placement(box + 4 * output, source + 4 * output, height, width);
  }
  __device__ float outside(int64_t output) const { return lam ? __ldg(lam + (per_output ? output : 0)) : 1.f; }
};

template <class T, class Word>
__device__ __forceinline__ void gather_as(const Image& image, const int64_t (&from)[4], float (&v)[4]) {
  constexpr int kBits = 8 * sizeof(T), kPerWord = 4 / sizeof(T);
  uint32_t words[sizeof(T)] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k)
    words[k / kPerWord] |= static_cast<uint32_t>(__ldg(static_cast<const Word*>(image.data) + from[k]))
                           << k % kPerWord * kBits;
  fastmix::widen(static_cast<const T*>(nullptr), words, v);
}

// Four values from anywhere.
__device__ __forceinline__ void gather(const Image& image, const int64_t (&from)[4], float (&v)[4]) {
  switch (image.type) {
    case DType::u8:
      return gather_as<uint8_t, uint8_t>(image, from, v);
    case DType::f16:
      return gather_as<Half, uint16_t>(image, from, v);
    case DType::bf16:
      return gather_as<BFloat16, uint16_t>(image, from, v);
    default:
      return gather_as<float, uint32_t>(image, from, v);
  }
}

// The taps of the part of the box that lies in the tile, in shared memory. All threads take part.
struct Taps {
  const Tap *along_y, *along_x;

  static int64_t bytes(const Grid& grid) { return (grid.rows + grid.columns) * int64_t{sizeof(Tap)}; }

  __device__ Taps(const Paste& paste, const Placement& place, const Grid& grid, const Tile& tile) {
    Tap* taps = reinterpret_cast<Tap*>(shared_floats());
    along_y = taps, along_x = taps + grid.rows;
    make(paste, place.y, place.from_y, tile.y, tile.rows, taps);
    make(paste, place.x, place.from_x, tile.pixel, tile.pixels(grid), taps + grid.rows);
    __syncthreads();
  }

 private:
  static __device__ void make(const Paste& paste, const Stretch& box, const Stretch& from, int64_t first, int count,
                              Tap* taps) {
    if (box.size() == 0) return;
    const Axis axis(paste.resize, box.size(), from.size());
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      if (box.has(first + i)) taps[i] = Tap(axis, first + i - box.begin, from.begin);
  }
};

// v[k] = value of the box for those of the four values from j on that `boxed` names; `from` is the partner's plane.
template <class P>
__device__ __forceinline__ void paste_values(const Call& call, const Grid& grid, const Tile& tile, const Lane<P>& lane,
                                             const Taps& taps, unsigned boxed, int j, int64_t from, bool interpolates,
                                             float (&v)[4]) {
  const Tap y = taps.along_y[lane.row];
  const int inner = static_cast<int>(grid.inner.divisor);
  int64_t place[4], step[4];
  float next[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int value = tile.channel + lane.at(j + k), pixel = grid.inner.quotient(value);
    const Tap x = boxed >> k & 1 ? taps.along_x[pixel] : Tap();
    const int channel = boxed >> k & 1 ? value - pixel * inner : 0;
    place[k] = from + y.first * grid.width + int64_t{x.first} * inner + channel;
    step[k] = x.next == 0.f ? 0 : inner, next[k] = x.next;
  }
  float found[4];
  gather(call.x, place, found);
  if (interpolates) {
    float right[4], low[4], low_right[4];
    int64_t there[4];
    const int64_t down = (y.second() - y.first) * grid.width;
#pragma unroll
    for (int k = 0; k < 4; ++k) there[k] = place[k] + step[k];
    gather(call.x, there, right);
#pragma unroll
    for (int k = 0; k < 4; ++k) place[k] += down, there[k] += down;
    gather(call.x, place, low), gather(call.x, there, low_right);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = y.between(found[k], low[k]), b = y.between(right[k], low_right[k]);
      found[k] = next[k] == 0.f ? a : mix(a, b, 1.f - next[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = boxed >> k & 1 ? found[k] : v[k];
}

template <class P>
__global__ void __launch_bounds__(kThreads, 2) paste_kernel(Grid grid, Call call, Paste paste) {
  constexpr int V = P::kWidth;
  using X = typename P::X;
  using Y = typename P::Y;
  const Tile tile(grid);
  const Lane<P> lane(grid, tile);
  const Output output(call, grid, tile, int64_t{tile.group} * grid.n + tile.sample);
  const Placement place = paste.place(output.number);
  const Taps taps(paste, place, grid, tile);
  if (!lane.inside) return;
  const float lam = output.valid ? paste.outside(output.number) : NAN;
  unsigned boxed = 0, all = 0;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (!lane.has(j)) continue;
    const int64_t pixel = tile.pixel + grid.inner.quotient(tile.channel + lane.at(j));
    all |= 1u << j;
    if (place.y.has(tile.y + lane.row) && place.x.has(pixel)) boxed |= 1u << j;
  }
  const bool needs_own = boxed != all && lam != 0.f, needs_partner = boxed != all && lam != 1.f;
  const int64_t sample = grid.planes * grid.plane;
#pragma unroll 1
  for (int plane = 0; plane < grid.planes; ++plane) {
    const int64_t offset = plane * grid.plane + lane.offset, from = output.partner * sample + plane * grid.plane;
    typename X::Raw own = {}, other = {};
    typename Y::Raw mixed;
    if (needs_own) own = X::load(call.x, tile.sample * sample + offset, lane);
    if (needs_partner) other = X::load(call.x, output.partner * sample + offset, lane);
#pragma unroll
    for (int j = 0; j < V; j += 4) {
      float a[4], b[4], v[4];
      X::widen(call.x, own, j, a), X::widen(call.x, other, j, b);
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = lam == 1.f ? a[k] : lam == 0.f ? b[k] : mix(a[k], b[k], lam);
      if (const unsigned here = boxed >> j & 15) {
        paste_values<P>(call, grid, tile, lane, taps, here, j, from, paste.resize != kResizeNearest, v);
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = output.valid ? v[k] : NAN;
      }
      if (call.scale) {
        float scale[4], shift[4];
        of_channels(call.scale, grid, tile, lane, plane, j, scale);
        of_channels(call.shift, grid, tile, lane, plane, j, shift);
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = __fadd_rn(__fmul_rn(v[k], scale[k]), shift[k]);
      }
      Y::narrow(call.y, mixed, j, v);
    }
    Y::store(call.y, output.number * sample + offset, lane, mixed);
  }
}

// A value a thread.
struct Single {
  static constexpr int kWidth = 1;
  static constexpr bool kStrided = false;
};

__device__ __forceinline__ float load_value(const Image& image, int64_t offset) {
  const int64_t from[4] = {offset, offset, offset, offset};
  float v[4];
  gather(image, from, v);
  return v[0];
}

template <class T, class Word>
__device__ __forceinline__ void store_as(const Image& image, int64_t offset, float value) {
  const float v[4] = {value, value, value, value};
  uint32_t words[sizeof(T)];
  fastmix::narrow(static_cast<const T*>(nullptr), v, words);
  static_cast<Word*>(const_cast<void*>(image.data))[offset] = static_cast<Word>(words[0]);
}

__device__ __forceinline__ void store_value(const Image& image, int64_t offset, float value) {
  switch (image.type) {
    case DType::f16:
      return store_as<Half, uint16_t>(image, offset, value);
    case DType::bf16:
      return store_as<BFloat16, uint16_t>(image, offset, value);
    default:
      return store_as<float, uint32_t>(image, offset, value);
  }
}

// What one output gives back to one pixel: a share of its gradient there, and, to its partner, shares of those values
// of the box that the pixel is a part of.
struct Share {
  int64_t number;
  float outside;
  Stretch box_y, box_x;
  int64_t row, column, row_end, column_end;  // of the box
  int64_t y, x;                              // the pixel in the region
  int64_t from_rows, from_columns;           // of the region

  __device__ void weigh(const Paste& paste, int64_t output, int64_t at_y, int64_t at_x, bool own) {
    const Placement place = paste.place(output);
    const float lam = paste.outside(output);
    number = output;
    outside = place.y.has(at_y) && place.x.has(at_x) ? 0.f : own ? lam : __fsub_rn(1.f, lam);
    row = row_end = column = column_end = 0;
    box_y = place.y, box_x = place.x;
    from_rows = place.from_y.size(), from_columns = place.from_x.size();
    if (own || box_y.size() == 0 || !place.from_y.has(at_y) || !place.from_x.has(at_x)) return;
    y = at_y - place.from_y.begin, x = at_x - place.from_x.begin;
    const Axis along_y(paste.resize, box_y.size(), from_rows), along_x(paste.resize, box_x.size(), from_columns);
    row = along_y.first_of(y), row_end = along_y.end_of(y);
    column = along_x.first_of(x), column_end = along_x.end_of(x);
  }

  // `inner` and `channel` as in Tile; `plane` is the offset of the plane, `here` of the value itself in it.
  __device__ float of(const Paste& paste, const Image& grad, const Grid& grid, int channel, int64_t plane,
                      int64_t here) const {
    const int64_t start = number * grid.planes * grid.plane + plane;
    float sum = outside == 0.f ? 0.f : __fmul_rn(outside, load_value(grad, start + here));
    if (row == row_end) return sum;
    const Axis along_y(paste.resize, box_y.size(), from_rows), along_x(paste.resize, box_x.size(), from_columns);
    for (int64_t i = row; i < row_end; ++i) {
      const float weight = along_y.weight<float>(i, y);
      if (weight == 0.f) continue;
      const int64_t from = start + (box_y.begin + i) * grid.width + channel;
      float line = 0;
      for (int64_t j = column; j < column_end; ++j) {
        const float share = along_x.weight<float>(j, x);
        if (share != 0.f) line += share * load_value(grad, from + (box_x.begin + j) * int64_t{grid.inner.divisor});
      }
      sum += weight * line;
    }
    return sum;
  }
};

__global__ void __launch_bounds__(kThreads, 2) paste_adjoint_kernel(Grid grid, Call call, Paste paste) {
  const Tile tile(grid);
  const Lane<Single> lane(grid, tile);
  if (!lane.inside) return;
  const int64_t begin = __ldg(call.start + tile.sample), count = __ldg(call.start + tile.sample + 1) - begin;
  const int64_t* list = call.order + begin;
  const int within = grid.inner.quotient(tile.channel + lane.column);
  const int channel = tile.channel + lane.column - within * static_cast<int>(grid.inner.divisor);
  const int64_t y = tile.y + lane.row, x = tile.pixel + within;
  Share own, other;
  own.weigh(paste, tile.sample, y, x, true);
  if (count == 1) other.weigh(paste, __ldg(list), y, x, false);
  for (int64_t p = 0; p < grid.planes; ++p) {
    const int64_t plane = p * grid.plane;
    float sum = own.of(paste, call.x, grid, channel, plane, lane.offset);
    for (int64_t t = 0; t < count; ++t) {
      if (count > 1) other.weigh(paste, __ldg(list + t), y, x, false);
      sum += other.of(paste, call.x, grid, channel, plane, lane.offset);
    }
    store_value(call.y, tile.sample * grid.planes * grid.plane + plane + lane.offset, sum);
  }
}

}  // namespace

int box_paste(const Mix& m) {
  const Shape shape = Shape::of(m);
  if (shape.planes == 0) return cudaSuccess;
  const Call call(m, {m.x, m.x_type}, {m.out, m.out_type});
  const Paste paste(m);
  return with_pair(MixPairs(), call.x, call.y, fits_packets(shape.width, call.x, call.y), [&](auto pair) {
    using P = decltype(pair);
    Grid whole(shape, m.n, P::kWidth);
    whole.groups = static_cast<int>(std::max<int64_t>(1, m.draws));
    return for_launches(whole, [&](const Grid& grid, int64_t blocks) {
      return launch(m.queue, paste_kernel<P>, blocks, grid.threads(), Taps::bytes(grid), grid, call, paste);
    });
  });
}

int box_paste_grad_x(const Mix& m) {
  const Shape shape = Shape::of(m);
  if (shape.planes == 0) return cudaSuccess;
  const Call call(m, {m.grad, m.grad_type}, {m.out, m.out_type});
  const Paste paste(m);
  return for_launches(Grid(shape, m.n, Single::kWidth), [&](const Grid& grid, int64_t blocks) {
    return launch(m.queue, paste_adjoint_kernel, blocks, grid.threads(), int64_t{0}, grid, call, paste);
  });
}

}  // namespace cuda
}  // namespace fastmix
