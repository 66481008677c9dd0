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
  // box_paste: what fills the box, [outputs, 4], and how: 0 nearest, 1 bilinear, 2 bilinear with aligned corners.
  const int32_t* source;
  int resize;
  const void* mask;  // acc, [outputs, mask_height, mask_width]
  int64_t mask_height, mask_width;
  int mode;  // 0 nearest, 1 bilinear, 2 bicubic
  bool sigmoid, sigmoid_first;
  // Block that each of plan_height x plan_width equal blocks is taken from, of the own image and of the partner; the
  // block itself where it is negative. Null: every block from itself.
  const int32_t *plan, *partner_plan;  // [outputs, plan_height, plan_width]
  int64_t plan_height, plan_width;
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
void box_paste(const Mix&);
void box_paste_grad_x(const Mix&);
void mask_blend(const Mix&);
void mask_blend_grad_x(const Mix&);
void mask_blend_grad_mask(const Mix&);

// One call of flip_blend: sample i is mixed with sample n - 1 - i. A sample is a dense block of planes x height x width
// x inner values.
struct Flip {
  int64_t n, planes, height, width, inner;
  Queue queue;
  DType type;
  const void* x;
  void* out;                // x itself, or memory of its own
  const void *lam, *lam_b;  // acc, [1] or [n]: weights of the own sample and of its partner; null: 1, and 1 - lam
  bool lam_per_sample;
  const int32_t* box;  // [n, 4]: y0, x0, y1, x1; or null
  bool adjoint;        // x is the gradient of the result, out that of the samples
};

void flip_blend(const Flip&);

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

// One call of saliency_pool: shares of rows x columns equal blocks in the root mean square of `grad` over the channels.
// n samples are dense blocks as in Mix.
struct Saliency {
  int64_t n, channels, height, width, rows, columns;
  bool channels_last;
  Queue queue;
  DType type;
  const void* grad;
  int64_t parts;  // CUDA: pieces that the rows of pixels of a block are summed in; else 1
  double* means;  // workspace, [n, rows, parts, columns]
  float* out;     // [n, rows, columns]
};

void saliency_pool(const Saliency&);

// One call of puzzle_energy: the integer costs of a mask of rows x columns blocks for the pairs (n, index[n]). Images
// lie in memory as in Mix; x * scale + shift is in [0, 1]. "acc" is double for f64 images, else float.
struct Energy {
  int64_t n, channels, height, width, rows, columns, side;  // `side` pixels along the cells that are compared
  bool channels_last;
  Queue queue;
  DType type;
  const void* x;
  const void *scale, *shift;  // acc, [channels], or null
  const void* saliency;       // acc, [n, rows, columns]
  const int64_t* index;       // [n]
  const double* lam;          // [1] or [n]
  bool lam_per_sample;
  int labels;
  double beta, gamma, eta;
  void* cells;        // acc, workspace: CellGrid::count() values an image; on CUDA 4 CellGrid::places() more
  int32_t* unary;     // [n, rows, columns, labels]
  int32_t* weight_y;  // [n, rows - 1, columns]
  int32_t* weight_x;  // [n, rows, columns - 1]
};

void puzzle_energy(const Energy&);

// One call of grid_cut: labels of the least energy for n grids of height x width sites, `labels` each, or, if `swap`,
// those that alpha-beta swaps end with.
struct Cut {
  int64_t n, height, width;
  int labels;
  bool swap;
  Queue queue;
  const int32_t* unary;     // [n, height, width, labels]
  const int32_t* weight_y;  // [n, height - 1, width]
  const int32_t* weight_x;  // [n, height, width - 1]
  int32_t* out;             // [n, height, width]
  int64_t* energy;          // [n]
  int32_t* workspace;       // CUDA: as many values as grid_cut_workspace says
};

void grid_cut(const Cut&);

// One call of transport: where the visible targets of n grids of height x width blocks take their blocks from, by the
// released rounds or, if `exact`, at the least cost.
struct Transport {
  int64_t n;
  int height, width;
  Queue queue;
  double eps;
  bool exact;
  const uint8_t* visible;  // [n, height, width]
  const float* saliency;   // [n, height, width]
  int32_t* source;         // [n, height * width]
};

void transport(const Transport&);

// One call of fine_grained_saliency of n images of 1 or 3 channels, dense as in Mix.
struct FineSaliency {
  int64_t n, channels, height, width;
  bool channels_last;
  Queue queue;
  DType type;
  const void* x;
  const float *scale, *shift;  // [channels]: the bytes of floating images; null: each image is stretched
  bool red_first;
  char* workspace;  // CUDA: room() bytes an image
  float* out;       // [n, height, width]

  int64_t room() const { return 4 * ((height + 1) * (width + 1) + height * width) + (2 * height * width + 3) / 4 * 4; }
};

void fine_grained_saliency(const FineSaliency&);

// One call of saliency_box for n maps of height x width cells that cover image_height x image_width pixels: boxes of
// the share 1 - lam around a peak, or windows with the most in them; the least if `smallest`.
struct SaliencyBox {
  int64_t n;
  int height, width, image_height, image_width;
  Queue queue;
  const float* saliency;  // [n, height, width]
  const double* lam;      // [1] or [n]; or null
  const int32_t* window;  // [1, 2] or [n, 2]: height and width in cells; or null
  bool per_sample, smallest;
  double* sums;  // with windows: workspace, [n, height + 1, width + 1]
  int32_t* box;  // [n, 4]
};

void saliency_box(const SaliencyBox&);

// One call of spectral_mask: n masks of the `count` largest pixels of low-frequency images.
struct SpectralMask {
  int64_t n, height, width;
  Queue queue;
  int64_t rows, columns;  // frequencies of the noise; of the released spectrum 2 and how many there are
  const void* noise;      // [n, rows, columns, 2]
  bool noise_f64, released;
  double decay;
  const float* field;    // [n, height, width], finite: instead of the noise, and always on CUDA
  const int64_t* count;  // [n]
  int64_t soft;          // most pixels that turn soft on each side of the edge; on CUDA 0
  float* out;            // [n, height, width]
};

void spectral_mask(const SpectralMask&);

// One call of a loss of n rows of logits with mixed targets, and its gradient in the logits. "acc" as in Mix.
struct Loss {
  int64_t n, classes, stride;  // `stride` values from one row of logits to the next
  int threads;
  DType type, target_type;  // of the logits and their gradient, of dense targets
  const void* logits;
  bool dense;                     // targets: [n, classes] of target_type if so, else labels int64 [n]
  const void *target, *target_b;  // target_b may be null where the op says so
  const void *lam, *lam_b;        // acc, [1] or [n]; null: 1, and 1 - lam
  bool lam_per_row, lam_b_per_row;
  int64_t ignore_index;
  double smoothing, decouple, threshold;  // no threshold: NaN
  bool sum_classes;
  int reduction;      // 0 none, 1 mean, 2 sum
  void* out;          // acc, [n] or [1]
  void* stats;        // acc, [numbers a row, n], may be null where the op says so
  void* scale;        // acc, [1]: what a row's loss is multiplied by on its way into `out`
  const void* grad;   // acc, [n] or [1]
  void* grad_logits;  // [n, classes]
};

void mix_cross_entropy(const Loss&);
void mix_cross_entropy_grad(const Loss&);
void soft_cross_entropy(const Loss&);
void soft_cross_entropy_grad(const Loss&);
void mix_binary_cross_entropy(const Loss&);
void mix_binary_cross_entropy_grad(const Loss&);

// The same calls on a CUDA device, in the builds that have its kernels. They only launch: nothing is allocated, no host
// waits. A result that is not 0 is a cudaError_t. An output whose partner is out of range becomes NaN (0 for u8).
namespace cuda {

int blend(const Mix&);
int blend_grad_x(const Mix&);
int blend_grad_lam(const Mix&);
int box_blend(const Mix&);
int box_blend_grad_x(const Mix&);
int box_blend_grad_lam(const Mix&);
int box_paste(const Mix&);
int box_paste_grad_x(const Mix&);
int mask_blend(const Mix&);
int mask_blend_grad_x(const Mix&);
int mask_blend_grad_mask(const Mix&);
int saliency_pool(const Saliency&);
int puzzle_energy(const Energy&);
int grid_cut(const Cut&);
int transport(const Transport&);
int fine_grained_saliency(const FineSaliency&);
int saliency_box(const SaliencyBox&);
int spectral_mask(const SpectralMask&);

// Floats of workspace that a call takes. They depend on the sizes, the layout, the mode and the image dtypes alone.
int64_t blend_grad_lam_workspace(const Mix&);
int64_t box_blend_grad_lam_workspace(const Mix&);
int64_t mask_blend_workspace(const Mix&);
int64_t mask_blend_grad_mask_workspace(const Mix&);
int64_t grid_cut_workspace(const Cut&);  // int32 values

// 0, or what keeps the CUDA runtime that is linked in from working here, such as a driver that is too old.
int problem();

const char* error_text(int error);

}  // namespace cuda

// Name of the instruction set the CPU kernels run on: chosen once, FASTMIX_CPU=baseline|avx2|avx512 lowers it.
const char* cpu_isa();

}  // namespace fastmix
