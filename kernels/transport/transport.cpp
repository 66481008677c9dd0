// CPU kernel of `transport`: a sample a thread.
#include "transport.h"

#include <vector>

#include "parallel.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

template <class Solver>
void solve_all(const Transport& call) {
  constexpr int kCells = 512;  // worth a piece of work
  auto body = [&](int64_t begin, int64_t end) {
    const SerialBlock block;
    std::vector<uint64_t> memory(Solver::memory(call.height, call.width) / sizeof(uint64_t));
    for (int64_t sample = begin; sample < end; ++sample) Solver(block, call, sample, memory.data()).solve();
  };
  parallel_for(call.n, (kCells - 1) / (call.height * call.width) + 1, call.queue.threads, body);
}

}  // namespace

void transport(const Transport& call) {
  if (call.exact)
    solve_all<TransportPaths<SerialBlock>>(call);
  else
    solve_all<TransportRounds<SerialBlock>>(call);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
