// CPU kernels of `box_blend`: a row is own | box | own, three segments of one weight each.
#include "pixels.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// The box of sample n clipped to the image.
struct Box {
  int64_t y0, x0, y1, x1;

  Box(const Mix& m, int64_t n)
      : y0(clip(m.box[4 * n], m.height)),
        x0(clip(m.box[4 * n + 1], m.width)),
        y1(clip(m.box[4 * n + 2], m.height)),
        x1(clip(m.box[4 * n + 3], m.width)) {
    if (x1 < x0) x1 = x0;
  }

  bool crosses(int64_t y) const { return y0 <= y && y < y1; }
  static int64_t clip(int64_t v, int64_t size) { return std::max<int64_t>(0, std::min(v, size)); }
};

template <class Acc>
struct BoxWeight {
  const Mix& m;
  const RowGrid& grid;

  struct Scratch {
    explicit Scratch(const BoxWeight&) {}
  };

  template <class F>
  void strip(Scratch&, int64_t n, int64_t i, F f) const {
    const Acc lam = m.lam ? static_cast<const Acc*>(m.lam)[lam_at(m, n)] : Acc(1);
    const Box box(m, n);
    const int64_t row = m.width * grid.inner;
    int64_t done = 0;  // elements of the strip; what lies between two boxed stretches is one segment
    for (int64_t y = grid.first_row(i), start = 0; y < grid.end_row(i); ++y, start += row) {
      if (!box.crosses(y)) continue;
      f(flat<Acc>(done, start + box.x0 * grid.inner, lam));
      done = start + box.x1 * grid.inner;
      f(flat<Acc>(start + box.x0 * grid.inner, done, 0));
    }
    f(flat<Acc>(done, grid.length(i), lam));
  }
};

template <class Acc>
double sum_outside(const Mix& m, const RowGrid& grid, const Box& box, int64_t i, const Acc* dot) {
  const int64_t row = m.width * grid.inner;
  double total = 0;
  for (int64_t y = grid.first_row(i); y < grid.end_row(i); ++y, dot += row) {
    const int64_t begin = box.crosses(y) ? box.x0 * grid.inner : row, end = box.crosses(y) ? box.x1 * grid.inner : row;
    total += sum_of(dot, begin) + sum_of(dot + end, row - end);
  }
  return total;
}

}  // namespace

void box_blend(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    mix_images<Acc>(m, grid, BoxWeight<Acc>{m, grid});
  });
}

void box_blend_grad_x(const Mix& m) {
  with_acc(m.grad_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    mix_grad_x<Acc>(m, grid, BoxWeight<Acc>{m, grid});
  });
}

// Only pixels outside the box depend on lam.
void box_blend_grad_lam(const Mix& m) {
  with_acc(m.x_type, [&](auto acc) {
    using Acc = decltype(acc);
    const RowGrid grid(m);
    const Affine<Acc> affine(m, grid);
    for_samples(
        m, grid.sample(), [&] { return std::vector<Acc>(grid.strip); },
        [&](std::vector<Acc>& dot, int64_t n) {
          const Box box(m, n);
          const Acc lam = static_cast<const Acc*>(m.lam)[lam_at(m, n)];
          double total = 0;
          for (int64_t i = 0; i < grid.strips(); ++i) {
            weight_gradient(m, grid, affine, n, i, lam, static_cast<const Acc*>(nullptr), dot.data());
            total += sum_outside(m, grid, box, i, dot.data());
          }
          static_cast<Acc*>(m.out)[n] = static_cast<Acc>(total);
        });
  });
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
