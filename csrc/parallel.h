// Loops over the threads of the OpenMP runtime that torch already runs on (see fastmix/native.py).
#pragma once

#include <cstdint>

namespace fastmix {

using Body = void (*)(void* context, int64_t begin, int64_t end);

// Splits [0, items) into pieces of `grain` and hands them out to at most `threads` threads, in ascending order.
void parallel_for(int64_t items, int64_t grain, int threads, Body body, void* context);

// Address of the runtime's GOMP_parallel. Until it is given, std::thread serves.
void use_openmp(uintptr_t gomp_parallel);

template <class F>
void parallel_for(int64_t items, int64_t grain, int threads, F& f) {
  parallel_for(
      items, grain, threads, [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
      &f);
}

}  // namespace fastmix
