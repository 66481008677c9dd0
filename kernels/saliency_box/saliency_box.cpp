// CPU kernel of `saliency_box`: a map a thread.
#include "saliency_box.h"

#include <algorithm>

#include "parallel.h"

namespace fastmix {
namespace FASTMIX_ISA {

void saliency_box(const SaliencyBox& call) {
  const int64_t cells = int64_t(call.height) * call.width, room = int64_t(call.height + 1) * (call.width + 1);
  auto body = [&](int64_t begin, int64_t end) {
    const SerialBlock block;
    for (int64_t n = begin; n < end; ++n)
      BoxFinder<SerialBlock>(block, call, n, call.sums ? call.sums + n * room : nullptr).find();
  };
  parallel_for(call.n, std::max<int64_t>(1, 8192 / cells), call.queue.threads, body);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
