#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace fastmix {
namespace {

// void GOMP_parallel(void (*fn)(void*), void* data, unsigned threads, unsigned flags): the entry point that
// `#pragma omp parallel` compiles to; GNU, LLVM and Intel runtimes export it.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;

struct Loop {
  int64_t items, grain;
  Body body;
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  // An exception must not leave a thread: the first one ends the loop and is thrown again by `finish`.
  void work() noexcept {
    try {
      for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < items;)
        body(context, begin, std::min(begin + grain, items));
    } catch (...) {
      next.store(items, std::memory_order_relaxed);
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }

  void finish() const {
    if (error) std::rethrow_exception(error);
  }
};

}  // namespace

void use_openmp(uintptr_t address) { gomp_parallel = reinterpret_cast<GompParallel>(address); }

void parallel_for(int64_t items, int64_t grain, int threads, Body body, void* context) {
  const int64_t pieces = (items + grain - 1) / grain;
  threads = static_cast<int>(std::min<int64_t>(threads, pieces));
  if (threads <= 1) {
    if (items > 0) body(context, 0, items);
    return;
  }
  Loop loop;
  loop.items = items, loop.grain = grain, loop.body = body, loop.context = context;
  if (gomp_parallel) {
    gomp_parallel([](void* data) { static_cast<Loop*>(data)->work(); }, &loop, static_cast<unsigned>(threads), 0);
    return loop.finish();
  }
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < threads; ++i) helpers.emplace_back([&loop] { loop.work(); });
  } catch (const std::system_error&) {  // no more threads to be had: those that started do the work
  }
  loop.work();
  for (auto& helper : helpers) helper.join();
  loop.finish();
}

}  // namespace fastmix
