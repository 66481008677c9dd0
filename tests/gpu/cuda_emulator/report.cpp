// What the emulator says before it stops the process.
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <iterator>

#include "emulator.h"

namespace emulator {
namespace {

// Prints the source line of an address, where binutils are there to find it.
void print_line(const char* what, const void* address) {
  Dl_info found;
  if (!dladdr(address, &found) || !found.dli_fname) return;
  char offset[32];
  snprintf(offset, sizeof offset, "%#zx",
           size_t(static_cast<const char*>(address) - static_cast<char*>(found.dli_fbase)));
  dprintf(2, "  %s: %s+%s\n", what, found.dli_fname, offset);
  const pid_t child = fork();
  if (child == 0) {
    dup2(2, 1);
    execlp("addr2line", "addr2line", "-Cfipe", found.dli_fname, offset, nullptr);
    _exit(1);
  }
  if (child > 0) waitpid(child, nullptr, 0);
}

void print_place(const void* instruction) {
  if (instruction) print_line("instruction", instruction);
  if (!running.kernel) return;
  dprintf(2, "  thread (%u, %u, %u) of block (%u, %u, %u); grid (%u, %u, %u) of (%u, %u, %u) threads\n", threadIdx.x,
          threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, blockDim.x,
          blockDim.y, blockDim.z);
  print_line("kernel", running.kernel);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
struct sigaction previous_action[std::size(kSignals)];

// Says where in the kernel a fault or a trap of the sanitizer happened, then lets it happen again without us.
void on_signal(int signal, siginfo_t* info, void* context) {
  if (signal == SIGSEGV || signal == SIGBUS)
    dprintf(2, "cuda_emulator: illegal access to %p\n", info->si_addr);
  else
    dprintf(2, "cuda_emulator: undefined behaviour: misaligned access, overflow, shift or array bound\n");
  const mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  print_place(reinterpret_cast<void*>(machine.gregs[REG_RIP]));
#elif defined(__aarch64__)
  print_place(reinterpret_cast<void*>(machine.pc));
#else
  print_place(nullptr);
#endif
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous_action[i], nullptr);
}

[[noreturn]] void stop(const void* instruction, const char* format, va_list values) {
  char message[2000];
  vsnprintf(message, sizeof message, format, values);
  dprintf(2, "cuda_emulator: %s\n", message);
  print_place(instruction);
  abort();
}

}  // namespace

Watch::Watch() {
  static const Guarded stack(64 * 1024);
  stack_t own{};
  own.ss_sp = stack.begin(), own.ss_size = stack.bytes();
  sigaltstack(&own, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &previous_action[i]);
}

Watch::~Watch() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous_action[i], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  stop(nullptr, format, values);
}

void fail_at(const void* instruction, const char* format, ...) {
  va_list values;
  va_start(values, format);
  stop(instruction, format, values);
}

}  // namespace emulator
