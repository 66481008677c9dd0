// CPU kernel of `fine_grained_saliency`: a sample a thread, all of it in cache between its passes. Sums of pixels are
// unsigned and may wrap: only their differences over squares count.
#include "fine_grained_saliency.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pages.h"
#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// What a thread needs for one sample.
struct Buffers {
  explicit Buffers(const FineSaliency& s)
      : grey(s.height * s.width),
        blurred(grey.size()),
        on(grey.size()),
        off(grey.size()),
        sums((s.height + 1) * (s.width + 1)),
        columns(kSurrounds * s.width),
        around(s.width + 2 * kFarthest + 1),
        row_on(s.width),
        row_off(s.width),
        lines(2 * (s.width + 2)) {
    for (int i = 0; i < kSurrounds; ++i)
      for (int64_t x = 0; x < s.width; ++x)
        columns[i * s.width + x] = static_cast<float>(Stretch(x, reach_of(i), s.width).size());
  }

  std::vector<uint8_t> grey, blurred;
  std::vector<uint16_t> on, off;
  std::vector<uint32_t> sums;  // [height + 1, width + 1] of all pixels above and to the left
  std::vector<float> columns;  // of the square around each pixel of a row
  std::vector<uint32_t> around;
  std::vector<int32_t> row_on, row_off;
  std::vector<uint16_t> lines;
};

// `count` <= kTile values of the images from `offset` on.
const float* floats(const FineSaliency& s, int64_t offset, int64_t count, float* tile) {
  if (s.type != DType::f64) return load(s.type, s.x, offset, count, tile);
  const double* v = static_cast<const double*>(s.x) + offset;
  for (int64_t i = 0; i < count; ++i) tile[i] = static_cast<float>(v[i]);
  return tile;
}

// How floating values become bytes: v * scale[c] + shift[c], or (v / 2 - low) * step.
struct ToBytes {
  const float *scale, *shift;
  float low, step;
};

// `count` <= kTile values of channel c as bytes.
void to_bytes(const ToBytes& t, int64_t c, const float* __restrict v, int64_t count, int32_t* __restrict out) {
  const float a = t.scale ? t.scale[c] : 0, b = t.scale ? t.shift[c] : 0;
  if (t.scale)
    for (int64_t i = 0; i < count; ++i) out[i] = byte_of(v[i] * a + b);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = byte_of((v[i] * 0.5f - t.low) * t.step);
}

// The smallest and the largest finite value of a sample.
ToBytes stretched(const FineSaliency& s, int64_t n) {
  constexpr int kLanes = 16;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int64_t size = s.channels * s.height * s.width;
  float low[kLanes], high[kLanes];
  std::fill(low, low + kLanes, kInfinity), std::fill(high, high + kLanes, -kInfinity);
  alignas(64) float tile[kTile];
  for (int64_t i = 0; i < size; i += kTile) {
    const int64_t count = std::min(kTile, size - i);
    const float* v = floats(s, n * size + i, count, tile);
    if (v != tile) std::copy(v, v + count, tile);
    for (int64_t e = count; e < (count + kLanes - 1) / kLanes * kLanes; ++e) tile[e] = kInfinity;
    for (int64_t e = 0; e < count; e += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const float u = tile[e + lane];
        const bool finite = std::fabs(u) < kInfinity;
        low[lane] = finite && u < low[lane] ? u : low[lane];
        high[lane] = finite && u > high[lane] ? u : high[lane];
      }
  }
  const float least = *std::min_element(low, low + kLanes), most = *std::max_element(high, high + kLanes);
  return {nullptr, nullptr, least * 0.5f, stretch_step(least * 0.5f, most * 0.5f)};
}

// The grey image of sample n.
void make_grey(const FineSaliency& s, int64_t n, uint8_t* __restrict grey) {
  const int64_t pixels = s.height * s.width, channels = s.channels;
  const bool interleaved = s.channels_last && channels > 1, bytes = s.type == DType::u8;
  const ToBytes convert = bytes || s.scale ? ToBytes{s.scale, s.shift, 0, 0} : stretched(s, n);
  const int64_t first = s.red_first ? 2 : 0, piece = interleaved ? kTile / 3 : kTile;
  alignas(64) float tile[kTile], apart[kTile];
  alignas(64) int32_t plane[3][kTile];
  for (int64_t i = 0; i < pixels; i += piece) {
    const int64_t count = std::min(piece, pixels - i);
    const float* all = interleaved ? floats(s, (n * pixels + i) * 3, 3 * count, tile) : nullptr;
    for (int64_t c = 0; c < channels; ++c) {
      const float* v;
      if (interleaved) {
        for (int64_t e = 0; e < count; ++e) apart[e] = all[3 * e + c];
        v = apart;
      } else {
        v = floats(s, (n * channels + c) * pixels + i, count, tile);
      }
      if (bytes)
        for (int64_t e = 0; e < count; ++e) plane[c][e] = static_cast<int32_t>(v[e]);
      else
        to_bytes(convert, c, v, count, plane[c]);
    }
    const int32_t* __restrict blue = plane[first], * __restrict green = plane[1], * __restrict red = plane[2 - first];
    if (channels == 1)
      for (int64_t e = 0; e < count; ++e) grey[i + e] = static_cast<uint8_t>(plane[0][e]);
    else
      for (int64_t e = 0; e < count; ++e) grey[i + e] = static_cast<uint8_t>(grey_of(blue[e], green[e], red[e]));
  }
}

void blur(const FineSaliency& s, const uint8_t* from, uint16_t* __restrict line, uint8_t* __restrict to) {
  const int64_t width = s.width;
  for (int64_t y = 0; y < s.height; ++y, to += width) {
    const uint8_t* __restrict here = from + y * width;
    const uint8_t* __restrict above = from + mirrored(y - 1, s.height) * width;
    const uint8_t* __restrict below = from + mirrored(y + 1, s.height) * width;
    for (int64_t x = 0; x < width; ++x) line[x + 1] = static_cast<uint16_t>(above[x] + 2 * here[x] + below[x]);
    line[0] = line[1 + mirrored(-1, width)], line[width + 1] = line[1 + mirrored(width, width)];
    for (int64_t x = 0; x < width; ++x)
      to[x] = static_cast<uint8_t>((line[x] + 2 * line[x + 1] + line[x + 2] + 8) >> 4);
  }
}

void integrate(const FineSaliency& s, const uint8_t* __restrict grey, uint32_t* __restrict sums) {
  const int64_t width = s.width;
  std::fill(sums, sums + width + 1, 0u);
  for (int64_t y = 0; y < s.height; ++y, grey += width) {
    const uint32_t* __restrict above = sums + y * (width + 1);
    uint32_t* __restrict here = sums + (y + 1) * (width + 1);
    uint32_t sum = 0;
    here[0] = 0;
    for (int64_t x = 0; x < width; ++x) here[x + 1] = above[x + 1] + (sum += grey[x]);
  }
}

// Adds the differences of the pixels of a row from their surroundings, positive and negative ones apart. `around` are
// the sums of the columns up to each pixel, repeated beyond both edges, from `reach` - 1 pixels before the row on.
void add_differences(const uint8_t* __restrict grey, const uint32_t* __restrict around, const float* __restrict columns,
                     float rows, int64_t reach, int64_t width, int32_t* __restrict on, int32_t* __restrict off) {
  for (int64_t x = 0; x < width; ++x) {
    const int32_t value = grey[x], sum = static_cast<int32_t>(around[x + 2 * reach] - around[x]) - value;
    const float difference =
        static_cast<float>(value) - static_cast<float>(sum) / (columns[x] * rows - 1);  // 0 / 0: neither
    on[x] += difference > 0 ? static_cast<int32_t>(difference) : 0;
    off[x] += difference < 0 ? static_cast<int32_t>(-difference) : 0;
  }
}

// Both sums of differences for row y; returns their largest values so far.
void compare(const FineSaliency& s, Buffers& b, int64_t y) {
  const int64_t width = s.width;
  std::fill(b.row_on.begin(), b.row_on.end(), 0), std::fill(b.row_off.begin(), b.row_off.end(), 0);
  for (int i = 0; i < kSurrounds; ++i) {
    const int64_t reach = reach_of(i);
    const Stretch rows(y, reach, s.height);
    const uint32_t* __restrict top = &b.sums[rows.begin * (width + 1)];
    const uint32_t* __restrict bottom = &b.sums[rows.end * (width + 1)];
    uint32_t* __restrict around = b.around.data();  // [width + 2 reach]
    std::fill(around, around + reach - 1, 0u);
    for (int64_t x = 0; x <= width; ++x) around[reach - 1 + x] = bottom[x] - top[x];
    std::fill(around + reach + width, around + width + 2 * reach, around[reach - 1 + width]);
    add_differences(&b.grey[y * width], around, &b.columns[i * width], static_cast<float>(rows.size()), reach, width,
                    b.row_on.data(), b.row_off.data());
  }
  for (int64_t x = 0; x < width; ++x) {
    b.on[y * width + x] = static_cast<uint16_t>(b.row_on[x]);
    b.off[y * width + x] = static_cast<uint16_t>(b.row_off[x]);
  }
}

void fill_table(const std::vector<uint16_t>& sums, int32_t* table) {
  const int32_t largest = *std::max_element(sums.begin(), sums.end());
  for (int32_t sum = 0; sum <= largest; ++sum) table[sum] = stretched_sum(sum, largest);
}

void find(const FineSaliency& s, int64_t n, Buffers& b) {
  make_grey(s, n, b.grey.data());
  blur(s, b.grey.data(), b.lines.data(), b.blurred.data());
  blur(s, b.blurred.data(), b.lines.data(), b.grey.data());
  integrate(s, b.grey.data(), b.sums.data());
  for (int64_t y = 0; y < s.height; ++y) compare(s, b, y);
  int32_t on[kSums], off[kSums];
  fill_table(b.on, on), fill_table(b.off, off);
  float* __restrict out = s.out + n * s.height * s.width;
  const int64_t pixels = s.height * s.width;
  for (int64_t i = 0; i < pixels; ++i) out[i] = saliency_of(on[b.on[i]] + off[b.off[i]]);
}

}  // namespace

void fine_grained_saliency(const FineSaliency& s) {
  expect_result(s.out, s.n * s.height * s.width * static_cast<int64_t>(sizeof(float)));
  auto body = [&](int64_t begin, int64_t end) {
    Buffers buffers(s);
    for (int64_t n = begin; n < end; ++n) find(s, n, buffers);
  };
  const int64_t pixels = s.height * s.width, threads = std::max(1, s.queue.threads);
  const int64_t grain = std::max<int64_t>(1, std::min<int64_t>(s.n / (4 * threads), 4096 / pixels));
  parallel_for(s.n, grain, s.n * pixels < 4096 ? 1 : s.queue.threads, body);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
