// Sends each call to the build of its kernel for the best instruction set of this machine. Every kernels/<op>/<op>.cpp
// is compiled once per set that it gains from, into the namespace fastmix::<set>.
#include <cstdlib>
#include <cstring>

#include "fastmix.h"

namespace fastmix {
namespace {

enum class Isa { baseline, avx2, avx512 };

Isa detect() {
#if FASTMIX_HAVE_X86_ISA
  __builtin_cpu_init();
  Isa best = Isa::baseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      best = Isa::avx512;
  }
  if (const char* wanted = std::getenv("FASTMIX_CPU")) {
    if (std::strcmp(wanted, "baseline") == 0) return Isa::baseline;
    if (std::strcmp(wanted, "avx2") == 0 && best == Isa::avx512) return Isa::avx2;
  }
  return best;
#else
  return Isa::baseline;
#endif
}

const Isa isa = detect();

}  // namespace

const char* cpu_isa() { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

// FASTMIX_KERNEL_AVX2 is for kernels in CMakeLists.txt's list of those that gain nothing from AVX-512.
#if FASTMIX_HAVE_X86_ISA
#define FASTMIX_KERNEL(name, Args)                     \
  namespace baseline {                                 \
  void name(const Args&);                              \
  }                                                    \
  namespace avx2 {                                     \
  void name(const Args&);                              \
  }                                                    \
  namespace avx512 {                                   \
  void name(const Args&);                              \
  }                                                    \
  void name(const Args& args) {                        \
    if (isa == Isa::avx512) return avx512::name(args); \
    if (isa == Isa::avx2) return avx2::name(args);     \
    baseline::name(args);                              \
  }
#define FASTMIX_KERNEL_AVX2(name, Args)                \
  namespace baseline {                                 \
  void name(const Args&);                              \
  }                                                    \
  namespace avx2 {                                     \
  void name(const Args&);                              \
  }                                                    \
  void name(const Args& args) {                        \
    if (isa != Isa::baseline) return avx2::name(args); \
    baseline::name(args);                              \
  }
#else
#define FASTMIX_KERNEL(name, Args) \
  namespace baseline {             \
  void name(const Args&);          \
  }                                \
  void name(const Args& args) { baseline::name(args); }
#define FASTMIX_KERNEL_AVX2 FASTMIX_KERNEL
#endif

FASTMIX_KERNEL(blend, Mix)
FASTMIX_KERNEL(blend_grad_x, Mix)
FASTMIX_KERNEL(blend_grad_lam, Mix)
FASTMIX_KERNEL(box_blend, Mix)
FASTMIX_KERNEL(box_blend_grad_x, Mix)
FASTMIX_KERNEL(box_blend_grad_lam, Mix)
FASTMIX_KERNEL_AVX2(box_paste, Mix)
FASTMIX_KERNEL_AVX2(box_paste_grad_x, Mix)
FASTMIX_KERNEL(mask_blend, Mix)
FASTMIX_KERNEL(mask_blend_grad_x, Mix)
FASTMIX_KERNEL(mask_blend_grad_mask, Mix)
FASTMIX_KERNEL(flip_blend, Flip)
FASTMIX_KERNEL(pair_attention, Attention)
FASTMIX_KERNEL(pair_attention_cols, Attention)
FASTMIX_KERNEL(pair_attention_grad, Attention)
FASTMIX_KERNEL_AVX2(saliency_pool, Saliency)
FASTMIX_KERNEL(puzzle_energy, Energy)
FASTMIX_KERNEL_AVX2(fine_grained_saliency, FineSaliency)
FASTMIX_KERNEL(saliency_box, SaliencyBox)
FASTMIX_KERNEL(spectral_mask, SpectralMask)
FASTMIX_KERNEL(grid_cut, Cut)
FASTMIX_KERNEL_AVX2(transport, Transport)
FASTMIX_KERNEL(mix_cross_entropy, Loss)
FASTMIX_KERNEL(mix_cross_entropy_grad, Loss)
FASTMIX_KERNEL(soft_cross_entropy, Loss)
FASTMIX_KERNEL(soft_cross_entropy_grad, Loss)
FASTMIX_KERNEL(mix_binary_cross_entropy, Loss)
FASTMIX_KERNEL(mix_binary_cross_entropy_grad, Loss)

}  // namespace fastmix
