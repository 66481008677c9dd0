// The execution block of the combinatorial kernels. They are written once, as templates over
//
//   struct Block {
//     int rank() const;            number of this member, below size()
//     int size() const;
//     void sync() const;           waits for all members, and shows each what the others wrote before
//     bool any(bool) const;        the same result on every member; synchronises as sync() does
//     T sum(T) const, min(T) const;  of int, unsigned, int64_t or uint64_t
//   };
//
// and share work by loops `for (int i = block.rank(); i < n; i += block.size())`. All members pass the same calls in
// the same order. SerialBlock makes a kernel the CPU's, a sample a thread; CudaBlock (block.cuh) the GPU's, a sample a
// group of threads; the ThreadBlock of the tests runs the parallel schedule on the CPU.
#pragma once

#include <cstdint>

#include "dtype.h"

// Every instruction set keeps the code that was compiled for it (CMakeLists.txt defines its name), and so does CUDA.
#ifndef FASTMIX_ISA
#define FASTMIX_ISA cuda
#endif

// In front of such a loop: no iteration reads what another one writes, so they may run side by side.
#if defined(__CUDACC__)
#define FASTMIX_INDEPENDENT _Pragma("unroll 1")
#elif defined(__clang__)
#define FASTMIX_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTMIX_INDEPENDENT _Pragma("GCC ivdep")
#endif

// In front of a loop of few rounds: GPUs keep it, to save registers, ..
#ifdef __CUDACC__
#define FASTMIX_ROLLED _Pragma("unroll 1")
#else
#define FASTMIX_ROLLED
#endif

// .. and if it stands within an independent loop, CPUs do away with it, since otherwise nothing is vectorised.
#if defined(__CUDACC__)
#define FASTMIX_FLAT _Pragma("unroll 1")
#elif defined(__clang__)
#define FASTMIX_FLAT _Pragma("clang loop unroll(full)")
#else
#define FASTMIX_FLAT _Pragma("GCC unroll 8")
#endif

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// One member. Its loops count from 0 in steps of 1, which the compiler sees and vectorises.
struct SerialBlock {
  FASTMIX_HD int rank() const { return 0; }
  FASTMIX_HD int size() const { return 1; }
  FASTMIX_HD void sync() const {}
  FASTMIX_HD bool any(bool value) const { return value; }
  template <class T>
  FASTMIX_HD T sum(T value) const {
    return value;
  }
  template <class T>
  FASTMIX_HD T min(T value) const {
    return value;
  }
};

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
