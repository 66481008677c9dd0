// CPU kernel of `spectral_mask`: a mask a thread, its image in cache from the first frequency to the last pixel. The
// image is two small matrix products; README.md derives them. Its largest pixels are found by a histogram of equal
// steps and, within the step that holds the edge, by comparison.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fastmix.h"
#include "gemm.h"
#include "pages.h"
#include "parallel.h"
#include "span.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr double kTurn = 6.28318530717958647692;
constexpr int kSteps = 2048;                   // of the histogram
constexpr double kScale = 0.7071067811865476;  // as in the reference, which says why

// What all masks share. Frequencies along the height: [cos; -sin] of each, as rows over the lines of the image; along
// the width: the constant, then [cos; -sin] of each, as rows over the columns.
struct Waves {
  explicit Waves(const SpectralMask& s)
      : rows(s.released ? s.columns : s.rows),
        columns(std::min(s.released ? int64_t(2) : s.columns, s.width / 2 + 1)),
        tall(padded<double>(s.height)),
        wide(padded<double>(s.width)),
        down(2 * rows * tall),
        across(terms() * wide),
        amplitude(s.rows * s.columns) {
    const std::vector<double> around_height = circle(s.height), around_width = circle(s.width);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t frequency = s.released || r < (rows + 1) / 2 ? r : s.height + r - rows;
      put(around_height, frequency, 1, &down[r * tall], &down[(rows + r) * tall], s.height, tall);
    }
    std::fill(across.begin(), across.begin() + wide, 1.);
    for (int64_t c = 1; c < columns; ++c) {
      double* row = &across[(2 * c - 1) * wide];
      put(around_width, c, 2 * c == s.width ? 1 : 2, row, row + wide, s.width, wide);
    }
    set_amplitudes(s);
  }

  // Real numbers that a line of the image is made of.
  int64_t terms() const { return 2 * columns - 1; }

  int64_t rows, columns, tall, wide;
  std::vector<double> down, across;  // [2 rows][tall] and [terms][wide], both in panels of kPanel<double>
  std::vector<double> amplitude;     // [s.rows][s.columns]

 private:
  static std::vector<double> circle(int64_t side) {
    std::vector<double> values(2 * side);
    for (int64_t i = 0; i < side; ++i) {
      values[i] = std::cos(kTurn * static_cast<double>(i) / static_cast<double>(side));
      values[side + i] = std::sin(kTurn * static_cast<double>(i) / static_cast<double>(side));
    }
    return values;
  }

  static void put(const std::vector<double>& circle, int64_t frequency, int times, double* cosines, double* sines,
                  int64_t side, int64_t room) {
    for (int64_t i = 0, at = 0; i < room; ++i, at = (at + frequency) % side) {
      cosines[i] = i < side ? times * circle[at] : 0;
      sines[i] = i < side ? -times * circle[side + at] : 0;
    }
  }

  void set_amplitudes(const SpectralMask& s) {
    const double height = static_cast<double>(s.height), width = static_cast<double>(s.width);
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t c = 0; c < s.columns; ++c) {
        const int64_t y = s.released || r < (s.rows + 1) / 2 ? r : s.rows - r, x = std::min(c, s.width / 2);
        const double fy = static_cast<double>(y) / height, fx = static_cast<double>(x) / width;
        const double f = std::sqrt(fy * fy + fx * fx) * std::max(height, width);
        amplitude[r * s.columns + c] = std::pow(std::max(f, 1.), -s.decay);
      }
  }
};

// The numbers that the waves down the image are multiplied by, [terms][2 rows], for sample n.
template <class Noise>
void weigh(const SpectralMask& s, const Waves& waves, int64_t n, double* to) {
  const Noise* noise = static_cast<const Noise*>(s.noise) + n * s.rows * s.columns * 2;
  const int64_t depth = 2 * waves.rows;
  // Real and imaginary part of row r, column c of the spectrum.
  auto part = [&](int64_t r, int64_t c, int which) {
    const int64_t at = s.released ? which * s.columns + r : r * s.columns + c;
    return static_cast<double>(noise[2 * at + (s.released ? c : which)]) * waves.amplitude[at];
  };
  for (int64_t c = 0; c < waves.columns; ++c) {
    double *real = to + (c ? 2 * c - 1 : 0) * depth, *imaginary = real + depth;
    for (int64_t r = 0; r < waves.rows; ++r) {
      const double a = part(r, c, 0), b = part(r, c, 1);
      real[r] = a, real[waves.rows + r] = b;
      if (c) imaginary[r] = b, imaginary[waves.rows + r] = -a;
    }
  }
}

// [rows][cols of panels]: out = left [rows][depth] times right [depth][stride], the panels side by side.
void multiply(int64_t rows, int64_t depth, const double* left, int64_t left_row, int64_t left_step, const double* right,
              int64_t stride, double* out) {
  for (int64_t p = 0; p < stride; p += kPanel<double>)
    panel(rows, depth, left, left_row, left_step, right + p, stride, out + p, stride, false);
}

struct Range {
  float low = std::numeric_limits<float>::max(), high = std::numeric_limits<float>::lowest();
};

// Copies a line of the image as float, what is not finite as the least there is, and widens the range.
void keep(const double* __restrict from, int64_t width, float* __restrict to, Range& range) {
  constexpr int kLanes = 32;
  constexpr float kMost = std::numeric_limits<float>::max();
  for (int64_t x = 0; x < width; ++x) {
    const float v = static_cast<float>(from[x] * kScale);
    to[x] = std::fabs(v) <= kMost ? v : -kMost;
  }
  float low[kLanes], high[kLanes];
  std::fill(low, low + kLanes, range.low), std::fill(high, high + kLanes, range.high);
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes)
    for (int i = 0; i < kLanes; ++i) {
      low[i] = to[x + i] < low[i] ? to[x + i] : low[i];
      high[i] = to[x + i] > high[i] ? to[x + i] : high[i];
    }
  for (; x < width; ++x) low[0] = std::min(low[0], to[x]), high[0] = std::max(high[0], to[x]);
  range.low = *std::min_element(low, low + kLanes), range.high = *std::max_element(high, high + kLanes);
}

struct Canvas {
  explicit Canvas(const Waves& waves)
      : weights(waves.terms() * 2 * waves.rows), lines(waves.terms() * waves.tall), band(kMaxRows * waves.wide) {}

  std::vector<double> weights, lines, band;
};

// The image of sample n.
Range draw(const SpectralMask& s, const Waves& waves, Canvas& canvas, int64_t n, float* image) {
  const int64_t terms = waves.terms(), depth = 2 * waves.rows;
  if (s.noise_f64)
    weigh<double>(s, waves, n, canvas.weights.data());
  else
    weigh<float>(s, waves, n, canvas.weights.data());
  multiply(terms, depth, canvas.weights.data(), depth, 1, waves.down.data(), waves.tall, canvas.lines.data());
  Range range;
  for (int64_t y = 0; y < s.height; y += kMaxRows) {
    const int64_t rows = std::min<int64_t>(kMaxRows, s.height - y);
    multiply(rows, terms, &canvas.lines[y], 1, waves.tall, waves.across.data(), waves.wide, canvas.band.data());
    for (int64_t r = 0; r < rows; ++r) keep(&canvas.band[r * waves.wide], s.width, image + (y + r) * s.width, range);
  }
  return range;
}

// Splits the range of an image into equal steps. Rounding is monotone, so that no value is in a lower step than a
// smaller one.
struct Steps {
  explicit Steps(const Range& range) : low(range.low), scale(kSteps / (range.high - range.low)) {
    if (!(scale > 0 && scale <= std::numeric_limits<float>::max())) low = scale = 0;  // flat, or too wide for float
  }
  int32_t of(float v) const {
    const int32_t step = static_cast<int32_t>((v - low) * scale);
    return step < kSteps ? step : kSteps - 1;
  }

  float low, scale;
};

struct Pixel {
  float value;
  int32_t at;
};

bool before(const Pixel& a, const Pixel& b) { return a.value > b.value || (a.value == b.value && a.at < b.at); }

class Selection {
 public:
  explicit Selection(int64_t pixels) : pixels_(pixels) {}

  // Ones for the `count` largest pixels, zeros for the rest; in between `soft` on either side fall from 1 to 0.
  void write(const float* image, const Range& range, int64_t count, int64_t soft, float* out) {
    count = std::clamp<int64_t>(count, 0, pixels_);
    soft = std::min({soft, count, pixels_ - count});
    if (count == 0 || count == pixels_) return std::fill(out, out + pixels_, count ? 1.f : 0.f), void();
    const Steps steps(range);
    count_steps(image, steps);
    // The ranks from `first` to `last` are open: soft, or on both sides of the edge.
    const int64_t first = soft ? count - soft : count - 1, last = soft ? count + soft - 1 : count;
    int64_t above = 0;
    int32_t top = kSteps - 1;
    for (; above + histogram_[top] <= first; --top) above += histogram_[top];
    int32_t bottom = top;
    for (int64_t seen = above + histogram_[top]; seen <= last; seen += histogram_[bottom]) --bottom;
    split(image, steps, bottom, top, out);
    settle(count, soft, above, out);
  }

 private:
  void count_steps(const float* __restrict image, const Steps& steps) {
    constexpr int kTables = 4;  // neighbours often share a step: they count apart
    std::fill(tables_, tables_ + kTables * kSteps, 0);
    alignas(64) int32_t step[kTile];
    for (int64_t i = 0; i < pixels_; i += kTile) {
      const int64_t length = std::min(kTile, pixels_ - i);
      for (int64_t e = 0; e < length; ++e) step[e] = steps.of(image[i + e]);
      int64_t e = 0;
      for (; e + kTables <= length; e += kTables)
        for (int t = 0; t < kTables; ++t) ++tables_[t * kSteps + step[e + t]];
      for (; e < length; ++e) ++tables_[step[e]];
    }
    for (int i = 0; i < kSteps; ++i) {
      int32_t sum = 0;
      for (int t = 0; t < kTables; ++t) sum += tables_[t * kSteps + i];
      histogram_[i] = sum;
    }
  }

  // Settles the pixels outside of the steps from `bottom` to `top`, and notes those within.
  void split(const float* __restrict image, const Steps& steps, int32_t bottom, int32_t top, float* __restrict out) {
    constexpr int64_t kPiece = 64;
    open_.clear();
    for (int64_t i = 0; i < pixels_; i += kPiece) {
      const int64_t length = std::min(kPiece, pixels_ - i);
      int32_t within = 0;
      for (int64_t e = 0; e < length; ++e) {
        const int32_t step = steps.of(image[i + e]);
        out[i + e] = step > top ? 1.f : 0.f;
        within += step >= bottom && step <= top;
      }
      for (int64_t e = 0; within && e < length; ++e) {
        const int32_t step = steps.of(image[i + e]);
        if (step < bottom || step > top) continue;
        open_.push_back({image[i + e], static_cast<int32_t>(i + e)});
        --within;
      }
    }
  }

  // The noted pixels, of which the first has rank `above`.
  void settle(int64_t count, int64_t soft, int64_t above, float* out) {
    if (soft == 0) {
      const int64_t ones = count - above;
      std::nth_element(open_.begin(), open_.begin() + std::min<int64_t>(ones, open_.size() - 1), open_.end(), before);
      for (int64_t i = 0; i < ones; ++i) out[open_[i].at] = 1;
      return;
    }
    std::sort(open_.begin(), open_.end(), before);
    for (size_t i = 0; i < open_.size(); ++i) {
      const int64_t rank = above + static_cast<int64_t>(i) - (count - soft);
      const double slope = static_cast<double>(rank) / static_cast<double>(2 * soft - 1);
      out[open_[i].at] = rank < 0 ? 1.f : rank < 2 * soft ? static_cast<float>(1 - slope) : 0.f;
    }
  }

  int64_t pixels_;
  int32_t tables_[4 * kSteps], histogram_[kSteps];
  std::vector<Pixel> open_;
};

template <class F>
void for_masks(const SpectralMask& s, F f) {
  auto body = [&](int64_t begin, int64_t end) { f(begin, end); };
  const int64_t pixels = s.height * s.width;
  parallel_for(s.n, std::max<int64_t>(1, 4096 / pixels), s.n * pixels < 4096 ? 1 : s.queue.threads, body);
}

void draw_and_select(const SpectralMask& s) {
  const Waves waves(s);
  const int64_t pixels = s.height * s.width;
  for_masks(s, [&](int64_t begin, int64_t end) {
    Canvas canvas(waves);
    Selection selection(pixels);
    std::vector<float> image(pixels);
    for (int64_t n = begin; n < end; ++n) {
      const Range range = draw(s, waves, canvas, n, image.data());
      selection.write(image.data(), range, s.count[n], s.soft, s.out + n * pixels);
    }
  });
}

void select(const SpectralMask& s) {
  const int64_t pixels = s.height * s.width;
  for_masks(s, [&](int64_t begin, int64_t end) {
    Selection selection(pixels);
    for (int64_t n = begin; n < end; ++n) {
      const float* image = s.field + n * pixels;
      const auto [low, high] = std::minmax_element(image, image + pixels);
      selection.write(image, {*low, *high}, s.count[n], s.soft, s.out + n * pixels);
    }
  });
}

}  // namespace

void spectral_mask(const SpectralMask& s) {
  if (s.n == 0) return;
  expect_result(s.out, s.n * s.height * s.width * static_cast<int64_t>(sizeof(float)));
  if (s.field)
    select(s);
  else
    draw_and_select(s);
}

}  // namespace FASTMIX_ISA
}  // namespace fastmix
