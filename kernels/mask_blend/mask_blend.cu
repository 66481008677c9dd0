// CUDA kernels of `mask_blend`. A block upsamples the low-resolution rows that its tile needs along x, once, into
// shared memory; a packet is interpolated between those rows along y. Backward goes the same way back: the gradient of
// a tile's weights is reduced along x, then along y, and only these low-resolution sums leave the block.
#include <type_traits>

#include "mask_blend.h"
#include "pixels.cuh"

namespace fastmix {
namespace cuda {
namespace {

constexpr int64_t kSharedFloats = 8192;  // of a block, at most: several blocks fit on a multiprocessor
constexpr int kSlots = 2;                // outputs that a block works on
constexpr int kMostCells = 512;          // cells of a row that a block reduces to at a time

__device__ __forceinline__ float sigmoid(float v) {
#ifdef __CUDA_ARCH__
  float power, result;  // 2^(-v log2(e)), to about 2 ulp; the reciprocal to 1
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.f + power));
  return result;
#else
  return 1.f / (1.f + __expf(-v));
#endif
}

// Between input `whole` and the next, a fraction t of the way.
struct Place {
  int whole;
  float t;
};

struct Range {
  int64_t begin, end;
};

// One axis of the upsampling, from `cells` to `size`.
struct Axis {
  int mode, cells;
  int64_t size;
  bool narrow;  // whether every product of sizes below fits an int
  Divider by_period, by_cells;
  float inverse_period;

  Axis(int mode, int64_t size, int64_t cells) : mode(mode), cells(static_cast<int>(cells)), size(size) {
    narrow = (2 * size + 6) * (2 * cells + 6) <= INT32_MAX;
    const int64_t one = std::max<int64_t>(1, period(mode, size));
    by_period = Divider(one), by_cells = Divider(2 * cells);
    inverse_period = 1.f / static_cast<float>(one);
  }

  // Cells that `count` neighbouring outputs reach, at most.
  int64_t reach(int64_t count) const {
    const int taps = mode == kNearest ? 1 : mode == kBilinear ? 2 : 4;
    return std::min<int64_t>(cells, ceil_div((count - 1) * cells, std::max<int64_t>(1, size)) + taps);
  }

  // Where output i lies. kWide: where the sizes may be too large for an int.
  template <bool kWide>
  __device__ Place at(int64_t i) const {
    if (!kWide || narrow) {
      const int one = by_period.divisor, p = position(mode, static_cast<int>(i), static_cast<int>(size), cells) + one;
      const int whole = by_period.quotient(p);
      return {whole - 1, static_cast<float>(p - whole * one) * inverse_period};
    }
    const int64_t one = period(mode, size), p = position(mode, i, size, static_cast<int64_t>(cells)) + one;
    const int64_t whole = p / one;
    return {static_cast<int>(whole - 1), static_cast<float>(p - whole * one) * inverse_period};
  }

  __device__ Taps<float, int> taps(const Place& place) const { return taps_around(mode, place.whole, place.t); }
  __device__ int clamp(int cell) const { return max(0, min(cell, cells - 1)); }

  // Cells that the outputs first .. last reach.
  template <bool kWide>
  __device__ Range reached(int64_t first, int64_t last) const {
    const Taps<float, int> a = taps(at<kWide>(first)), b = taps(at<kWide>(last));
    return {clamp(a.first), clamp(b.first + b.count - 1) + 1};
  }

  // Outputs that reach a cell, and perhaps a few more.
  template <bool kWide>
  __device__ Range reaching(int cell) const {
    const int radius = mode == kBicubic ? 4 : 2;
    if (!kWide || narrow) {
      const int outputs = static_cast<int>(size), low = max(0, (2 * cell + 1 - radius) * outputs);
      const int first = by_cells.quotient(low), last = by_cells.quotient((2 * cell + 1 + radius) * outputs);
      return {max(0, first - 1), min(outputs, last + 2)};
    }
    const int64_t middle = 2 * int64_t{cell} + 1, low = max(int64_t{0}, (middle - radius) * size);
    const int64_t first = low / by_cells.divisor, last = (middle + radius) * size / by_cells.divisor;
    return {max(int64_t{0}, first - 1), min(size, last + 2)};
  }

  // How much of a cell an output reads.
  __device__ float share(const Place& place, int cell) const {
    const Taps<float, int> t = taps(place);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k < t.count && clamp(t.first + k) == cell) sum += t.weight[k];
    return sum;
  }
};

// Calls f with the number of taps as a constant.
template <class F>
__device__ __forceinline__ void with_taps(int mode, F f) {
  if (mode == kNearest)
    f(std::integral_constant<int, 1>());
  else if (mode == kBilinear)
    f(std::integral_constant<int, 2>());
  else
    f(std::integral_constant<int, 4>());
}

// v = the inputs that `read(i, values)` gives, by the weights of their taps. Written as one input plus weighted
// differences: where all are equal, so is v.
template <int kTaps, int V, class Read>
__device__ __forceinline__ void interpolate(const Taps<float, int>& taps, Read read, float (&v)[V]) {
  constexpr int kCentre = kTaps == 4 ? 1 : 0;
  float centre[V];
  read(taps.first + kCentre, centre);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = centre[j];
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    if (k == kCentre) continue;
    float other[V];
    read(taps.first + k, other);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] += taps.weight[k] * (other[j] - centre[j]);
  }
}

struct MaskWeight {
  enum : bool { kUniform = false, kHasMean = true };  // one weight a packet; a mean to report
  const float* mask;
  float *mean, *partial;  // partial [outputs, tiles] sums
  Axis along_y, along_x;
  bool early, late;  // sigmoid before or after the upsampling
  // Pixels of a row of a tile, at most. In shared memory each slot has rows of `pitch` floats, one a value.
  int pixels, pitch, slot_floats, row_step;
  Divider by_pixels;

  explicit MaskWeight(const Mix& m)
      : mask(static_cast<const float*>(m.mask)),
        mean(static_cast<float*>(m.mean)),
        partial(m.workspace),
        along_y(m.mode, m.height, m.mask_height),
        along_x(m.mode, m.width, m.mask_width),
        // nearest copies values, so that the activation may as well come first
        early(m.sigmoid && (m.sigmoid_first || m.mode == kNearest)),
        late(m.sigmoid && !early) {}

  // Makes tiles so small that `floats(grid)` do.
  template <class Floats>
  int64_t fit(Grid& grid, Floats floats) {
    for (;;) {
      const int64_t inner = grid.inner.divisor;
      pixels = static_cast<int>(std::min(grid.width, inner == 1 ? grid.columns : grid.columns / inner + 2));
      pitch = static_cast<int>(round_up(column(static_cast<int>(std::min<int64_t>(grid.width, grid.columns))), 4));
      slot_floats = static_cast<int>(along_y.reach(grid.rows) * pitch);
      by_pixels = Divider(std::max(1, pixels)), row_step = std::max(1, grid.threads() / std::max(1, pixels));
      const int64_t total = floats(grid);
      if (total <= kSharedFloats || grid.rows * grid.lanes == 1) return total * sizeof(float);
      if (grid.rows > 1)
        grid.cut(ceil_div(grid.rows, 2), grid.lanes);
      else
        grid.cut(1, static_cast<int>(ceil_div(grid.lanes, 2)));
    }
  }

  int64_t fit(Grid& grid) {
    return fit(grid, [&](const Grid&) { return int64_t{kSlots * (slot_floats + kThreads)}; });
  }

  // Four floats of padding after 32: packets of several float4 then read all banks evenly.
  __host__ __device__ static int column(int i) { return i + i / 32 * 4; }

  template <int N>
  struct State {
    int first;  // cell of row 0
  };

  bool allows_packets() const { return along_y.narrow && along_x.narrow; }

  template <class P, int N>
  __device__ State<N> open(const Grid& grid, const Tile& tile, const Output (&output)[N]) const {
    const Range cells = along_y.reached<P::kStrided>(tile.y, tile.y + tile.rows - 1);
    const int rows = static_cast<int>(cells.end - cells.begin), first = by_pixels.quotient(threadIdx.x);
    const int64_t size = static_cast<int64_t>(along_y.cells) * along_x.cells;
    const int inner = grid.inner.divisor, present = tile.pixels(grid);
    // A thread makes one pixel of every row, or, where there are threads for more, of every `row_step`-th row.
    for (int pixel = threadIdx.x - first * pixels; pixel < present && first < row_step; pixel += blockDim.x) {
      const Taps<float, int> taps = along_x.taps(along_x.at<P::kStrided>(tile.pixel + pixel));
      with_taps(along_x.mode, [&](auto count) {
        for (int row = first; row < rows; row += row_step) {
          const int64_t low = (cells.begin + fresh(row)) * along_x.cells;
          const auto read = [&](int cell, float (&v)[N]) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
              v[n] = __ldg(mask + output[n].number * size + low + along_x.clamp(cell));
              if (early) v[n] = sigmoid(v[n]);
            }
          };
          float v[N];
          interpolate<count.value>(taps, read, v);
#pragma unroll
          for (int n = 0; n < N; ++n) v[n] = output[n].valid ? v[n] : NAN;
          // Neighbouring pixels start at different channels, so that their threads write to different banks.
#pragma unroll 1
          for (int k = 0, c = grid.inner.remainder(pixel); k < inner; ++k, c = c + 1 < inner ? c + 1 : 0) {
            const int value = pixel * inner + c - tile.channel;
            if (value < 0 || value >= tile.columns) continue;
#pragma unroll
            for (int n = 0; n < N; ++n) shared_floats()[n * slot_floats + row * pitch + column(value)] = v[n];
          }
        }
      });
    }
    return {static_cast<int>(cells.begin)};
  }

  __device__ void sync() const { __syncthreads(); }

  template <class P, int N>
  __device__ void packet(const State<N>& state, const Grid&, const Tile& tile, const Lane<P>& lane,
                         float (&w)[N][P::kWidth]) const {
    const Taps<float, int> taps = along_y.taps(along_y.at<P::kStrided>(tile.y + lane.row));
    const auto row = [&](int tap) { return shared_floats() + (along_y.clamp(taps.first + tap) - state.first) * pitch; };
    if (along_y.mode == kBicubic) {
      each(lane, w, [](float& w, float centre) { w = centre; }, row(1));
      // One tap at a time: with all rows at hand the packet would not fit into registers.
#pragma unroll 1
      for (int tap = 0; tap < 4; ++tap) {
        if (tap == 1) continue;
        const float share = tap == 0 ? taps.weight[0] : tap == 2 ? taps.weight[2] : taps.weight[3];
        each(lane, w, [&](float& w, float other, float centre) { w += share * (other - centre); }, row(tap), row(1));
      }
    } else {
      each(lane, w, [](float& w, float value) { w = value; }, row(0));
      if (along_y.mode == kBilinear)
        each(lane, w, [&](float& w, float other) { w += taps.weight[1] * (other - w); }, row(1));
    }
    if (!late) return;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) w[n][j] = sigmoid(w[n][j]);
  }

  // Calls f(weight, value, ...) for each weight of a packet in each slot, with the values of rows of shared memory.
  template <class P, int N, class F, class... Rows>
  __device__ __forceinline__ void each(const Lane<P>& lane, float (&w)[N][P::kWidth], F f, Rows... rows) const {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < P::kWidth; j += 4) each_of_four(w[n] + j, f, read_four(rows + n * slot_floats, lane, j)...);
  }

  template <class F, class... Four>
  __device__ static __forceinline__ void each_of_four(float* w, F f, Four... four) {
    f(w[0], four.x...), f(w[1], four.y...), f(w[2], four.z...), f(w[3], four.w...);
  }

  // Values j .. j + 3 of a packet in a row of shared memory.
  template <class P>
  __device__ static __forceinline__ float4 read_four(const float* row, const Lane<P>& lane, int j) {
    if constexpr (P::kStrided) {
      const auto value = [&](int k) { return lane.has(j + k) ? row[column(lane.at(j + k))] : 0.f; };
      return {value(0), value(1), value(2), value(3)};
    } else {
      return *reinterpret_cast<const float4*>(row + column(lane.at(j)));
    }
  }

  // The sums of a thread's weights wait in shared memory until the block has time for them.
  template <class P, int N>
  __device__ void note_sums(const Lane<P>& lane, const float (&w)[N][P::kWidth]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) sum += lane.has(j) ? w[n][j] : 0.f;
      sums()[n * kThreads + threadIdx.x] = sum;
    }
  }

  // The mean itself if the sample is one tile, else the tile's part of it. channels_last counts a pixel `inner` times.
  template <int N>
  __device__ void add_means(const Grid& grid, const Tile& tile) const {
    __syncthreads();
    const int n = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int i = n; i < N; i += blockDim.x / kWarp) {
      float sum = 0;
      for (int thread = lane; thread < static_cast<int>(blockDim.x); thread += kWarp)
        sum += sums()[i * kThreads + thread];
      sum = sum_of_lanes(sum);
      if (lane > 0) continue;
      const int64_t output = (int64_t{tile.group} * N + i) * grid.n + tile.sample;
      if (grid.tiles == 1)
        mean[output] = sum / static_cast<float>(grid.plane);
      else
        partial[output * grid.tiles + tile.number] = sum;
    }
  }

  __device__ float* sums() const { return shared_floats() + kSlots * slot_floats; }

  int finish_mean(const Mix& m, const Grid& grid) const {
    return grid.tiles == 1 ? int{cudaSuccess} : sum_rows(m.queue, partial, m.outputs(), grid.tiles, grid.plane, mean);
  }
};

// The gradient of the mask, from that of the mixed images (call.y) and of the mean, either of which may be null.
struct MaskGradient {
  const float* grad_mean;
  float of_mean;             // share of one value in the mean
  float *partial, *out;      // partial [n, tiles, reach_y, reach_x], out [n, cells, cells]
  int64_t reach_y, reach_x;  // cells that a tile reaches, at most
  int chunk, lanes_a_cell;   // how many cells of a row a block takes at a time, and with how many lanes each
  Divider by_chunk;
  int weights_at, rows_at, x_at;  // in shared memory, in floats: full, reduced along x, places along x
};

// The cells of a tile: those that it reaches, or all, if there is no other tile to write the rest.
template <bool kWide>
__device__ Range cells_of(const Axis& axis, const Grid& grid, int64_t first, int64_t last) {
  return grid.tiles == 1 ? Range{0, axis.cells} : axis.reached<kWide>(first, last);
}

__device__ void write_gradient(const MaskWeight& w, int64_t sample, int y, int x, float value, float* out) {
  const int64_t cell = (sample * w.along_y.cells + y) * w.along_x.cells + x;
  if (w.early) {
    const float p = sigmoid(__ldg(w.mask + cell));
    value *= p * (1.f - p);
  }
  out[cell] = value;
}

template <class P>
__global__ void __launch_bounds__(kThreads, P::kBlocks)
    grad_mask_kernel(Grid grid, Call call, MaskWeight weights, MaskGradient g) {
  const Tile tile(grid);
  const Lane<P> lane(grid, tile);
  const Output output[1] = {Output(call, grid, tile, tile.sample)};
  float *full = shared_floats() + g.weights_at, *rows = shared_floats() + g.rows_at;
  Place* along_x = reinterpret_cast<Place*>(shared_floats() + g.x_at);

  const int64_t inner = grid.inner.divisor;
  const int pixels = tile.pixels(grid);
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) along_x[i] = weights.along_x.at<P::kStrided>(tile.pixel + i);
  // The gradient of a late activation needs the weights behind the loop over planes, that of images in it, too; where
  // the loop does not, they are made after it, or they would take registers from it.
  constexpr bool kInLoop = kMayOverflow<typename P::X>;
  MaskWeight::State<1> state{};
  if (weights.late || kInLoop) {
    state = weights.open<P>(grid, tile, output);
    weights.sync();
  }
  if (lane.inside) {
    float sum[P::kWidth] = {}, w[1][P::kWidth];
    if (kInLoop) weights.packet(state, grid, tile, lane, w);
    if (call.y.data) weight_gradient(call, grid, tile, lane, output[0].partner, w[0], sum);
    const float of_mean = !output[0].valid ? NAN : g.grad_mean ? __ldg(g.grad_mean + tile.sample) * g.of_mean : 0.f;
#pragma unroll
    for (int j = 0; j < P::kWidth; ++j) sum[j] += of_mean;
    if (weights.late) {
      if (!kInLoop) weights.packet(state, grid, tile, lane, w);
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) sum[j] *= w[0][j] * (1.f - w[0][j]);
    }
#pragma unroll
    for (int j = 0; j < P::kWidth; ++j)
      if (lane.has(j)) full[lane.row * grid.columns + lane.at(j)] = sum[j];
  }
  __syncthreads();

  const Range cells_y = cells_of<P::kStrided>(weights.along_y, grid, tile.y, tile.y + tile.rows - 1);
  const Range cells_x = cells_of<P::kStrided>(weights.along_x, grid, tile.pixel, tile.pixel + pixels - 1);
  const int part = threadIdx.x % g.lanes_a_cell;
  for (int64_t first = cells_x.begin; first < cells_x.end; first += g.chunk) {
    // [tile rows, columns] to [tile rows, chunk]. A weight of 0 keeps what is not finite away from other cells.
    for (int begin = 0; begin < tile.rows * g.chunk; begin += blockDim.x / g.lanes_a_cell) {
      const int i = begin + threadIdx.x / g.lanes_a_cell, row = g.by_chunk.quotient(i);
      const int64_t cell = first + (i - row * g.chunk);
      const bool present = row < tile.rows && cell < cells_x.end;
      float sum = 0;
      if (present) {
        const Range from = weights.along_x.reaching<P::kStrided>(static_cast<int>(cell));
        const int end = static_cast<int>(min(from.end * inner - tile.x, static_cast<int64_t>(tile.columns)));
        for (int e = static_cast<int>(max(from.begin * inner - tile.x, int64_t{0})) + part; e < end;
             e += g.lanes_a_cell) {
          const Place place = along_x[grid.inner.quotient(tile.channel + e)];
          const float share = weights.along_x.share(place, static_cast<int>(cell));
          if (share != 0.f) sum += share * full[row * grid.columns + e];
        }
      }
      sum = sum_of_lanes(sum, g.lanes_a_cell);
      if (present && part == 0) rows[i] = sum;
    }
    __syncthreads();
    // [tile rows, chunk] to [cells, chunk].
    for (int i = threadIdx.x; i < static_cast<int>(cells_y.end - cells_y.begin) * g.chunk; i += blockDim.x) {
      const int row = g.by_chunk.quotient(i), column = i - row * g.chunk, y = static_cast<int>(cells_y.begin) + row;
      const int64_t x = first + column;
      if (x >= cells_x.end) continue;
      const Range from = weights.along_y.reaching<P::kStrided>(y);
      float sum = 0;
      for (int64_t r = max(from.begin, tile.y); r < min(from.end, tile.y + tile.rows); ++r) {
        const float share = weights.along_y.share(weights.along_y.at<P::kStrided>(r), y);
        if (share != 0.f) sum += share * rows[(r - tile.y) * g.chunk + column];
      }
      if (grid.tiles == 1)
        write_gradient(weights, tile.sample, y, static_cast<int>(x), sum, g.out);
      else
        g.partial[((tile.sample * grid.tiles + tile.number) * g.reach_y + row) * g.reach_x + (x - cells_x.begin)] = sum;
    }
    __syncthreads();
  }
}

// Adds up what the tiles found for each cell, always in the same order.
__global__ void __launch_bounds__(kThreads) sum_tiles_kernel(Grid grid, MaskWeight weights, MaskGradient g) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = cell / weights.along_x.cells, sample = row / weights.along_y.cells;
  if (sample >= grid.n) return;
  const int x = static_cast<int>(cell - row * weights.along_x.cells);
  const int y = static_cast<int>(row - sample * weights.along_y.cells);
  const int64_t inner = grid.inner.divisor, columns = grid.tile_columns.divisor;
  const Range from_y = weights.along_y.reaching<true>(y), from_x = weights.along_x.reaching<true>(x);
  float sum = 0;
  for (int64_t i = from_y.begin / grid.rows; i * grid.rows < from_y.end; ++i) {
    const Range cells_y = weights.along_y.reached<true>(i * grid.rows, min((i + 1) * grid.rows, grid.height) - 1);
    if (y < cells_y.begin || y >= cells_y.end) continue;
    for (int64_t j = from_x.begin * inner / grid.columns; j * grid.columns < from_x.end * inner; ++j) {
      const int64_t end = min((j + 1) * grid.columns, grid.width);
      const Range cells_x = weights.along_x.reached<true>(j * grid.columns / inner, (end - 1) / inner);
      if (x < cells_x.begin || x >= cells_x.end) continue;
      sum += g.partial[((sample * grid.tiles + i * columns + j) * g.reach_y + (y - cells_y.begin)) * g.reach_x +
                       (x - cells_x.begin)];
    }
  }
  write_gradient(weights, sample, y, x, sum, g.out);
}

// Sizes of the reduction, and of shared memory in bytes.
int64_t fit(Grid& grid, MaskWeight& weights, MaskGradient& g) {
  const int64_t bytes = weights.fit(grid, [&](const Grid& grid) {
    g.reach_y = weights.along_y.reach(grid.rows), g.reach_x = weights.along_x.reach(weights.pixels);
    g.chunk = static_cast<int>(std::min<int64_t>(grid.tiles == 1 ? weights.along_x.cells : g.reach_x, kMostCells));
    g.weights_at = weights.slot_floats;
    g.rows_at = g.weights_at + grid.rows * grid.columns;
    g.x_at = static_cast<int>(round_up(g.rows_at + grid.rows * g.chunk, 2));
    return int64_t{g.x_at + 2 * weights.pixels};
  });
  g.by_chunk = Divider(g.chunk);
  // As many lanes work on a cell as keep all threads busy, if there is enough for each.
  const int64_t values = weights.along_x.size * grid.inner.divisor / std::max(1, weights.along_x.cells);
  g.lanes_a_cell = 1;
  while (g.lanes_a_cell < kWarp && 2 * g.lanes_a_cell * g.chunk * grid.rows <= grid.threads() &&
         g.lanes_a_cell < values)
    g.lanes_a_cell *= 2;
  return bytes;
}

// The image that `grad` is accessed like; one that is not there has the type of x.
Image gradient(const Mix& m) { return {m.grad, m.grad ? m.grad_type : m.x_type}; }

}  // namespace

int mask_blend(const Mix& m) {
  if (m.plan || m.partner_plan) return mix_images<PlannedCall>(m, Shape::of(m), MaskWeight(m));
  return mix_images(m, Shape::of(m), MaskWeight(m));
}

int mask_blend_grad_x(const Mix& m) { return mix_grad_x(m, Shape::of(m), MaskWeight(m)); }

int mask_blend_grad_mask(const Mix& m) {
  const Shape shape = Shape::of(m);
  const Call call(m, {m.x, m.x_type}, gradient(m));
  const bool packets = MaskWeight(m).allows_packets() && fits_packets(shape.width, call.x, call.y);
  return with_pair(WeightGradPairs(), call.x, call.y, packets, [&](auto pair) {
    using P = decltype(pair);
    Grid whole(shape, m.n, P::kWidth);
    MaskWeight weights(m);
    MaskGradient g{};
    g.grad_mean = static_cast<const float*>(m.grad_mean), g.partial = m.workspace, g.out = static_cast<float*>(m.out);
    g.of_mean = 1.f / static_cast<float>(whole.plane);
    const int64_t shared = fit(whole, weights, g);
    const int error = for_launches(whole, [&](const Grid& grid, int64_t blocks) {
      return launch(m.queue, grad_mask_kernel<P>, blocks, grid.threads(), shared, grid, call, weights, g);
    });
    if (error || whole.tiles == 1) return error;
    const int64_t cells = m.n * m.mask_height * m.mask_width;
    return launch(m.queue, sum_tiles_kernel, ceil_div(cells, kThreads), kThreads, int64_t{0}, whole, weights, g);
  });
}

int64_t mask_blend_workspace(const Mix& m) {
  return tile_sums(m, Shape::of(m), m.out_type, MaskWeight(m), m.outputs());
}

int64_t mask_blend_grad_mask_workspace(const Mix& m) {
  int64_t most = 0;
  for_packets(m, Shape::of(m), m.grad_type, [&](Grid& grid) {
    MaskWeight weights(m);
    MaskGradient g{};
    fit(grid, weights, g);
    most = std::max(most, m.n * grid.tiles * g.reach_y * g.reach_x);
  });
  return most;
}

}  // namespace cuda
}  // namespace fastmix
