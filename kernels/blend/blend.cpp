// CPU kernels of `blend`: a sample is one long row, cut into strips that stay in cache.
#include "pixels.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

Grid strips(const Mix& m) {
  constexpr int64_t kStrip = 4096;
  const bool by_channel = m.scale && !m.channels_last;
  const int64_t inner = m.scale && m.channels_last ? m.channels : 1;
  const int64_t planes = by_channel ? m.channels : 1;
  const int64_t plane = m.height * m.width * m.channels / std::max<int64_t>(1, planes);
  const int64_t strip = std::max<int64_t>(1, kStrip / inner) * inner;
  return {planes, plane, std::min(strip, std::max<int64_t>(1, plane)), inner};
}

template <class Acc>
struct SampleWeight {
  const Mix& m;
  const Grid& grid;

  struct Scratch {
    explicit Scratch(const SampleWeight&) {}
  };

  template <class F>
  void strip(Scratch&, int64_t n, int64_t i, F f) const {
    f(flat<Acc>(0, grid.length(i), static_cast<const Acc*>(m.lam)[lam_at(m, n)]));
  }
};

}  // namespace

void blend(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const Grid grid = strips(m);
    mix_images<Acc>(m, grid, SampleWeight<Acc>{m, grid});
  });
}

void blend_grad_x(const Mix& m) {
  with_acc(m.grad_type, [&](auto acc) {
    using Acc = decltype(acc);
    const Grid grid = strips(m);
    mix_grad_x<Acc>(m, grid, SampleWeight<Acc>{m, grid});
  });
}

void blend_grad_lam(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const Grid grid = strips(m);
    const Affine<Acc> affine(m, grid);
    for_samples(
        m, grid.sample(), [&] { return std::vector<Acc>(grid.strip); },
        [&](std::vector<Acc>& dot, int64_t n) {
          const Acc lam = static_cast<const Acc*>(m.lam)[lam_at(m, n)];
          double total = 0;
          for (int64_t i = 0; i < grid.strips(); ++i) {
            weight_gradient(m, grid, affine, n, i, lam, static_cast<const Acc*>(nullptr), dot.data());
            total += sum_of(dot.data(), grid.length(i));
          }
          static_cast<Acc*>(m.out)[n] = static_cast<Acc>(total);
        });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
