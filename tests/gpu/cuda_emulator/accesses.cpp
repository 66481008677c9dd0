// Watches the memory accesses of kernels. They are compiled with -fsanitize=thread, but linked to the functions below
// instead of the sanitizer's library: these know about blocks, barriers and shared memory.
//
// A byte has a race if two threads access it, one of them writes, not both atomically, and nothing orders the two: no
// barrier between threads of a block, no __syncwarp between lanes of a warp. Nothing orders the blocks of a launch.
#include <string.h>

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace emulator::accesses {
namespace {

// An access: when and by whom. Blocks are numbered through all launches, from 1; `barriers` of the block and `syncs` of
// the lane since the last of them had gone by.
struct Access {
  uint32_t block = 0;
  uint32_t thread : 10, barriers : 21, atomic : 1;
  uint32_t syncs = 0;
  Access() : thread(0), barriers(0), atomic(0) {}
};

struct Byte {
  Access writer, reader, other_reader;  // the last ones
};

constexpr size_t kPage = 4096, kWord = 4, kKnown = 1024, kMostPages = 2048;
struct Page {
  Byte bytes[kPage];
  bool split[kPage / kWord] = {};  // by word; else its first byte stands for all, as most accesses are of whole words
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct KnownPage {
  uintptr_t number = 0;
  Page* page = nullptr;
} known[kKnown];  // by the last digits of their number

uint32_t block = 0, first_block_of_launch = 1, barriers = 0;
using Syncs = std::array<uint32_t, 32>;
std::vector<Syncs> syncs_seen(1024);  // of each thread: how many syncs of each lane of its warp came before
bool any_syncs = false;

void forget_syncs() {
  if (any_syncs) std::fill(syncs_seen.begin(), syncs_seen.end(), Syncs{});
  any_syncs = false;
}

Page& page_of(uintptr_t address) {
  const uintptr_t number = address / kPage;
  KnownPage& entry = known[number % kKnown];
  if (entry.number != number) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page.reset(new Page);
    entry = {number, page.get()};
  }
  return *entry.page;
}

bool within(uintptr_t address, const char* begin, const char* end) {
  return address - reinterpret_cast<uintptr_t>(begin) < size_t(end - begin);
}

// An access that is being looked at: `now` of `size` bytes, by the code at `from`.
struct Seen {
  Access now;
  uintptr_t address;
  size_t size;
  bool write, shared;
  const void* from;

  bool ordered(const Access& earlier) const {
    if (earlier.block < first_block_of_launch || (earlier.atomic && now.atomic)) return true;
    if (earlier.block != now.block) return shared;  // left over from a block that has ended
    if (earlier.thread == now.thread || earlier.barriers != now.barriers) return true;
    return earlier.thread / 32 == now.thread / 32 && syncs_seen[now.thread][earlier.thread % 32] > earlier.syncs;
  }

  void need_order(const Access& earlier, const char* has) const {
    if (ordered(earlier)) return;
    const char* does = now.atomic ? "updates" : write ? "writes" : "reads";
    const uintptr_t at = shared ? address - reinterpret_cast<uintptr_t>(running.shared) : address;
    const char* what = shared ? "shared memory" : "memory";
    if (earlier.block == now.block)
      fail_at(from, "race: %s %zu bytes of %s at %#zx, which thread %u has %s, and no barrier is in between", does,
              size, what, at, earlier.thread, has);
    fail_at(from, "race: %s %zu bytes of %s at %#zx, which another block of the launch has %s", does, size, what, at,
            has);
  }

  void mark(Byte& byte) const {
    need_order(byte.writer, "written");
    if (write) {
      need_order(byte.reader, "read");
      need_order(byte.other_reader, "read");
      byte.writer = now;
    } else {
      if (shared && byte.writer.block != now.block) fail_at(from, "reads shared memory that no thread has written");
      if (byte.reader.block != now.block || byte.reader.thread != now.thread) byte.other_reader = byte.reader;
      byte.reader = now;
    }
  }
};

void note(uintptr_t address, size_t size, bool write, bool atomic, const void* from) {
  if (!running.kernel || within(address, running.stack, running.stack_end)) return;
  Seen seen{{}, address, size, write, within(address, running.shared, running.shared_end), from};
  seen.now.block = block, seen.now.thread = running.thread, seen.now.barriers = barriers, seen.now.atomic = atomic;
  seen.now.syncs = syncs_seen[running.thread][running.thread % 32];
  for (uintptr_t i = address, end = address + size; i < end;) {
    Page& page = page_of(i);
    Byte* word = &page.bytes[i % kPage / kWord * kWord];
    bool& split = page.split[i % kPage / kWord];
    const uintptr_t first = i % kWord, last = std::min(kWord, first + end - i);
    if (!split && last - first < kWord) split = true, std::fill(word + 1, word + kWord, word[0]);
    for (uintptr_t byte = first; byte < (split ? last : 1); ++byte) seen.mark(word[byte]);
    i += last - first;
  }
}

}  // namespace

void start_launch() {
  first_block_of_launch = block + 1;
  if (pages.size() <= kMostPages) return;
  pages.clear();
  std::fill(std::begin(known), std::end(known), KnownPage{});
}

void start_block() {
  ++block, barriers = 0;
  forget_syncs();
}

void block_barrier() {
  if (++barriers == 1 << 21) fail("more than 2097151 barriers in a block");
  forget_syncs();
}

void sync_lanes(unsigned first, unsigned mask) {
  any_syncs = true;
  Syncs joined = {};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Syncs& own = syncs_seen[first + lane];
    ++own[lane];
    for (unsigned other = 0; other < 32; ++other) joined[other] = std::max(joined[other], own[other]);
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) syncs_seen[first + lane] = joined;
}

}  // namespace emulator::accesses

// What the compiler calls before each access.
#define EXPORTED __attribute__((visibility("hidden")))
#define NOTE(write) \
  emulator::accesses::note(reinterpret_cast<uintptr_t>(address), size, write, false, __builtin_return_address(0))
#define SIZED(name, bytes)                                   \
  EXPORTED void __tsan_##name##read##bytes(void* address) {  \
    constexpr size_t size = bytes;                           \
    NOTE(false);                                             \
  }                                                          \
  EXPORTED void __tsan_##name##write##bytes(void* address) { \
    constexpr size_t size = bytes;                           \
    NOTE(true);                                              \
  }

extern "C" {
SIZED(, 1)
SIZED(, 2)
SIZED(, 4)
SIZED(, 8)
SIZED(, 16)
SIZED(unaligned_, 2)
SIZED(unaligned_, 4)
SIZED(unaligned_, 8)
SIZED(unaligned_, 16)
EXPORTED void __tsan_read_range(void* address, size_t size) { NOTE(false); }
EXPORTED void __tsan_write_range(void* address, size_t size) { NOTE(true); }
EXPORTED void* __tsan_memcpy(void* to, const void* from, size_t size) {
  __tsan_read_range(const_cast<void*>(from), size), __tsan_write_range(to, size);
  return memcpy(to, from, size);
}
EXPORTED void* __tsan_memset(void* to, int value, size_t size) {
  __tsan_write_range(to, size);
  return memset(to, value, size);
}
EXPORTED void __tsan_init() {}
EXPORTED void __tsan_func_entry(void*) {}
EXPORTED void __tsan_func_exit() {}
}

void emulator::note_atomic(const void* address, size_t size) {
  accesses::note(reinterpret_cast<uintptr_t>(address), size, true, true, __builtin_return_address(0));
}
