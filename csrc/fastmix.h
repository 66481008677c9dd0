// The whole native interface: raw pointers, sizes and dtype tags. Nothing here, or below it, knows torch.
#pragma once

#include <cstdint>

namespace fastmix {

// The tags of fastmix/native.py.
enum class DType : int { u8, f16, bf16, f32, f64 };

// One call of a blend: `weight * x[n] + (1 - weight) * x[index[n]]`, and its adjoints. Pointers that a call does not
// use are null. "acc" values are double when the images are f64, else float.
struct Mix {
  // Samples are dense blocks of channels x height x width values, or height x width x channels if channels_last.
  int64_t n, channels, height, width;
  bool channels_last;
  int threads;

  DType x_type, grad_type, out_type;
  const void* x;
  const void* grad;
  void* out;
  const int64_t* index;          // [n]
  const int64_t *order, *start;  // inverse map: order[start[j]:start[j + 1]] are the n with index[n] == j
  const void *scale, *shift;     // [channels] acc, normalisation of the mixed value

  const void* lam;  // acc, [1] or [n]
  bool lam_per_sample;
  const int32_t* box;  // [n, 4]: y0, x0, y1, x1
  const void* mask;    // acc, [n, mask_height, mask_width]
  int64_t mask_height, mask_width;
  int mode;  // 0 nearest, 1 bilinear, 2 bicubic
  bool sigmoid, sigmoid_first;
  void* mean;             // acc, [n]: mean weight of each sample
  const void* grad_mean;  // acc, [n]
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

// One call of pair attention: P[n,p,s] = softmax_s(scale * q[n,p] . k[index[n],s] + key_bias[n,s]), and its adjoints.
struct Attention {
  int64_t n, positions, dim;
  int threads;
  DType type;  // of q, k, dq, dk; everything else is acc
  double scale;
  const void *q, *k;     // [n, positions, dim]
  const void* key_bias;  // [n, positions] or null
  const int64_t *index, *order, *start;
  const void *a, *b, *c;    // [n, positions]
  void *lse, *rows, *cols;  // [n, positions]
  void *dq, *dk;            // [n, positions, dim]
  void* dbias;              // [n, positions] or null
};

void pair_attention(const Attention&);       // rows = sum_s P b[s], lse
void pair_attention_cols(const Attention&);  // cols = sum_p P a[p]
void pair_attention_grad(const Attention&);  // dS = P a[p] (b[s] - c[p]): dq, dk, dbias, cols

// Name of the instruction set the CPU kernels run on: chosen once, FASTMIX_CPU=baseline|avx2|avx512 lowers it.
const char* cpu_isa();

}  // namespace fastmix
