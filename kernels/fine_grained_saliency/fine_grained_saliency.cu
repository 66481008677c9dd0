// CUDA kernel of `fine_grained_saliency`: an image a block, whose bytes and sums stay in second-level cache between the
// steps. What is summed are integers, so that the result does not depend on the order.
#include <algorithm>

#include "block.cuh"
#include "fine_grained_saliency.h"
#include "ordered.h"

namespace fastmix {
namespace cuda {
namespace {

constexpr int kThreads = 1024;

__device__ __forceinline__ float value_at(const FineSaliency& s, int64_t i) {
  switch (s.type) {
    case DType::u8:
      return static_cast<float>(static_cast<const uint8_t*>(s.x)[i]);
    case DType::f16:
      return widen_f16(static_cast<const Half*>(s.x)[i].bits);
    case DType::bf16:
      return widen_bf16(static_cast<const BFloat16*>(s.x)[i].bits);
    default:
      return static_cast<const float*>(s.x)[i];
  }
}

// The float whose `ordered` is this.
__device__ __forceinline__ float restored(uint32_t key) { return bits<float>(key >> 31 ? key ^ 0x80000000u : ~key); }

class FineMap {
 public:
  __device__ FineMap(const CudaBlock& block, const FineSaliency& s, int64_t n, int64_t room)
      : block_(block),
        s_(s),
        first_(n * s.channels * s.height * s.width),
        height_(static_cast<int>(s.height)),
        width_(static_cast<int>(s.width)),
        pixels_(height_ * width_),
        sums_(reinterpret_cast<uint32_t*>(s.workspace + n * room)),
        parts_(sums_ + (height_ + 1) * (width_ + 1)),
        grey_(reinterpret_cast<uint8_t*>(parts_ + pixels_)),
        blurred_(grey_ + pixels_),
        out_(s.out + n * pixels_) {}

  __device__ void write() {
    make_grey();
    blur(grey_, blurred_);
    blur(blurred_, grey_);
    integrate();
    int on = 0, off = 0;  // the largest sums of differences
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      const int2 found = differences(i / width_, i % width_);
      parts_[i] = static_cast<uint32_t>(found.x) | static_cast<uint32_t>(found.y) << 16;
      on = max(on, found.x), off = max(off, found.y);
    }
    on = -block_.min(-on), off = -block_.min(-off);
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      const int a = static_cast<int>(parts_[i] & 0xffff), b = static_cast<int>(parts_[i] >> 16);
      out_[i] = saliency_of(stretched_sum(a, on) + stretched_sum(b, off));
    }
  }

 private:
  __device__ void make_grey() {
    float low = 0, step = 0;
    if (s_.type != DType::u8 && !s_.scale) {
      uint32_t least = ~uint32_t(0), most = least;  // the most as the least of the complements
      for (int64_t i = block_.rank(); i < s_.channels * pixels_; i += block_.size()) {
        const float v = value_at(s_, first_ + i);
        if (!(fabsf(v) < INFINITY)) continue;
        least = min(least, ordered(v)), most = min(most, ~ordered(v));
      }
      least = block_.min(least), most = block_.min(most);
      const bool any = least != ~uint32_t(0);
      low = any ? restored(least) * 0.5f : 0.f;
      step = any ? stretch_step(low, restored(~most) * 0.5f) : 0.f;
    }
    const int64_t channel = s_.channels_last ? 1 : pixels_, pixel = s_.channels_last ? s_.channels : 1;
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      int32_t value[3];
#pragma unroll
      for (int c = 0; c < 3; ++c)
        value[c] = c < s_.channels ? as_byte(value_at(s_, first_ + i * pixel + c * channel), c, low, step) : 0;
      const int32_t blue = s_.red_first ? value[2] : value[0], red = s_.red_first ? value[0] : value[2];
      grey_[i] = static_cast<uint8_t>(s_.channels == 1 ? value[0] : grey_of(blue, value[1], red));
    }
    block_.sync();
  }

  __device__ int32_t as_byte(float v, int c, float low, float step) const {
    if (s_.type == DType::u8) return static_cast<int32_t>(v);
    if (s_.scale) return byte_of(__fadd_rn(__fmul_rn(v, s_.scale[c]), s_.shift[c]));
    return byte_of((v * 0.5f - low) * step);
  }

  __device__ void blur(const uint8_t* from, uint8_t* to) const {
    for (int i = block_.rank(); i < pixels_; i += block_.size()) {
      const int y = i / width_, x = i % width_;
      const int left = static_cast<int>(mirrored(x - 1, width_)), right = static_cast<int>(mirrored(x + 1, width_));
      int sum = 8;
#pragma unroll
      for (int step = -1; step <= 1; ++step) {
        const uint8_t* row = from + static_cast<int>(mirrored(y + step, height_)) * width_;
        sum += (step == 0 ? 2 : 1) * (row[left] + 2 * row[x] + row[right]);
      }
      to[i] = static_cast<uint8_t>(sum >> 4);
    }
    block_.sync();
  }

  // Along the rows, then down the columns.
  __device__ void integrate() const {
    const int stride = width_ + 1;
    for (int y = block_.rank(); y < height_; y += block_.size()) {
      uint32_t sum = 0, *row = sums_ + (y + 1) * stride;
      row[0] = 0;
      for (int x = 0; x < width_; ++x) row[x + 1] = sum += grey_[y * width_ + x];
    }
    block_.sync();
    for (int x = block_.rank(); x < stride; x += block_.size()) {
      uint32_t sum = sums_[x] = 0;
      for (int y = 1; y <= height_; ++y) sums_[y * stride + x] = sum += sums_[y * stride + x];
    }
    block_.sync();
  }

  // The sums of the positive and of the negative differences from the surroundings.
  __device__ int2 differences(int y, int x) const {
    const int stride = width_ + 1, value = grey_[y * width_ + x];
    int2 found{0, 0};
#pragma unroll
    for (int i = 0; i < kSurrounds; ++i) {
      const Stretch rows(y, reach_of(i), height_), columns(x, reach_of(i), width_);
      const uint32_t *top = sums_ + rows.begin * stride, *bottom = sums_ + rows.end * stride;
      const int32_t sum = static_cast<int32_t>((bottom[columns.end] - bottom[columns.begin]) -
                                               (top[columns.end] - top[columns.begin])) -
                          value;
      const int64_t others = rows.size() * columns.size() - 1;
      if (others == 0) continue;
      const float difference =
          static_cast<float>(value) - __fdiv_rn(static_cast<float>(sum), static_cast<float>(others));
      found.x += difference > 0 ? static_cast<int>(difference) : 0;
      found.y += difference < 0 ? static_cast<int>(-difference) : 0;
    }
    return found;
  }

  const CudaBlock& block_;
  const FineSaliency& s_;
  const int64_t first_;
  const int height_, width_, pixels_;
  uint32_t *sums_, *parts_;
  uint8_t *grey_, *blurred_;
  float* out_;
};

__global__ void __launch_bounds__(kThreads) find_kernel(FineSaliency s, int64_t room) {
  const CudaBlock block(shared_floats());
  FineMap(block, s, blockIdx.x, room).write();
}

}  // namespace

int fine_grained_saliency(const FineSaliency& s) {
  const int64_t warps = (std::min<int64_t>(kThreads, s.height * s.width) + CudaLanes::kWarp - 1) / CudaLanes::kWarp;
  return launch(s.queue, find_kernel, s.n, static_cast<int>(warps) * CudaLanes::kWarp, CudaBlock::kScratchBytes, s,
                s.room());
}

}  // namespace cuda
}  // namespace fastmix
