// CUDA kernels of `puzzle_energy`. The first pools the cells at block boundaries, a cell a thread. In the second a CUDA
// block works on a pair of images, with a place on a boundary, an edge or a block a thread. All sums are in the order
// of the CPU kernels, so that both give the same integers.
#include "dtype.h"
#include "launch.h"
#include "puzzle_energy.h"

namespace fastmix {
namespace cuda {
namespace {

constexpr int kThreads = 128;

struct Cell {
  int64_t channel, y, x;
};

// The cell at `place` of the lines of an image, see CellGrid.
__device__ __forceinline__ Cell cell_at(const CellGrid& grid, int64_t place) {
  const int64_t in_rows = grid.row_line(grid.rows - 1, 0, 0);
  const bool row = place < in_rows;
  if (!row) place -= in_rows;
  const int64_t length = row ? grid.across() : grid.down(), line = place / length, along = place % length;
  const int64_t across_boundary = line / grid.channels, boundary = across_boundary / 2, side = across_boundary % 2;
  const int64_t at = (boundary + 1) * (row ? grid.high : grid.wide) - 1 + side;
  return {line % grid.channels, row ? at : along, row ? along : at};
}

__device__ __forceinline__ float value_at(const float* p) { return __ldg(p); }
__device__ __forceinline__ float value_at(const Half* p) { return widen_f16(__ldg(&p->bits)); }
__device__ __forceinline__ float value_at(const BFloat16* p) { return widen_bf16(__ldg(&p->bits)); }
__device__ __forceinline__ float value_at(const uint8_t* p) { return static_cast<float>(__ldg(p)); }

template <class T>
__global__ void __launch_bounds__(kThreads) pool_kernel(Energy e, CellGrid grid, int64_t blocks_an_image) {
  const int64_t n = blockIdx.x / blocks_an_image, count = grid.count();
  const int64_t place = blockIdx.x % blocks_an_image * kThreads + threadIdx.x;
  if (place >= count) return;
  const Cell cell = cell_at(grid, place);
  const int64_t pixel_step = e.channels_last ? e.channels : 1, row_step = e.width * pixel_step;
  const T* first = static_cast<const T*>(e.x) + n * e.channels * e.height * e.width +
                   cell.channel * (e.channels_last ? 1 : e.height * e.width) + cell.y * grid.side * row_step +
                   cell.x * grid.side * pixel_step;
  const float scale = e.scale ? __ldg(static_cast<const float*>(e.scale) + cell.channel) : 1.f;
  const float shift = e.scale ? __ldg(static_cast<const float*>(e.shift) + cell.channel) : 0.f;
  float sum = 0;
  for (int64_t y = 0; y < grid.side; ++y)
    for (int64_t x = 0; x < grid.side; ++x)
      sum += __fadd_rn(__fmul_rn(value_at(first + y * row_step + x * pixel_step), scale), shift);
  static_cast<float*>(e.cells)[n * count + place] = __fdiv_rn(sum, static_cast<float>(grid.side * grid.side));
}

// Differences at one place along the boundaries, for both images of a pair, means over the channels.
struct Differences {
  float of[4];  // 00, 01, 10, 11: whether the first and the second block show the own image
};

// `cells` begin with the first channel on side 0 of a line, `length` cells a line.
__device__ __forceinline__ Differences differences(const float* own, const float* partner, int64_t channels,
                                                   int64_t length) {
  Differences sum{};
  const int64_t across = channels * length;
  for (int64_t c = 0; c < channels; ++c) {
    const float own0 = own[c * length], own1 = own[c * length + across];
    const float partner0 = partner[c * length], partner1 = partner[c * length + across];
    sum.of[0] += fabsf(partner0 - partner1), sum.of[1] += fabsf(partner0 - own1);
    sum.of[2] += fabsf(own0 - partner1), sum.of[3] += fabsf(own0 - own1);
  }
#pragma unroll
  for (int ab = 0; ab < 4; ++ab) sum.of[ab] = __fdiv_rn(sum.of[ab], static_cast<float>(channels));
  return sum;
}

// What a block adds to the costs of showing the own image and the partner there, from one of its edges.
__device__ __forceinline__ void add_edge(const float* p, int64_t edges, bool first, float& own, float& partner) {
  const float p00 = p[0], p01 = p[edges], p10 = p[2 * edges], p11 = p[3 * edges];
  own += half_sum(first ? p10 : p01, p11);
  partner += half_sum(first ? p01 : p10, p00);
}

// Shared memory: the priors of the labels, then p[ab][edge].
__global__ void __launch_bounds__(kThreads) cost_kernel(Energy e, CellGrid grid, EnergyScale<float> scale) {
  const int64_t n = blockIdx.x, partner = e.index[n], rows = grid.rows, columns = grid.columns;
  const int64_t blocks = rows * columns, row_edges = grid.row_edges(), edges = grid.edges();
  double* priors = reinterpret_cast<double*>(shared_floats());
  float* p = shared_floats() + 8;
  int32_t *unary = e.unary + n * blocks * e.labels, *weight_y = e.weight_y + n * row_edges;
  int32_t* weight_x = e.weight_x + n * (edges - row_edges);
  if (partner < 0 || partner >= e.n) {
    for (int64_t i = threadIdx.x; i < blocks * e.labels; i += kThreads) unary[i] = 0;
    for (int64_t i = threadIdx.x; i < edges; i += kThreads)
      (i < row_edges ? weight_y + i : weight_x + i - row_edges)[0] = 0;
    return;
  }

  const int64_t count = grid.count(), in_rows = (rows - 1) * grid.across(), places = grid.places();
  const float* own_cells = static_cast<const float*>(e.cells) + n * count;
  const float* partner_cells = static_cast<const float*>(e.cells) + partner * count;
  float* terms = static_cast<float*>(e.cells) + e.n * count + n * 4 * places;
  for (int64_t place = threadIdx.x; place < places; place += kThreads) {
    const bool row = place < in_rows;
    const int64_t length = row ? grid.across() : grid.down(), at = row ? place : place - in_rows;
    const int64_t first = row ? grid.row_line(at / length, 0, 0) : grid.column_line(at / length, 0, 0);
    const Differences found =
        differences(own_cells + first + at % length, partner_cells + first + at % length, grid.channels, length);
#pragma unroll
    for (int ab = 0; ab < 4; ++ab) terms[ab * places + place] = found.of[ab];
  }
  __syncthreads();

  // An edge beside column boundary b comes after the edges of the rows of blocks above it.
  for (int64_t i = threadIdx.x; i < 4 * edges; i += kThreads) {
    const int64_t ab = i / edges, edge = i % edges, beside = edge - row_edges;
    const int64_t cells = beside < 0 ? grid.wide : grid.high;
    const int64_t first =
        beside < 0 ? edge * cells : in_rows + beside % (columns - 1) * grid.down() + beside / (columns - 1) * cells;
    float sum = 0;
    for (int64_t q = 0; q < cells; ++q) sum += terms[ab * places + first + q];
    p[i] = __fmul_rn(scale.data, finite_or_zero(__fdiv_rn(sum, static_cast<float>(cells))));
  }
  if (threadIdx.x < e.labels) priors[threadIdx.x] = prior(e, e.lam[e.lam_per_sample ? n : 0], threadIdx.x);
  __syncthreads();

  for (int64_t i = threadIdx.x; i < edges; i += kThreads)
    (i < row_edges ? weight_y + i : weight_x + i - row_edges)[0] =
        edge_weight(scale, p[i], p[edges + i], p[2 * edges + i], p[3 * edges + i]);
  const float* saliency = static_cast<const float*>(e.saliency);
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    const int64_t i = b / columns, j = b % columns;
    float show_own = saliency[partner * blocks + b], show_partner = saliency[n * blocks + b];
    if (i + 1 < rows) add_edge(p + b, edges, true, show_own, show_partner);
    if (i > 0) add_edge(p + b - columns, edges, false, show_own, show_partner);
    const float* beside = p + row_edges + i * (columns - 1);
    if (j + 1 < columns) add_edge(beside + j, edges, true, show_own, show_partner);
    if (j > 0) add_edge(beside + j - 1, edges, false, show_own, show_partner);
    for (int l = 0; l < e.labels; ++l)
      unary[b * e.labels + l] = label_cost(scale.whole, partner_share(l, e.labels), priors[l], show_own, show_partner);
  }
}

template <class T>
int pool(const Energy& e, const CellGrid& grid) {
  const int64_t blocks = (grid.count() + kThreads - 1) / kThreads;
  return launch(e.queue, pool_kernel<T>, e.n * blocks, kThreads, 0, e, grid, blocks);
}

int pool(const Energy& e, const CellGrid& grid) {
  switch (e.type) {
    case DType::u8:
      return pool<uint8_t>(e, grid);
    case DType::f16:
      return pool<Half>(e, grid);
    case DType::bf16:
      return pool<BFloat16>(e, grid);
    default:
      return pool<float>(e, grid);
  }
}

}  // namespace

int puzzle_energy(const Energy& e) {
  const CellGrid grid(e);
  if (const int error = pool(e, grid)) return error;
  const int64_t shared = (8 + 4 * grid.edges()) * sizeof(float);
  return launch(e.queue, cost_kernel, e.n, kThreads, shared, e, grid, energy_scale<float>(e));
}

}  // namespace cuda
}  // namespace fastmix
