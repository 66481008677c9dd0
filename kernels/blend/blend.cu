// CUDA kernels of `blend`: one weight a sample.
#include "pixels.cuh"

namespace fastmix {
namespace cuda {
namespace {

struct SampleWeight {
  enum : bool { kUniform = true, kHasMean = false };  // one weight a packet; a mean to report
  const float* lam;                                   // 1 if null
  bool per_output;

  template <int N>
  struct State {
    float w[N];
  };

  bool allows_packets() const { return true; }
  int64_t fit(Grid&) const { return 0; }

  template <class P, int N>
  __device__ State<N> open(const Grid&, const Tile&, const Output (&output)[N]) const {
    State<N> state;
#pragma unroll
    for (int i = 0; i < N; ++i)
      state.w[i] = !output[i].valid ? NAN : lam ? __ldg(lam + (per_output ? output[i].number : 0)) : 1.f;
    return state;
  }

  __device__ void sync() const {}

  template <class P, int N>
  __device__ void packet(const State<N>& state, const Grid&, const Tile&, const Lane<P>&,
                         float (&w)[N][P::kWidth]) const {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j) w[i][j] = state.w[i];
  }
};

SampleWeight weight(const Mix& m) { return {static_cast<const float*>(m.lam), m.lam_per_sample}; }

// Values of one weight can be cut into any number of planes. Four of them keep as many loads in flight.
Shape any_planes(const Mix& m, DType other) {
  const int64_t size = m.channels * m.height * m.width;
  for (int packet : {packet_width(m.x_type, other), 1})
    for (int64_t planes : {4, 3, 2})
      if (size % (planes * packet) == 0) return {planes, 1, size / planes, 1};
  return {1, 1, size, 1};
}

Shape shape(const Mix& m, DType other) { return m.scale ? Shape::of(m) : any_planes(m, other); }

}  // namespace

int blend(const Mix& m) { return mix_images(m, shape(m, m.out_type), weight(m)); }

int blend_grad_x(const Mix& m) { return mix_grad_x(m, any_planes(m, m.out_type), weight(m)); }

int blend_grad_lam(const Mix& m) { return mix_grad_lam(m, shape(m, m.grad_type), SampleWeight{}); }

int64_t blend_grad_lam_workspace(const Mix& m) {  // with or without a scale
  return std::max(tile_sums(m, Shape::of(m), m.grad_type, SampleWeight{}, m.n),
                  tile_sums(m, any_planes(m, m.grad_type), m.grad_type, SampleWeight{}, m.n));
}

}  // namespace cuda
}  // namespace fastmix
