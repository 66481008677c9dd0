// Finds boxes and masks on one thread and on several: they must be equal, and ThreadSanitizer silent.
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/saliency_box/saliency_box.h"
#include "kernels/spectral_mask/spectral_mask.h"
#include "thread_block.h"

using namespace fastmix;
using namespace fastmix::FASTMIX_ISA;

void increase(const ThreadBlock&, int& number, int by) { __atomic_fetch_add(&number, by, __ATOMIC_RELAXED); }

namespace {

template <class Block>
void find(const Block& block, SaliencyBox call, std::vector<int32_t>& box, std::vector<double>& sums) {
  call.box = box.data();
  BoxFinder<Block>(block, call, 0, sums.data()).find();
}

template <class Block>
void select(const Block& block, SpectralMask call, std::vector<float>& out, std::vector<int>& memory) {
  call.out = out.data();
  TopSelection<Block>(block, call, 0, memory.data()).write();
}

bool same_boxes(const SaliencyBox& call, int threads) {
  std::vector<int32_t> serial(4), parallel(4);
  std::vector<double> own((call.height + 1) * (call.width + 1)), shared = own;
  find(SerialBlock(), call, serial, own);
  on_team(threads, [&](const ThreadBlock& block) { find(block, call, parallel, shared); });
  return serial == parallel;
}

bool same_masks(const SpectralMask& call, int threads) {
  std::vector<float> serial(call.height * call.width), parallel = serial;
  std::vector<int> own(TopSelection<SerialBlock>::kMemoryBytes / sizeof(int)), shared = own;
  select(SerialBlock(), call, serial, own);
  on_team(threads, [&](const ThreadBlock& block) { select(block, call, parallel, shared); });
  int64_t ones = 0;
  for (float weight : serial) ones += weight == 1;
  return serial == parallel && ones == call.count[0];
}

}  // namespace

int main() {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const int shapes[][2] = {{1, 1}, {1, 6}, {5, 1}, {3, 5}, {9, 8}};
  int found = 0;
  for (const auto& shape : shapes)
    for (bool few_values : {false, true})
      for (int threads : {2, 3, 7}) {
        const int cells = shape[0] * shape[1];
        std::vector<float> values(cells);
        for (float& v : values) v = few_values ? static_cast<float>(random() % 3) : normal(random);
        const double lam = .4;
        const int32_t window[] = {(shape[0] + 1) / 2, (shape[1] + 1) / 2};
        const int64_t count = cells / 2;
        SaliencyBox box{};
        box.n = 1, box.height = box.image_height = shape[0], box.width = box.image_width = shape[1];
        box.saliency = values.data(), box.smallest = threads == 3, box.lam = &lam;
        SaliencyBox around = box;
        around.lam = nullptr, around.window = window;
        SpectralMask mask{};
        mask.n = 1, mask.height = shape[0], mask.width = shape[1], mask.field = values.data(), mask.count = &count;
        if (!same_boxes(box, threads) || !same_boxes(around, threads) || !same_masks(mask, threads)) {
          std::printf("%d x %d: %d threads find something else\n", shape[0], shape[1], threads);
          return 1;
        }
        ++found;
      }
  std::printf("%d maps\n", found);
}
