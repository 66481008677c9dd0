// The whole native interface: raw pointers, sizes and dtype tags. Nothing here, or below it, knows torch.
#pragma once

#include <cstdint>

namespace fastmix {

// The tags of fastmix/native.py.
enum class DType : int { u8, f16, bf16, f32, f64 };

// Where a call runs: on `threads` threads of the CPU if `device` is negative, else on that CUDA device, on `stream`.
struct Queue {
  int device, threads;
  void* stream;
};

// One call of a blend: `weight * x[m % n] + (1 - weight) * x[index[m]]` for the outputs m < n * draws, and its adjoints
// (of one draw). Pointers that a call does not use are null. "acc" values are double when the images are f64, else
// float.
struct Mix {
  // n samples are dense blocks of channels x height x width values, or height x width x channels if channels_last.
  int64_t n, draws, channels, height, width;
  bool channels_last;
  Queue queue;

  int64_t outputs() const { return n * draws; }

  DType x_type, grad_type, out_type;
  const void* x;
  const void* grad;
  void* out;
  const int64_t* index;          // [outputs]
  const int64_t *order, *start;  // inverse map: order[start[j]:start[j + 1]] are the n with index[n] == j
  const void *scale, *shift;     // [channels] acc, normalisation of the mixed value

  const void* lam;  // acc, [1] or [outputs]
  bool lam_per_sample;
  const int32_t* box;  // [outputs, 4]: y0, x0, y1, x1
  const void* mask;    // acc, [outputs, mask_height, mask_width]
  int64_t mask_height, mask_width;
  int mode;  // 0 nearest, 1 bilinear, 2 bicubic
  bool sigmoid, sigmoid_first;
  void* mean;             // acc, [outputs]: mean weight of each output
  const void* grad_mean;  // acc, [n]
  float* workspace;       // CUDA: as many floats as the call's `_workspace` function says
};

void blend(const Mix&);
void blend_grad_x(const Mix&);
void blend_grad_lam(const Mix&);
void box_blend(const Mix&);
void box_blend_grad_x(const Mix&);
void box_blend_grad_lam(const Mix&);
void mask_blend(const Mix&);
void mask_blend_grad_x(const Mix&);
void mask_blend_grad_mask(const Mix&);

// One call of pair attention: P[m,p,s] = softmax_s(scale * q[m % n,p] . k[index[m],s] + key_bias[m,s]) for the outputs
// m < n * draws, and its adjoints (of one draw).
struct Attention {
  int64_t n, draws, positions, dim;
  int threads;

  int64_t outputs() const { return n * draws; }

  DType type, grad_type;  // of q and k, of dq and dk; everything else is acc
  double scale;
  const void *q, *k;     // [n, positions, dim]
  const void* key_bias;  // [outputs, positions] or null
  const int64_t *index, *order, *start;
  const void *a, *b, *c;    // [outputs, positions]
  void *lse, *rows, *cols;  // [outputs, positions]
  void *dq, *dk;            // [n, positions, dim]
  void* dbias;              // [n, positions] or null
};

void pair_attention(const Attention&);       // rows = sum_s P b[s], lse
void pair_attention_cols(const Attention&);  // cols = sum_p P a[p]
void pair_attention_grad(const Attention&);  // dS = P a[p] (b[s] - c[p]): dq, dk, dbias, cols

// The same calls on a CUDA device, in the builds that have its kernels. They only launch: nothing is allocated, no host
// waits. A result that is not 0 is a cudaError_t. An output whose partner is out of range becomes NaN (0 for u8).
namespace cuda {

int blend(const Mix&);
int blend_grad_x(const Mix&);
int blend_grad_lam(const Mix&);
int box_blend(const Mix&);
int box_blend_grad_x(const Mix&);
int box_blend_grad_lam(const Mix&);
int mask_blend(const Mix&);
int mask_blend_grad_x(const Mix&);
int mask_blend_grad_mask(const Mix&);

// Floats of workspace that a call takes. They depend on the sizes, the layout, the mode and the image dtypes alone.
int64_t blend_grad_lam_workspace(const Mix&);
int64_t box_blend_grad_lam_workspace(const Mix&);
int64_t mask_blend_workspace(const Mix&);
int64_t mask_blend_grad_mask_workspace(const Mix&);

// 0, or what keeps the CUDA runtime that is linked in from working here, such as a driver that is too old.
int problem();

const char* error_text(int error);

}  // namespace cuda

// Name of the instruction set the CPU kernels run on: chosen once, FASTMIX_CPU=baseline|avx2|avx512 lowers it.
const char* cpu_isa();

}  // namespace fastmix
