// CUDA kernels of `saliency_pool`. A CUDA block adds up some rows of pixels of a row of blocks: its threads stand side
// by side along x, four or eight pixels each where the layout allows, and go down; their sums of columns meet in shared
// memory. A second kernel turns the sums of a sample into shares, and begins anew where squares have not served.
#include "dtype.h"
#include "launch.h"
#include "saliency_pool.h"

namespace fastmix {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// How the pixels of a gradient lie in memory, and how threads share them.
struct Layout {
  int64_t channel_step, pixel_step, sample;  // values
  int rows, columns, parts;                  // of blocks; of the pixels of a row of blocks
  int width, block_height, block_width;
  int lines;                        // of pixels in a part
  int threads_a_row, rows_at_once;  // of pixels
  int team;                         // neighbouring threads that add up the columns of one block, a power of two

  Layout(const Saliency& s, int packet)
      : channel_step(s.channels_last ? 1 : s.height * s.width),
        pixel_step(s.channels_last ? s.channels : 1),
        sample(s.channels * s.height * s.width),
        rows(static_cast<int>(s.rows)),
        columns(static_cast<int>(s.columns)),
        parts(static_cast<int>(s.parts)),
        width(static_cast<int>(s.width)),
        block_height(static_cast<int>(s.height / s.rows)),
        block_width(static_cast<int>(s.width / s.columns)),
        lines((block_height + parts - 1) / parts) {
    threads_a_row = 1;
    while (threads_a_row < kThreads && threads_a_row * packet < width) threads_a_row *= 2;
    rows_at_once = kThreads / threads_a_row;
    team = 32;
    while (team > 1 && team * s.columns > kThreads) team /= 2;
  }

  __device__ double* sums(const Saliency& s, int64_t n, int row, int part) const {
    return s.means + ((n * rows + row) * parts + part) * columns;
  }
};

__device__ __forceinline__ float value_at(const float* p) { return __ldg(p); }
__device__ __forceinline__ float value_at(const Half* p) { return widen_f16(__ldg(&p->bits)); }
__device__ __forceinline__ float value_at(const BFloat16* p) { return widen_bf16(__ldg(&p->bits)); }

// V neighbouring values, moved as a whole.
template <int V, class T>
__device__ __forceinline__ void read(const T* from, float (&v)[V]) {
  if constexpr (V == 1) {
    v[0] = value_at(from);
  } else {
    static_assert(V * sizeof(T) == 16, "");
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < V; j += 4) widen(static_cast<const T*>(nullptr), words + j / 4 * sizeof(T), v + j);
  }
}

// sum[j] += the roots of V neighbouring pixels. kChannels: how many there are, or 0.
template <int V, int kChannels, class T>
__device__ __forceinline__ void add_roots(const Saliency& s, const Layout& layout, const T* pixel, float scale,
                                          float (&sum)[V]) {
  const int channels = kChannels ? kChannels : static_cast<int>(s.channels);
  float squares[V] = {};
#pragma unroll(kChannels ? kChannels : 1)
  for (int c = 0; c < channels; ++c) {
    float v[V];
    read(pixel + c * layout.channel_step, v);
#pragma unroll
    for (int j = 0; j < V; ++j) squares[j] += (v[j] * scale) * (v[j] * scale);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] += __fsqrt_rn(__fdiv_rn(squares[j], static_cast<float>(channels)));
}

// The sums of one part of a row of the blocks of sample n. All threads of the CUDA block take part; shared memory holds
// `V * kThreads` floats, which nobody uses any more.
template <int V, int kChannels, class T>
__device__ __forceinline__ void sum_part(const Saliency& s, const Layout& layout, int64_t n, int row, int part,
                                         float scale) {
  const int first = part * layout.lines, end = min(layout.block_height, first + layout.lines);
  const int column = threadIdx.x % layout.threads_a_row * V, line = threadIdx.x / layout.threads_a_row;
  const int piece = layout.threads_a_row * V, member = threadIdx.x % layout.team;
  const T* block = static_cast<const T*>(s.grad) + n * layout.sample +
                   static_cast<int64_t>(row) * layout.block_height * layout.width * layout.pixel_step;
  float* columns = shared_floats();
  double* to = layout.sums(s, n, row, part);

  for (int x = 0; x < layout.width; x += piece) {
    float sum[V] = {};
    if (x + column < layout.width)
      for (int y = first + line; y < end; y += layout.rows_at_once)
        add_roots<V, kChannels>(
            s, layout, block + (static_cast<int64_t>(y) * layout.width + x + column) * layout.pixel_step, scale, sum);
#pragma unroll
    for (int j = 0; j < V; ++j) columns[line * piece + column + j] = sum[j];
    __syncthreads();
    for (int base = 0; base < layout.columns; base += kThreads / layout.team) {
      const int j = base + threadIdx.x / layout.team;
      const int from = max(j * layout.block_width, x),
                until = min(min((j + 1) * layout.block_width, x + piece), layout.width);
      double of_block = 0;
      for (int p = from + member; j < layout.columns && p < until; p += layout.team)
        for (int r = 0; r < layout.rows_at_once; ++r) of_block += columns[r * piece + (p - x)];
      for (int step = layout.team / 2; step > 0; step /= 2) of_block += __shfl_xor_sync(0xffffffff, of_block, step);
      if (member == 0 && j < layout.columns && from < until)
        to[j] = from == j * layout.block_width ? of_block : to[j] + of_block;
    }
    __syncthreads();
  }
}

template <int V, int kChannels, class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(Saliency s, Layout layout) {
  const int row = blockIdx.x / layout.parts;
  sum_part<V, kChannels, T>(s, layout, row / layout.rows, row % layout.rows, blockIdx.x % layout.parts, 1.f);
}

// Sum, or largest, over the CUDA block, the same on all threads. `scratch` holds kThreads doubles.
template <class Join>
__device__ __forceinline__ double joined(double value, double* scratch, Join join) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step)
      scratch[threadIdx.x] = join(scratch[threadIdx.x], scratch[threadIdx.x + step]);
  }
  __syncthreads();
  return scratch[0];
}

// Sums of the blocks of sample n, in the place of their first parts; returns the sum of all.
__device__ __forceinline__ double join_parts(const Saliency& s, const Layout& layout, int64_t n, double* scratch) {
  double total = 0;
  for (int b = threadIdx.x; b < layout.rows * layout.columns; b += kThreads) {
    double *first = layout.sums(s, n, b / layout.columns, 0) + b % layout.columns, sum = 0;
    for (int part = 0; part < layout.parts; ++part) sum += first[part * layout.columns];
    *first = sum;
    total += sum;
  }
  return joined(total, scratch, [](double a, double b) { return a + b; });
}

// 1 / v to a few units in the last place; a division in double would be a call.
__device__ __forceinline__ double reciprocal(double v) {
  double r = __fdiv_rn(1.f, static_cast<float>(v));
  r += r * (1 - v * r);
  return r + r * (1 - v * r);
}

template <class T>
__global__ void __launch_bounds__(kThreads) share_kernel(Saliency s, Layout layout) {
  const int64_t n = blockIdx.x;
  double* scratch = reinterpret_cast<double*>(shared_floats());
  double total = join_parts(s, layout, n, scratch);
  bool uniform = false;
  if (!squares_served(total, 0.f)) {
    const T* image = static_cast<const T*>(s.grad) + n * layout.sample;
    float own = 0;
    for (int64_t i = threadIdx.x; i < layout.sample; i += kThreads) {
      const float v = fabsf(value_at(image + i));
      own = v <= own ? own : v < INFINITY ? v : INFINITY;
    }
    const float peak = static_cast<float>(joined(own, scratch, [](double a, double b) { return a < b ? b : a; }));
    uniform = !(peak > 0 && peak < INFINITY);
    if (!uniform) {
      __syncthreads();
      for (int part = 0; part < layout.rows * layout.parts; ++part)
        sum_part<1, 0, T>(s, layout, n, part / layout.parts, part % layout.parts, unit_scale(peak));
      total = join_parts(s, layout, n, scratch);
    }
  }
  const int blocks = layout.rows * layout.columns;
  const double inverse = uniform ? 0 : reciprocal(total);
  for (int b = threadIdx.x; b < blocks; b += kThreads) {
    const double sum = layout.sums(s, n, b / layout.columns, 0)[b % layout.columns];
    s.out[n * blocks + b] = uniform ? __fdiv_rn(1.f, static_cast<float>(blocks)) : static_cast<float>(sum * inverse);
  }
}

template <int V, int kChannels, class T>
int run(const Saliency& s) {
  const int error = launch(s.queue, sum_kernel<V, kChannels, T>, s.n * s.rows * s.parts, kThreads,
                           V * kThreads * sizeof(float), s, Layout(s, V));
  if (error != cudaSuccess) return error;
  return launch(s.queue, share_kernel<T>, s.n, kThreads, kThreads * sizeof(double), s, Layout(s, 1));
}

template <class T>
int run(Saliency s) {
  constexpr int kPacket = 16 / sizeof(T);
  s.channels_last = s.channels_last && s.channels > 1;
  const bool packets = !s.channels_last && s.width % kPacket == 0 && reinterpret_cast<uintptr_t>(s.grad) % 16 == 0;
  if (s.channels == 3) return packets ? run<kPacket, 3, T>(s) : run<1, 3, T>(s);
  return packets ? run<kPacket, 0, T>(s) : run<1, 0, T>(s);
}

}  // namespace

int saliency_pool(const Saliency& s) {
  switch (s.type) {
    case DType::f16:
      return run<Half>(s);
    case DType::bf16:
      return run<BFloat16>(s);
    default:
      return run<float>(s);
  }
}

}  // namespace cuda
}  // namespace fastmix
