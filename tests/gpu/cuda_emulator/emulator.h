// What the parts of the emulator share.
#pragma once

#include <cuda_runtime.h>
#include <signal.h>
#include <sys/mman.h>

namespace emulator {

// The launch that runs.
struct Running {
  const void* kernel = nullptr;  // null between launches
  unsigned thread;               // of the block that runs
  const char *stack, *stack_end;
  char *shared, *shared_end;
};
extern Running running;

// Runs all threads of the grid; `run(call)` runs one.
void run_grid(void (*run)(const void*), const void* call);

// Stops the process, saying where. `instruction`: the address of the code to blame.
[[noreturn]] void fail_at(const void* instruction, const char* format, ...) __attribute__((format(printf, 2, 3)));

// While it lives, faults and the traps of the sanitizer are reported too.
class Watch {
 public:
  Watch();
  ~Watch();

 private:
  stack_t previous_stack_;
};

// Memory between two pages that fault.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_((bytes + kPage - 1) / kPage * kPage) {
    void* base = mmap(nullptr, bytes_ + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("out of memory");
    begin_ = static_cast<char*>(base) + kPage;
    mprotect(begin_, bytes_, PROT_READ | PROT_WRITE);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(begin_ - kPage, bytes_ + 2 * kPage); }
  char* begin() const { return begin_; }
  char* end() const { return begin_ + bytes_; }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kPage = 65536;  // a multiple of every page size

  char* begin_;
  size_t bytes_;
};

// The watch over what kernels read and write.
namespace accesses {

void start_launch();
void start_block();
void block_barrier();                            // orders what was accessed before it, for all threads of the block
void sync_lanes(unsigned first, unsigned mask);  // the same for some lanes of the warp that starts at thread `first`

}  // namespace accesses
}  // namespace emulator
