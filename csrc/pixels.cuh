// The loops of the three blends on CUDA. A block works on one tile of one sample (of two outputs at once where a call
// draws twice: the sample is then read once for both), a thread on one packet of values, the same in every plane. A
// `Weights` type says how much the own image weighs in each value of a packet:
//
//   State<N> open<P>(grid, tile, outputs[N])   what a block knows of N outputs; called by all threads
//   void sync()                                between `open`, its use, and the next `open`
//   void packet(state, grid, tile, lane, w)    the weights of the thread's packet; NaN for partners out of range
//   int64_t fit(grid)                          bytes of shared memory of a block; may make the tiles smaller
//   bool allows_packets()                      false: values are to be accessed one by one
//
// Blocks are ordered tile by tile, and all samples within a tile: an image and its partner are read at about the same
// time, so that the second reading comes from the L2 cache.
//
// A call may have plans, which move blocks of the images: its packets are loaded from elsewhere (`PlannedCall`).
#pragma once

#include <algorithm>

#include "packets.cuh"

namespace fastmix {
namespace cuda {

constexpr int kThreads = 256;  // of a block, at most
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
inline int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }

// A divisor known before the launch: divides n < 2^31 by a multiplication (Granlund and Montgomery, 1994, Fig. 4.1).
struct Divider {
  uint32_t divisor, multiplier, shift;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while ((int64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }

  __device__ __forceinline__ int quotient(int n) const {
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> 32);
    return static_cast<int>((high + static_cast<uint32_t>(n)) >> shift);
  }
  __device__ __forceinline__ int remainder(int n) const { return n - quotient(n) * static_cast<int>(divisor); }
};

// Sum over groups of `width` neighbouring lanes (a power of two), in each of them. All lanes of the warp take part.
__device__ __forceinline__ float sum_of_lanes(float value, int width = kWarp) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Sum over the block, in thread 0. All threads take part; `scratch` holds one float a warp.
__device__ __forceinline__ float sum_of_block(float value, float* scratch) {
  const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  value = sum_of_lanes(value);
  if (lane == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) value = sum_of_lanes(lane < warps ? scratch[lane] : 0.f);
  return value;
}

// out[row] = sum of values[row, 0:columns] / divisor, always added in the same order.
int sum_rows(const Queue& queue, const float* values, int64_t rows, int64_t columns, int64_t divisor, float* out);

// A dense sample: `planes` planes of `height` rows of `width` values, `inner` of which make a pixel. channels_last is
// one plane whose rows are longer.
struct Shape {
  int64_t planes, height, width, inner;

  int64_t plane() const { return height * width; }

  static Shape of(const Mix& m) {
    // A single pixel is the same in both layouts; its channels are better side by side.
    const bool interleaved = m.channels_last || (m.height * m.width == 1 && m.channels > 0);
    return interleaved ? Shape{1, m.height, m.width * m.channels, m.channels} : Shape{m.channels, m.height, m.width, 1};
  }
};

// How the planes of n samples are cut into tiles: of `rows` rows of `lanes` packets. A launch has a block for each
// tile, group of outputs and sample, the samples next to each other.
struct Grid {
  int64_t n, first, plane, height, width, tiles;  // `first`: sample of the first block
  int planes, packet, rows, lanes, columns, groups = 1;
  Divider samples, samples_and_groups, tile_columns, by_lanes, inner;

  Grid(const Shape& shape, int64_t n, int packet)
      : n(n),
        first(0),
        plane(shape.plane()),
        height(shape.height),
        width(shape.width),
        planes(static_cast<int>(shape.planes)),
        packet(packet),
        inner(std::max<int64_t>(1, shape.inner)) {
    const int64_t packets = std::max<int64_t>(1, ceil_div(width, packet));
    const int64_t parts = ceil_div(packets, kThreads);
    cut(kThreads, static_cast<int>(ceil_div(packets, parts)));
  }

  // At most so many rows and lanes a tile.
  void cut(int64_t most_rows, int most_lanes) {
    lanes = most_lanes, columns = lanes * packet;
    const int64_t fitting = std::max<int64_t>(1, std::min(most_rows, std::min<int64_t>(height, kThreads / lanes)));
    rows = static_cast<int>(ceil_div(std::max<int64_t>(1, height), ceil_div(std::max<int64_t>(1, height), fitting)));
    by_lanes = Divider(lanes), tile_columns = Divider(std::max<int64_t>(1, ceil_div(width, columns)));
    tiles = plane == 0 ? 0 : ceil_div(height, rows) * tile_columns.divisor;
  }

  int threads() const { return static_cast<int>(round_up(rows * lanes, kWarp)); }
};

// The tile of this block.
struct Tile {
  int64_t sample, y, x;
  int number, group, rows, columns;  // columns are values, not pixels
  int64_t pixel;                     // that the first value belongs to, counted from the start of the row
  int channel;                       // of the first value, where the channels of a pixel lie side by side

  __device__ explicit Tile(const Grid& g) {
    number = g.samples_and_groups.quotient(blockIdx.x);
    const int place = blockIdx.x - number * g.samples_and_groups.divisor;
    group = g.samples.quotient(place);
    sample = g.first + (place - group * static_cast<int>(g.samples.divisor));
    const int row = g.tile_columns.quotient(number), column = number - row * static_cast<int>(g.tile_columns.divisor);
    y = static_cast<int64_t>(row) * g.rows, x = static_cast<int64_t>(column) * g.columns;
    rows = static_cast<int>(min(static_cast<int64_t>(g.rows), g.height - y));
    columns = static_cast<int>(min(static_cast<int64_t>(g.columns), g.width - x));
    pixel = x, channel = 0;
    if (g.inner.divisor > 1 && x > 0)
      pixel = x / g.inner.divisor, channel = static_cast<int>(x - pixel * g.inner.divisor);
  }

  // Of a row, those that the tile has a part of.
  __device__ int pixels(const Grid& g) const { return g.inner.quotient(channel + columns - 1) + 1; }
};

// The packet of this thread: values `at(j)` of row `row` of the tile.
template <class P>
struct Lane {
  int row, column, step, columns;
  bool inside;
  int64_t offset;  // of value 0, from the start of a plane

  __device__ Lane(const Grid& g, const Tile& tile) {
    row = g.by_lanes.quotient(threadIdx.x);
    const int lane = threadIdx.x - row * g.lanes;
    column = P::kStrided ? lane : lane * P::kWidth, step = P::kStrided ? g.lanes : 1, columns = tile.columns;
    inside = row < tile.rows && column < columns;
    offset = (tile.y + row) * g.width + tile.x + column;
  }

  __device__ int at(int j) const { return column + j * step; }
  __device__ bool has(int j) const { return !P::kStrided || at(j) < columns; }
  __device__ auto distances() const {
    return [step = fresh(step)](int j) { return j * step; };
  }
};

// Calls f(grid, blocks) for as many samples at a time as a launch can take, mostly all.
template <class F>
int for_launches(Grid grid, F f) {
  const int64_t most = std::max<int64_t>(1, kMostBlocks / (grid.groups * std::max<int64_t>(1, grid.tiles)));
  for (grid.first = 0; grid.first < grid.n; grid.first += most) {
    const int64_t count = std::min(most, grid.n - grid.first);
    grid.samples = Divider(count), grid.samples_and_groups = Divider(count * grid.groups);
    if (int error = f(grid, count * grid.groups * grid.tiles)) return error;
  }
  return cudaSuccess;
}

// What the kernels take besides the weights. y is the result or its gradient.
struct Call {
  enum : bool { kMoves = false };  // blocks of the images
  Image x, y;
  const int64_t *index, *order, *start;
  const float *scale, *shift;

  Call(const Mix& m, const Image& x, const Image& y)
      : x(x),
        y(y),
        index(m.index),
        order(m.order),
        start(m.start),
        scale(static_cast<const float*>(m.scale)),
        shift(static_cast<const float*>(m.shift)) {}

  bool allows_packets() const { return true; }
};

// One output: its number, and its partner, replaced by the sample itself if there is no such partner.
struct Output {
  int64_t number, partner;
  bool valid;

  Output() = default;
  __device__ Output(const Call& call, const Grid& grid, const Tile& tile, int64_t number)
      : number(number), partner(__ldg(call.index + number)), valid(partner >= 0 && partner < grid.n) {
    if (!valid) partner = tile.sample;
  }
  // For gradients that need the weights alone.
  __device__ explicit Output(int64_t number) : number(number), partner(number), valid(true) {}
};

// A packet that is read where a plan has it from: as a whole, or, where values are accessed one by one, each from
// wherever its block is.
template <class P>
struct MovedLane : Lane<P> {
  int64_t distance[P::kStrided ? P::kWidth : 1];

  __device__ explicit MovedLane(const Lane<P>& lane) : Lane<P>(lane) {}
  __device__ auto distances() const {
    return [this](int j) { return distance[j]; };
  }
};

// A call that mixes images whose blocks a plan moves. Packets that lie in one block stay packets.
struct PlannedCall : Call {
  enum : bool { kMoves = true };
  const int32_t *plan, *partner_plan;
  int64_t height, width, columns, blocks;  // rows and values of a block, blocks in a row and in all
  Divider by_height, by_width, by_columns;
  bool narrow;  // whether all of these, and the image's sizes, fit an int

  PlannedCall(const Mix& m, const Image& x, const Image& y)
      : Call(m, x, y),
        plan(m.plan),
        partner_plan(m.partner_plan),
        height(std::max<int64_t>(1, m.height / m.plan_height)),
        width(std::max<int64_t>(1, Shape::of(m).width / m.plan_width)),
        columns(m.plan_width),
        blocks(m.plan_height * m.plan_width),
        by_height(height),
        by_width(width),
        by_columns(columns),
        narrow(std::max(m.height, Shape::of(m).width) <= INT32_MAX) {}

  bool allows_packets() const { return narrow && width % packet_width(x.type, y.type) == 0; }

  // The lane that reads the own image of an output (by `plan`), or the partner (by `partner_plan`).
  template <class P>
  __device__ __forceinline__ MovedLane<P> moved(const int32_t* plan, int64_t output, const Grid& grid, const Tile& tile,
                                                const Lane<P>& lane) const {
    MovedLane<P> to(lane);
    const int64_t y = tile.y + lane.row;
    if constexpr (P::kStrided) {
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) {
        to.distance[j] = j * lane.step;
        if (plan && lane.has(j)) to.distance[j] += jump<true>(plan, grid, output, y, tile.x + lane.at(j));
      }
    } else if (plan) {
      to.offset += jump<false>(plan, grid, output, y, tile.x + lane.column);
    }
    return to;
  }

 private:
  // How far from its own place value (y, x) of an output lies, in values; 0 for a block that is to stay, or whose
  // source does not exist.
  template <bool kWide>
  __device__ __forceinline__ int64_t jump(const int32_t* plan, const Grid& grid, int64_t output, int64_t y,
                                          int64_t x) const {
    const int64_t row = quotient<kWide>(y, by_height, height), column = quotient<kWide>(x, by_width, width);
    const int from = __ldg(plan + output * blocks + row * columns + column);
    if (from < 0 || from >= blocks) return 0;
    const int64_t from_row = quotient<kWide>(from, by_columns, columns);
    return (from_row - row) * height * grid.width + (from - from_row * columns - column) * width;
  }

  template <bool kWide>
  __device__ __forceinline__ int64_t quotient(int64_t n, const Divider& divider, int64_t divisor) const {
    return !kWide || narrow ? divider.quotient(static_cast<int>(n)) : n / divisor;
  }
};

// w own + (1 - w) partner, as two products and a sum.
__device__ __forceinline__ float mix(float own, float partner, float w) {
  return __fadd_rn(__fmul_rn(own, w), __fmul_rn(partner, __fsub_rn(1.f, w)));
}

// w * value, and 0 for weight 0 even where the value is not finite.
__device__ __forceinline__ float weighted(float w, float value) { return w == 0.f ? 0.f : __fmul_rn(w, value); }

template <int V, class Test>
__device__ __forceinline__ bool any(const float (&w)[V], Test test) {
  bool found = false;
#pragma unroll
  for (int j = 0; j < V; ++j) found |= test(w[j]);
  return found;
}

// values[channel] of the four values from j on of a packet of plane `plane`.
template <class P>
__device__ __forceinline__ void of_channels(const float* values, const Grid& grid, const Tile& tile,
                                            const Lane<P>& lane, int plane, int j, float (&v)[4]) {
  if (grid.inner.divisor == 1) {
    v[0] = v[1] = v[2] = v[3] = __ldg(values + plane);
  } else {
    const int zero = fresh(plane);
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = __ldg(values + grid.inner.remainder(tile.channel + lane.at(j + k) + zero));
  }
}

// Mixes a packet of every plane for DRAWS outputs of one sample. Where a weight is exactly 1 or 0 one value is
// selected, and an image that is not selected anywhere in the packet is not read. Each image has a lane that reads it.
template <class P, class Reading, int DRAWS>
__device__ __forceinline__ void mix_packets(const Call& call, const Grid& grid, const Tile& tile, const Lane<P>& lane,
                                            const Reading& own_lane, const Reading& partner_lane,
                                            const Output (&output)[DRAWS], const float (&w)[DRAWS][P::kWidth]) {
  constexpr int V = P::kWidth, kGroup = DRAWS == 1 ? 2 : 1;  // planes whose loads are in flight at once
  constexpr bool kScales = DRAWS == 1;
  using X = typename P::X;
  using Y = typename P::Y;
  bool selects = false, needs_own = true, needs_partner[DRAWS];
#pragma unroll
  for (int d = 0; d < DRAWS; ++d) selects |= any(w[d], [](float w) { return w == 1.f || w == 0.f; });
#pragma unroll
  for (int d = 0; d < DRAWS; ++d) needs_partner[d] = true;
  if (selects) {
    needs_own = false;
#pragma unroll
    for (int d = 0; d < DRAWS; ++d) {
      needs_own |= any(w[d], [](float w) { return w != 0.f; });
      needs_partner[d] = any(w[d], [](float w) { return w != 1.f; });
    }
  }
  const int64_t sample = grid.planes * grid.plane, from_own = tile.sample * sample + own_lane.offset;
  const int64_t to = output[0].number * sample + lane.offset;  // the next draw's output follows n samples later
  int64_t from[DRAWS];
#pragma unroll
  for (int d = 0; d < DRAWS; ++d) from[d] = output[d].partner * sample + partner_lane.offset;
#pragma unroll 1
  for (int first = 0; first < grid.planes; first += kGroup) {
    typename X::Raw own[kGroup] = {}, other[DRAWS][kGroup] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (first + i >= grid.planes) continue;
      const int64_t plane = (first + i) * grid.plane;
      if (needs_own) own[i] = X::load(call.x, from_own + plane, own_lane);
#pragma unroll
      for (int d = 0; d < DRAWS; ++d)
        if (needs_partner[d]) other[d][i] = X::load(call.x, from[d] + plane, partner_lane);
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (first + i >= grid.planes) continue;
#pragma unroll
      for (int d = 0; d < DRAWS; ++d) {
        typename Y::Raw mixed;
#pragma unroll
        for (int j = 0; j < V; j += 4) {
          float a[4], b[4], v[4];
          X::widen(call.x, own[i], j, a), X::widen(call.x, other[d][i], j, b);
#pragma unroll
          for (int k = 0; k < 4; ++k) v[k] = mix(a[k], b[k], P::kStrided ? w[d][j + k] : fresh(w[d][j + k]));
          if (!X::kFinite && selects) {  // where all is finite, arithmetic does the same
#pragma unroll
            for (int k = 0; k < 4; ++k) v[k] = w[d][j + k] == 1.f ? a[k] : w[d][j + k] == 0.f ? b[k] : v[k];
          }
          if (kScales && call.scale) {
            float scale[4], shift[4];
            of_channels(call.scale, grid, tile, lane, first + i, j, scale);
#pragma unroll
            for (int k = 0; k < 4; ++k) v[k] = __fmul_rn(v[k], scale[k]);
            of_channels(call.shift, grid, tile, lane, first + i, j, shift);
#pragma unroll
            for (int k = 0; k < 4; ++k) v[k] = __fadd_rn(v[k], shift[k]);
          }
          Y::narrow(call.y, mixed, j, v);
        }
        Y::store(call.y, to + d * grid.n * sample + (first + i) * grid.plane, lane, mixed);
      }
    }
  }
}

// Whether images that are accessed as X may hold what is not finite.
template <class X>
constexpr bool kMayOverflow = true;
template <int V>
constexpr bool kMayOverflow<Vector<uint8_t, V>> = false;

// sum[j] = sum over planes of scale * g * (x - x[partner]): the gradient of the weights of a packet. Of an image that
// a weight `w` does not look at, 0 takes the place of what is not finite.
template <class P>
__device__ __forceinline__ void weight_gradient(const Call& call, const Grid& grid, const Tile& tile,
                                                const Lane<P>& lane, int64_t partner, const float (&w)[P::kWidth],
                                                float (&sum)[P::kWidth]) {
  using X = typename P::X;
  using Y = typename P::Y;
  const int64_t sample = grid.planes * grid.plane;
#pragma unroll
  for (int j = 0; j < P::kWidth; ++j) sum[j] = 0;
#pragma unroll 1
  for (int plane = 0; plane < grid.planes; ++plane) {
    const int64_t offset = plane * grid.plane + lane.offset;
    const auto own = X::load(call.x, tile.sample * sample + offset, lane);
    const auto other = X::load(call.x, partner * sample + offset, lane);
    const auto grad = Y::load(call.y, tile.sample * sample + offset, lane);
#pragma unroll
    for (int j = 0; j < P::kWidth; j += 4) {
      float a[4], b[4], g[4];
      X::widen(call.x, own, j, a), X::widen(call.x, other, j, b), Y::widen(call.y, grad, j, g);
      if (call.scale) {
        float scale[4];
        of_channels(call.scale, grid, tile, lane, plane, j, scale);
#pragma unroll
        for (int k = 0; k < 4; ++k) g[k] *= scale[k];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if constexpr (kMayOverflow<X>) {
          if (w[j + k] == 0.f && !isfinite(a[k])) a[k] = 0.f;
          if (w[j + k] == 1.f && !isfinite(b[k])) b[k] = 0.f;
        }
        sum[j + k] += g[k] * (a[k] - b[k]);
      }
    }
  }
}

// Blocks that a multiprocessor shall hold at least, for kernels that know the weights of N packets at a time. Four
// leave a thread 64 registers, three 80: too few for the weights of two packets, or of one of sixteen values, to be
// interpolated.
template <class P, class Weights, int N>
constexpr int kResident = Weights::kHasMean && P::kWidth > 8                ? 2
                          : N == 2 && (Weights::kHasMean || P::kWidth >= 8) ? 3
                                                                            : P::kBlocks;

template <class P, class C, class Weights, int DRAWS>
__global__ void __launch_bounds__(kThreads, kResident<P, Weights, DRAWS>)
    mix_kernel(Grid grid, C call, Weights weights) {
  const Tile tile(grid);
  const Lane<P> lane(grid, tile);
  Output output[DRAWS];
#pragma unroll
  for (int d = 0; d < DRAWS; ++d)
    output[d] = Output(call, grid, tile, (int64_t{tile.group} * DRAWS + d) * grid.n + tile.sample);
  const auto state = weights.template open<P>(grid, tile, output);
  weights.sync();
  float w[DRAWS][P::kWidth] = {};
  if (lane.inside) weights.packet(state, grid, tile, lane, w);
  if constexpr (Weights::kHasMean) weights.note_sums(lane, w);
  if (lane.inside) {
    if constexpr (C::kMoves) {
      static_assert(DRAWS == 1, "each draw has plans of its own");
      const auto own = call.moved(call.plan, output[0].number, grid, tile, lane);
      mix_packets(call, grid, tile, lane, own, call.moved(call.partner_plan, output[0].number, grid, tile, lane),
                  output, w);
    } else {
      mix_packets(call, grid, tile, lane, lane, lane, output, w);
    }
  }
  if constexpr (Weights::kHasMean) weights.template add_means<DRAWS>(grid, tile);
}

// One packet of the gradient of the images: the sum of N terms t, t + 1, ... for each plane.
template <class P, int N>
struct Terms {
  using X = typename P::X;
  Output output[N];
  float w[N][P::kWidth];

  // Term 0 is the sample's own mix, with weight w; the others are those that the sample is the partner of, with 1 - w.
  // Terms that are not there get weight 0. All threads take part.
  template <class Weights>
  __device__ __forceinline__ void weigh(const Weights& weights, const int64_t* list, int64_t t, int64_t end,
                                        const Grid& grid, const Tile& tile, const Lane<P>& lane) {
#pragma unroll
    for (int n = 0; n < N; ++n) output[n] = Output(t + n > 0 && t + n < end ? __ldg(list + t + n - 1) : tile.sample);
    const auto state = weights.template open<P>(grid, tile, output);
    weights.sync();
    if (lane.inside) weights.packet(state, grid, tile, lane, w);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j)
        if (t + n > 0) w[n][j] = t + n < end ? __fsub_rn(1.f, w[n][j]) : 0.f;
  }

  __device__ __forceinline__ void add(const Image& grad, const Grid& grid, const Lane<P>& lane, int plane,
                                      float (&sum)[P::kWidth]) const {
    typename X::Raw raw[N] = {};
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int64_t from = (output[n].number * grid.planes + plane) * grid.plane + lane.offset;
      if (any(w[n], [](float w) { return w != 0.f; })) raw[n] = X::load(grad, from, lane);
    }
#pragma unroll
    for (int j = 0; j < P::kWidth; j += 4)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float g[4];
        X::widen(grad, raw[n], j, g);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[j + k] = __fadd_rn(sum[j + k], weighted(w[n][j + k], g[k]));
      }
  }
};

template <class Side, class Lane, int V>
__device__ __forceinline__ void store_rounded(const Image& image, int64_t offset, const Lane& lane,
                                              const float (&v)[V]) {
  typename Side::Raw raw;
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    const float four[4] = {v[j], v[j + 1], v[j + 2], v[j + 3]};
    Side::narrow(image, raw, j, four);
  }
  Side::store(image, offset, lane, raw);
}

// out[j] = w[j] g[j] + sum over the m of j's list of (1 - w[m]) g[m].
template <class P, class Weights>
__global__ void __launch_bounds__(kThreads, Weights::kHasMean ? 3 : kResident<P, Weights, 2>)
    grad_x_kernel(Grid grid, Call call, Weights weights) {
  const Tile tile(grid);
  const Lane<P> lane(grid, tile);
  const int64_t begin = __ldg(call.start + tile.sample), end = 1 + __ldg(call.start + tile.sample + 1) - begin;
  const int64_t* list = call.order + begin;
  const int64_t out = tile.sample * grid.planes * grid.plane + lane.offset;
  if (end <= 2) {  // as for every sample where the map is a permutation
    Terms<P, 2> terms;
    terms.weigh(weights, list, 0, end, grid, tile, lane);
    if (!lane.inside) return;
#pragma unroll 1
    for (int plane = 0; plane < grid.planes; ++plane) {
      float sum[P::kWidth] = {};
      terms.add(call.x, grid, lane, plane, sum);
      store_rounded<typename P::Y>(call.y, out + plane * grid.plane, lane, sum);
    }
    return;
  }
#pragma unroll 1
  for (int plane = 0; plane < grid.planes; ++plane) {
    float sum[P::kWidth] = {};
#pragma unroll 1
    for (int64_t t = 0; t < end; ++t) {
      Terms<P, 1> term;
      if (plane + t > 0) weights.sync();
      term.weigh(weights, list, t, end, grid, tile, lane);
      if (lane.inside) term.add(call.x, grid, lane, plane, sum);
    }
    if (lane.inside) store_rounded<typename P::Y>(call.y, out + plane * grid.plane, lane, sum);
  }
}

// partial[sample, tile] = sum over the tile of w * (gradient of w).
template <class P, class Weights>
__global__ void __launch_bounds__(kThreads, P::kBlocks)
    grad_lam_kernel(Grid grid, Call call, Weights weights, const float* lam, bool per_sample, float* partial) {
  const Tile tile(grid);
  const Lane<P> lane(grid, tile);
  const Output output[1] = {Output(call, grid, tile, tile.sample)};
  const auto state = weights.template open<P>(grid, tile, output);
  float total = 0;
  if (lane.inside) {
    float w[1][P::kWidth], of[P::kWidth], dot[P::kWidth];
    weights.packet(state, grid, tile, lane, w);
    if (any(w[0], [](float w) { return w != 0.f; })) {
      const float all = __ldg(lam + (per_sample ? tile.sample : 0));
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) of[j] = all;
      weight_gradient(call, grid, tile, lane, output[0].partner, of, dot);
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) total += lane.has(j) ? weighted(w[0][j], dot[j]) : 0.f;
    }
  }
  total = sum_of_block(total, shared_floats());
  if (threadIdx.x == 0) partial[tile.sample * grid.tiles + tile.number] = total;
}

template <class C = Call, class Weights>
int mix_images(const Mix& m, const Shape& shape, Weights weights) {
  if (shape.planes == 0 && !Weights::kHasMean) return cudaSuccess;
  const C call(m, {m.x, m.x_type}, {m.out, m.out_type});
  const bool packets = weights.allows_packets() && call.allows_packets() && fits_packets(shape.width, call.x, call.y);
  return with_pair(MixPairs(), call.x, call.y, packets, [&](auto pair) {
    using P = decltype(pair);
    Grid whole(shape, m.n, P::kWidth);
    const int64_t shared = weights.fit(whole);
    const auto run = [&](auto kernel, int64_t draws) {
      whole.groups = static_cast<int>(std::max<int64_t>(1, m.draws / draws));
      return for_launches(whole, [&](const Grid& grid, int64_t blocks) {
        return launch(m.queue, kernel, blocks, grid.threads(), shared, grid, call, weights);
      });
    };
    int error;
    if constexpr (P::kDraws == 2 && !C::kMoves)
      error =
          m.draws % 2 == 0 && !m.scale ? run(mix_kernel<P, C, Weights, 2>, 2) : run(mix_kernel<P, C, Weights, 1>, 1);
    else
      error = run(mix_kernel<P, C, Weights, 1>, 1);
    if constexpr (Weights::kHasMean) return error ? error : weights.finish_mean(m, whole);
    return error;
  });
}

template <class Weights>
int mix_grad_x(const Mix& m, const Shape& shape, Weights weights) {
  if (shape.planes == 0) return cudaSuccess;
  const Call call(m, {m.grad, m.grad_type}, {m.out, m.out_type});
  const bool packets = weights.allows_packets() && fits_packets(shape.width, call.x, call.y);
  return with_pair(GradPairs(), call.x, call.y, packets, [&](auto pair) {
    using P = decltype(pair);
    Grid whole(shape, m.n, P::kWidth);
    const int64_t shared = weights.fit(whole);
    return for_launches(whole, [&](const Grid& grid, int64_t blocks) {
      return launch(m.queue, grad_x_kernel<P, Weights>, blocks, grid.threads(), shared, grid, call, weights);
    });
  });
}

// Calls f(grid) for each way in which a call may turn out to access its images.
template <class F>
void for_packets(const Mix& m, const Shape& shape, DType other, F f) {
  for (int packet : {packet_width(m.x_type, other), AnyPair::kWidth}) {
    Grid grid(shape, m.n, packet);
    f(grid);
  }
}

// Floats for one partial sum of each tile of `rows` samples.
template <class Weights>
int64_t tile_sums(const Mix& m, const Shape& shape, DType other, Weights weights, int64_t rows) {
  int64_t most = 0;
  for_packets(m, shape, other, [&](Grid& grid) {
    weights.fit(grid);
    if (grid.tiles > 1) most = std::max(most, rows * grid.tiles);
  });
  return most;
}

// The gradient of lam, which is the weight wherever `weights` are 1.
template <class Weights>
int mix_grad_lam(const Mix& m, const Shape& shape, Weights weights) {
  const Call call(m, {m.x, m.x_type}, {m.grad, m.grad_type});
  float* out = static_cast<float*>(m.out);
  const bool packets = fits_packets(shape.width, call.x, call.y);
  return with_pair(WeightGradPairs(), call.x, call.y, packets, [&](auto pair) {
    using P = decltype(pair);
    const Grid whole(shape, m.n, P::kWidth);
    float* partial = whole.tiles == 1 ? out : m.workspace;
    const int error = for_launches(whole, [&](const Grid& grid, int64_t blocks) {
      return launch(m.queue, grad_lam_kernel<P, Weights>, blocks, grid.threads(), int64_t{kWarp * sizeof(float)}, grid,
                    call, weights, static_cast<const float*>(m.lam), m.lam_per_sample, partial);
    });
    return error || partial == out ? error : sum_rows(m.queue, partial, m.n, whole.tiles, 1, out);
  });
}

}  // namespace cuda
}  // namespace fastmix
