// Solves random grids on one thread and on several: the results must be equal, and ThreadSanitizer silent.
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/grid_cut/grid_cut.h"
#include "thread_block.h"

using namespace fastmix;
using namespace fastmix::FASTMIX_ISA;

namespace {

enum Solver { kUpMoves, kLayers, kSwap };

struct Result {
  std::vector<int> labels;
  int64_t energy = 0;
  bool convex = false;

  bool operator==(const Result& other) const {
    return labels == other.labels && energy == other.energy && convex == other.convex;
  }
};

struct Grids {
  std::vector<int32_t> unary, weight_y, weight_x;
  Cut cut{};

  Grids(int height, int width, int labels, bool convex, std::mt19937& random)
      : unary(height * width * labels), weight_y((height - 1) * width), weight_x(height * (width - 1)) {
    std::uniform_int_distribution<int> cost(-9, 9), weight(0, 5);
    for (int i = 0; i < height * width; ++i) {
      int slope = cost(random);
      for (int l = 0; l < labels; ++l) {
        unary[i * labels + l] = convex ? l * slope + l * l : cost(random);
      }
    }
    for (auto* weights : {&weight_y, &weight_x})
      for (int32_t& w : *weights) w = weight(random);
    cut.n = 1, cut.height = height, cut.width = width, cut.labels = labels;
    cut.unary = unary.data(), cut.weight_y = weight_y.data(), cut.weight_x = weight_x.data();
  }
};

// By all members; member 0 keeps the result.
template <class Block>
void solve(const Block& block, const Cut& cut, Solver solver, int32_t* memory, Result& result) {
  GridCut<Block> grid(block, cut, 0, memory);
  const bool convex = grid.convex();
  if (solver == kSwap)
    grid.swap_labels();
  else if (solver == kUpMoves)
    grid.raise_labels();
  else if (cut.labels == 3)
    grid.template cut_layers<2>();
  else
    grid.template cut_layers<3>();
  const int64_t energy = grid.energy();
  if (block.rank() == 0) {
    for (int i = 0; i < cut.height * cut.width; ++i) result.labels.push_back(grid.label(i));
    result.energy = energy, result.convex = convex;
  }
}

bool same(const Grids& grids, Solver solver, int threads) {
  const Cut& cut = grids.cut;
  const int64_t size = GridCut<SerialBlock>::memory(cut.height, cut.width, solver == kLayers ? cut.labels - 1 : 1);
  std::vector<int32_t> memory(size), shared(size);
  Result serial, parallel;
  solve(SerialBlock(), cut, solver, memory.data(), serial);
  on_team(threads, [&](const ThreadBlock& block) { solve(block, cut, solver, shared.data(), parallel); });
  return serial == parallel;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  const int shapes[][2] = {{1, 1}, {1, 6}, {5, 1}, {2, 2}, {3, 5}, {4, 4}, {8, 8}};
  int solved = 0;
  for (const auto& shape : shapes)
    for (int labels = 2; labels <= 4; ++labels)
      for (int threads : {2, 3, 4})
        for (Solver solver : {kUpMoves, kLayers, kSwap}) {
          if (solver == kLayers && labels == 2) continue;
          const Grids grids(shape[0], shape[1], labels, solver == kUpMoves, random);
          if (!same(grids, solver, threads)) {
            std::printf("%d x %d sites, %d labels, solver %d: %d threads find another result\n", shape[0], shape[1],
                        labels, solver, threads);
            return 1;
          }
          ++solved;
        }
  std::printf("%d grids\n", solved);
}
