// Runs the blocks of a launch one after another, the threads of a block as fibers of one OS thread. A thread runs until
// it meets a barrier or an exchange between lanes; which thread and which block come next is drawn at random.
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "emulator.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Running running;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr unsigned kWarp = 32;

// A stack on which threads run one after another, until one of them has to wait.
struct Fiber {
  Guarded stack{kStack};
  jmp_buf context;
  bool started = false;
};

enum class State { fresh, running, waiting, released, ended };

struct Thread {
  State state;
  Fiber* fiber;
  Wait wait;  // and the rest: what it waits for, what it brings along, what it gets
  Site site;
  unsigned mask;
  int source_lane;
  uint64_t value, result;
};

void (*run_thread)(const void*);  // of the launch that runs
const void* call;
std::vector<Thread> threads;
std::vector<unsigned> ready;  // threads that are fresh or released
unsigned ended;
std::deque<Fiber> fibers;
std::vector<Fiber*> idle;
jmp_buf scheduler;
uint64_t random_state = 1;

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

void take_next() {
  const size_t i = (random_bits() >> 32) * ready.size() >> 32;
  unsigned& current = running.thread;
  current = ready[i], ready[i] = ready.back(), ready.pop_back();
  threadIdx.x = current % blockDim.x;
  threadIdx.y = current / blockDim.x % blockDim.y;
  threadIdx.z = current / (blockDim.x * blockDim.y);
}

bool block_wide(Wait wait) { return wait >= Wait::barrier && wait <= Wait::barrier_count; }

bool meet(const Thread& a, const Thread& b) {
  return a.state == State::waiting && b.state == State::waiting && a.wait == b.wait && a.mask == b.mask &&
         a.site.line == b.site.line && !strcmp(a.site.file, b.site.file);
}

void release(unsigned id, uint64_t result) {
  threads[id].state = State::released, threads[id].result = result;
  ready.push_back(id);
}

// Lets the block go on if all its threads wait at one barrier.
bool release_block() {
  if (!block_wide(threads[0].wait)) return false;
  unsigned votes = 0;
  for (const Thread& thread : threads) {
    if (!meet(thread, threads[0])) return false;
    votes += thread.value != 0;
  }
  uint64_t result = votes;
  if (threads[0].wait == Wait::barrier_or) result = votes > 0;
  if (threads[0].wait == Wait::barrier_and) result = votes == threads.size();
  for (unsigned id = 0; id < threads.size(); ++id) release(id, result);
  accesses::block_barrier();
  return true;
}

// Lets the lanes go on that `id` waits for, if all of them are there that have not ended.
void release_lanes(unsigned id) {
  const unsigned first = id / kWarp * kWarp;
  unsigned present = 0, votes = 0;
  for (unsigned lane = 0; lane < kWarp && first + lane < threads.size(); ++lane) {
    const Thread& other = threads[first + lane];
    if (!(threads[id].mask >> lane & 1) || other.state == State::ended) continue;
    if (!meet(other, threads[id])) return;
    present |= 1u << lane;
    if (other.value) votes |= 1u << lane;
  }
  const Wait wait = threads[id].wait;
  if (wait == Wait::warp) accesses::sync_lanes(first, present);
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(present >> lane & 1)) continue;
    const Thread& thread = threads[first + lane];
    uint64_t result = votes;
    if (wait == Wait::any) result = votes != 0;
    if (wait == Wait::all) result = votes == present;
    if (wait == Wait::shuffle) {
      if (!(present >> thread.source_lane & 1))
        fail("%s:%d: lane %u asks for the value of lane %d, which takes no part", thread.site.file, thread.site.line,
             lane, thread.source_lane);
      result = threads[first + thread.source_lane].value;
    }
    release(first + lane, result);
  }
}

// No thread can run: either all wait at one barrier, or lanes waited for others that have ended since, or they hang.
void release_or_fail() {
  if (release_block()) return;
  for (unsigned id = 0; id < threads.size(); ++id)
    if (threads[id].state == State::waiting && !block_wide(threads[id].wait)) release_lanes(id);
  if (!ready.empty()) return;
  constexpr const char* names[] = {"__syncthreads",       "__syncthreads_or", "__syncthreads_and",
                                   "__syncthreads_count", "__syncwarp",       "a shuffle",
                                   "__any_sync",          "__all_sync",       "__ballot_sync"};
  std::map<std::string, int> places;
  for (const Thread& thread : threads)
    ++places[thread.state == State::ended ? "have ended"
                                          : std::string("wait in ") + names[int(thread.wait)] + " at " +
                                                thread.site.file + ":" + std::to_string(thread.site.line)];
  std::string report;
  for (const auto& [place, count] : places) report += "\n  " + std::to_string(count) + " threads " + place;
  fail("divergent barrier, the block would hang:%s", report.c_str());
}

void fiber_main() {
  for (;;) {
    run_thread(call);
    Fiber* fiber = threads[running.thread].fiber;
    threads[running.thread].state = State::ended, ++ended;
    if (!ready.empty()) {
      take_next();
      if (threads[running.thread].state == State::fresh) {
        threads[running.thread].state = State::running, threads[running.thread].fiber = fiber;
        continue;
      }
      ready.push_back(running.thread);
    }
    idle.push_back(fiber);
    if (!_setjmp(fiber->context)) _longjmp(scheduler, 1);
  }
}

// Runs the current thread until it waits or ends.
void resume() {
  Thread& thread = threads[running.thread];
  if (thread.state == State::fresh) {
    if (idle.empty()) idle.push_back(&fibers.emplace_back());
    thread.fiber = idle.back(), idle.pop_back();
  }
  thread.state = State::running;
  if (_setjmp(scheduler)) return;
  Fiber& fiber = *threads[running.thread].fiber;
  running.stack = fiber.stack.begin(), running.stack_end = fiber.stack.end();
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.begin(), context.uc_stack.ss_size = fiber.stack.bytes();
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

// The current thread waits; returns what it gets.
uint64_t wait_for(Wait wait, unsigned mask, uint64_t value, int source_lane, Site site) {
  Thread& thread = threads[running.thread];
  thread.state = State::waiting, thread.wait = wait, thread.site = site;
  thread.mask = mask, thread.value = value, thread.source_lane = source_lane;
  if (!block_wide(wait)) release_lanes(running.thread);
  if (!_setjmp(thread.fiber->context)) _longjmp(scheduler, 1);
  return threads[running.thread].result;
}

void run_block() {
  memset(running.shared, 0xff, running.shared_end - running.shared);  // NaN in every floating dtype
  accesses::start_block();
  ended = 0;
  for (unsigned id = 0; id < threads.size(); ++id) threads[id] = Thread{}, ready.push_back(id);
  while (ended < threads.size()) {
    if (ready.empty()) release_or_fail();
    take_next();
    resume();
  }
}

}  // namespace

void run_grid(void (*run)(const void*), const void* packed) {
  run_thread = run, call = packed;
  threads.resize(blockDim.x * blockDim.y * blockDim.z);
  accesses::start_launch();
  const uint64_t count = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  uint64_t stride = random_bits() % count + 1, block = random_bits() % count;
  while (std::gcd(stride, count) > 1) ++stride;
  for (uint64_t i = 0; i < count; ++i, block = (block + stride) % count) {
    blockIdx.x = block % gridDim.x;
    blockIdx.y = block / gridDim.x % gridDim.y;
    blockIdx.z = block / gridDim.x / gridDim.y;
    run_block();
  }
}

int lane() { return int(running.thread % kWarp); }

void* shared_memory() { return running.shared; }

int block_barrier(Wait kind, int predicate, Site site) { return int(wait_for(kind, 0, predicate != 0, 0, site)); }

uint64_t warp_exchange(Wait kind, unsigned mask, uint64_t value, int source_lane, Site site) {
  if (!(mask >> lane() & 1)) fail("%s:%d: lane %d is not in its own mask %#x", site.file, site.line, lane(), mask);
  return wait_for(kind, mask, value, source_lane, site);
}

}  // namespace emulator

// The order of threads and blocks from here on; called by tests, through ctypes.
extern "C" __attribute__((visibility("default"))) void cuda_emulator_seed(uint64_t seed) {
  emulator::random_state = seed;
}
