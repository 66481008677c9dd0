// CUDA kernels of `box_blend`: weight 0 inside the box.
#include "pixels.cuh"

namespace fastmix {
namespace cuda {
namespace {

struct BoxWeight {
  enum : bool { kUniform = false, kHasMean = false };  // one weight a packet; a mean to report
  const int32_t* box;
  const float* lam;  // 1 if null
  bool per_output;

  // The part of the box that lies in the tile, columns counted in values.
  struct Box {
    int y0, x0, y1, x1;
    float inside, outside;
  };

  template <int N>
  struct State {
    Box box[N];
  };

  bool allows_packets() const { return true; }
  int64_t fit(Grid&) const { return 0; }

  template <class P, int N>
  __device__ State<N> open(const Grid& grid, const Tile& tile, const Output (&output)[N]) const {
    State<N> state;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int32_t* corners = box + 4 * output[i].number;
      const auto y = [&](int k) { return clip(__ldg(corners + k) - tile.y, tile.rows); };
      const auto x = [&](int k) {
        return clip(__ldg(corners + k) * int64_t{grid.inner.divisor} - tile.x, tile.columns);
      };
      const float outside = lam ? __ldg(lam + (per_output ? output[i].number : 0)) : 1.f;
      state.box[i] = {y(0), x(1), y(2), x(3), output[i].valid ? 0.f : NAN, output[i].valid ? outside : NAN};
    }
    return state;
  }

  __device__ void sync() const {}

  template <class P, int N>
  __device__ void packet(const State<N>& state, const Grid&, const Tile&, const Lane<P>& lane,
                         float (&w)[N][P::kWidth]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Box& box = state.box[i];
      const bool crosses = lane.row >= box.y0 && lane.row < box.y1;
#pragma unroll
      for (int j = 0; j < P::kWidth; ++j)
        w[i][j] = crosses && lane.at(j) >= box.x0 && lane.at(j) < box.x1 ? box.inside : box.outside;
    }
  }

  static __device__ int clip(int64_t v, int size) {
    return static_cast<int>(max(int64_t{0}, min(v, static_cast<int64_t>(size))));
  }
};

BoxWeight weight(const Mix& m, const void* lam) { return {m.box, static_cast<const float*>(lam), m.lam_per_sample}; }

}  // namespace

int box_blend(const Mix& m) { return mix_images(m, Shape::of(m), weight(m, m.lam)); }

int box_blend_grad_x(const Mix& m) { return mix_grad_x(m, Shape::of(m), weight(m, m.lam)); }

int box_blend_grad_lam(const Mix& m) { return mix_grad_lam(m, Shape::of(m), weight(m, nullptr)); }

int64_t box_blend_grad_lam_workspace(const Mix& m) {
  return tile_sums(m, Shape::of(m), m.grad_type, weight(m, nullptr), m.n);
}

}  // namespace cuda
}  // namespace fastmix
