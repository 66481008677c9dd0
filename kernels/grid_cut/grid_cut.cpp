// CPU kernel of `grid_cut`: a sample a thread.
#include "grid_cut.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

using SerialCut = GridCut<SerialBlock>;

class Solver {
 public:
  explicit Solver(const Cut& cut) : cut_(cut), memory_(SerialCut::memory(cut.height, cut.width, 1)) {}

  void solve(int64_t sample) {
    SerialCut grid(block_, cut_, sample, memory_.data());
    if (cut_.swap)
      grid.swap_labels();
    else if (grid.convex())
      grid.raise_labels();
    else
      return solve_layers(sample);
    store(grid, sample);
  }

 private:
  void solve_layers(int64_t sample) {
    layers_memory_.resize(SerialCut::memory(cut_.height, cut_.width, cut_.labels - 1));
    SerialCut grid(block_, cut_, sample, layers_memory_.data());
    cut_.labels == 3 ? grid.cut_layers<2>() : grid.cut_layers<3>();
    store(grid, sample);
  }

  void store(const SerialCut& grid, int64_t sample) {
    const int64_t sites = cut_.height * cut_.width;
    for (int64_t i = 0; i < sites; ++i) cut_.out[sample * sites + i] = grid.label(static_cast<int>(i));
    cut_.energy[sample] = grid.energy();
  }

  const Cut& cut_;
  SerialBlock block_;
  std::vector<int32_t> memory_, layers_memory_;
};

}  // namespace

void grid_cut(const Cut& c) {
  constexpr int64_t kSites = 512;  // worth a piece of work
  auto body = [&](int64_t begin, int64_t end) {
    Solver solver(c);
    for (int64_t sample = begin; sample < end; ++sample) solver.solve(sample);
  };
  parallel_for(c.n, (kSites - 1) / (c.height * c.width) + 1, c.queue.threads, body);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
