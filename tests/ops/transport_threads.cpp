// Finds plans on one thread and on several: they must be equal, and ThreadSanitizer silent.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/transport/transport.h"
#include "thread_block.h"

using namespace fastmix;
using namespace fastmix::FASTMIX_ISA;

void lower(const ThreadBlock&, uint64_t& slot, uint64_t value) {
  uint64_t seen = __atomic_load_n(&slot, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(&slot, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

namespace {

struct Maps {
  std::vector<uint8_t> visible;
  std::vector<float> saliency;

  // Every third map has few different values, every other third zeros.
  Maps(int cells, int kind, std::mt19937& random) : visible(cells), saliency(cells) {
    std::lognormal_distribution<float> share(0, 1.2f);
    float total = 0;
    for (int i = 0; i < cells; ++i) {
      visible[i] = random() % 3 != 0;
      saliency[i] = kind == 0 ? static_cast<float>(random() % 3) : kind == 1 && random() % 3 == 0 ? 0 : share(random);
      total += saliency[i];
    }
    for (float& s : saliency) s = kind == 0 ? s / 64 : s / total;
  }
};

template <template <class> class Plan, class Block>
void solve(const Block& block, Transport call, std::vector<uint64_t>& memory, std::vector<int32_t>& source) {
  call.source = source.data();
  Plan<Block>(block, call, 0, memory.data()).solve();
}

template <template <class> class Plan>
bool same(const Transport& call, int threads) {
  const int cells = call.height * call.width;
  std::vector<uint64_t> memory(Plan<SerialBlock>::memory(call.height, call.width) / sizeof(uint64_t)), shared = memory;
  std::vector<int32_t> serial(cells), parallel(cells);
  solve<Plan>(SerialBlock(), call, memory, serial);
  on_team(threads, [&](const ThreadBlock& block) { solve<Plan>(block, call, shared, parallel); });
  return serial == parallel;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  const int shapes[][2] = {{1, 1}, {1, 6}, {5, 1}, {2, 2}, {3, 5}, {4, 4}, {8, 8}};
  int solved = 0;
  for (const auto& shape : shapes)
    for (double eps : {0., .1, .8, 2.})
      for (int kind = 0; kind < 3; ++kind)
        for (int threads : {2, 3, 7}) {
          const Maps maps(shape[0] * shape[1], kind, random);
          Transport call{};
          call.n = 1, call.height = shape[0], call.width = shape[1], call.eps = eps;
          call.visible = maps.visible.data(), call.saliency = maps.saliency.data();
          if (!same<TransportRounds>(call, threads) || !same<TransportPaths>(call, threads)) {
            std::printf("%d x %d blocks, eps %g, maps %d: %d threads find another plan\n", shape[0], shape[1], eps,
                        kind, threads);
            return 1;
          }
          ++solved;
        }
  std::printf("%d maps\n", solved);
}
