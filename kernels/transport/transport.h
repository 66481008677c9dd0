// The two transports of PuzzleMix, one sample on one execution block. README.md derives both.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"
#include "fastmix.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kTransportSide = 32;  // largest height and width

// The blocks of an image, numbered row by row, and the table of what moves cost: by the distance in rows, then by the
// one in columns from -(width - 1) on, so that the costs of one block's moves to a row of targets lie side by side.
struct BlockGrid {
  int height, width;

  FASTMIX_HD int cells() const { return height * width; }
  FASTMIX_HD int side() const { return height > width ? height : width; }
  FASTMIX_HD int span() const { return 2 * width - 1; }

  // Values to make room for, in eights: arrays of any type that follow one another stay aligned.
  FASTMIX_HD int cell_room() const { return (cells() + 7) & ~7; }
  FASTMIX_HD int cost_room() const { return (height * span() + 7) & ~7; }

  FASTMIX_HD int row(int cell) const { return cell / width; }
  FASTMIX_HD int column(int cell) const { return cell % width; }
  // Of a move from (y, x) to column 0 of row ty.
  FASTMIX_HD int cost_index(int y, int x, int ty) const { return (y < ty ? ty - y : y - ty) * span() + width - 1 - x; }
  // Of a move by dy rows, and of the cheapest one there is.
  FASTMIX_HD int cost_index(int dy) const { return cost_index(0, 0, dy); }
  FASTMIX_HD int nearest_index() const { return width > 1 ? width : cost_index(1); }

  // Squared distance over the square of the longest step along a side; 0 in a grid of one block.
  template <class T>
  FASTMIX_HD T distance(int dy, int dx) const {
    const T longest = static_cast<T>(side() > 1 ? side() - 1 : 1);
    return static_cast<T>(dy * dy + dx * dx) / (longest * longest);
  }
};

// What is no share of anything, NaN, infinite or below 0, counts as nothing.
FASTMIX_HD float share(float saliency) { return saliency > 0 && saliency <= 3.402823466e38f ? saliency : 0.f; }

template <class To, class From>
FASTMIX_HD To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// The rows and columns of a grid that belong to one member, always the same ones: members stand side by side in a row,
// then in the next ones. A lone member has whole rows, in steps that the compiler knows.
template <class Block>
class Share {
 public:
  FASTMIX_HD Share(const Block& block, int width)
      : block_(block),
        columns_(block.size() < width ? block.size() : width),
        rows_(block.size() / columns_),
        column_(block.rank() % columns_),
        row_(block.rank() / columns_) {
    if (row_ >= rows_) row_ = 1 << 20;  // one too many: has no rows
  }

  FASTMIX_HD int first_column() const { return alone() ? 0 : column_; }
  FASTMIX_HD int column_step() const { return alone() ? 1 : columns_; }
  FASTMIX_HD int row_step() const { return alone() ? 1 : rows_; }
  FASTMIX_HD int first_row(int top) const {
    if (alone()) return top;
    return row_ < top ? row_ + (top - row_ + rows_ - 1) / rows_ * rows_ : row_;
  }
  FASTMIX_HD bool alone() const { return block_.size() == 1; }

 private:
  const Block& block_;
  int columns_, rows_, column_, row_;
};

// Fills the table of costs with cost(dy, dx).
template <class Block, class T, class F>
FASTMIX_HD void fill_costs(const Block& block, const BlockGrid& grid, T* table, F cost) {
  const Share<Block> mine(block, grid.span());
  for (int dy = mine.first_row(0); dy < grid.height; dy += mine.row_step())
    for (int x = mine.first_column(); x < grid.span(); x += mine.column_step())
      table[dy * grid.span() + x] = cost(dy, x - (grid.width - 1));
}

// Lowers a slot that other members may lower at the same time; to be read after the next sync. Beside each other block
// type stands such a function.
FASTMIX_HD void lower(const SerialBlock&, uint64_t& slot, uint64_t value) {
  if (value < slot) slot = value;
}

// The released rounds, bit for bit. Rows are blocks that propose to a target, each to the one that is cheapest for it;
// of the rows that propose to it a target takes the cheapest; for a row that was turned down that target costs 1 more.
template <class Block>
class TransportRounds {
 public:
  static FASTMIX_HD int memory(int height, int width) {
    const BlockGrid grid{height, width};
    return 28 * grid.cell_room() + 4 * grid.cost_room();
  }

  FASTMIX_HD TransportRounds(const Block& block, const Transport& call, int64_t sample, void* memory)
      : block_(block), grid_{call.height, call.width}, n_(grid_.cells()), source_(call.source + sample * n_) {
    const int room = grid_.cell_room();
    winner_ = static_cast<uint64_t*>(memory);
    move_ = reinterpret_cast<float*>(winner_ + room);
    saliency_ = move_ + grid_.cost_room();
    shown_ = saliency_ + room;
    price_ = shown_ + room;
    lost_price_ = price_ + room;
    target_ = reinterpret_cast<uint16_t*>(lost_price_ + room);
    lost_target_ = target_ + room;
    load(call, sample);
  }

  FASTMIX_HD void solve() {
    if (!play_below_zero()) play_all();
    write();
  }

 private:
  static constexpr uint64_t kUnclaimed = ~uint64_t{0};
  static constexpr int kOpen = 0xffff, kOut = 0xfffe;  // instead of a target: has to propose; has nothing to propose
  static constexpr int kNone = -1;

  FASTMIX_HD void load(const Transport& call, int64_t sample) {
    const float eps = static_cast<float>(call.eps);
    fill_costs(block_, grid_, move_, [&](int dy, int dx) { return eps * grid_.template distance<float>(dy, dx); });
    for (int i = block_.rank(); i < n_; i += block_.size()) {
      saliency_[i] = share(call.saliency[sample * n_ + i]);
      shown_[i] = call.visible[sample * n_ + i] ? 1.f : 0.f;
    }
    block_.sync();
  }

  FASTMIX_HD void reset() {
    for (int i = block_.rank(); i < n_; i += block_.size()) {
      winner_[i] = kUnclaimed;
      target_[i] = kOpen;
      lost_price_[i] = -INFINITY;
      lost_target_[i] = 0;
    }
    block_.sync();
  }

  // The rounds of those rows alone that have a target below 0: others cannot keep one from taking such an offer. False
  // where that may not be all there is to it, so that every row has to be played.
  FASTMIX_HD bool play_below_zero() {
    bool special = false, worthless = false;
    for (int i = block_.rank(); i < n_; i += block_.size()) {
      const float s = saliency_[i];
      // A cost of less than -1 stays below 0 when 1 is added; and a visible block may leave its own target for another
      // one at the same cost if the cheapest move vanishes beside its saliency.
      special |= s > 1 || (s > 0 && n_ > 1 && move_[grid_.nearest_index()] - s == -s);
      worthless |= s == 0 && shown_[i] > 0;
    }
    if (block_.any(special)) return false;
    worthless = block_.any(worthless);
    reset();
    for (int round = 0; round < grid_.side(); ++round) {
      for (int i = block_.rank(); i < n_; i += block_.size()) {
        if (target_[i] == kOpen) propose_below_zero(i);
        if (target_[i] < kOut) lower(block_, winner_[target_[i]], claim(price_[i], i));
      }
      block_.sync();
      bool lost = false;
      for (int i = block_.rank(); i < n_; i += block_.size())
        if (target_[i] < kOut && row_of(winner_[target_[i]]) != i) turn_down(i), lost = true;
      if (!block_.any(lost)) break;
    }
    // Only a target of saliency 0 can be empty, and without a price below 0 it goes to the first row or to none before
    // the first row has been turned down.
    return !worthless ||
           (lost_price_[0] == -INFINITY && !(shown_[0] > 0 && saliency_[0] == 0 && winner_[0] != kUnclaimed));
  }

  FASTMIX_HD void play_all() {
    block_.sync();
    reset();
    for (int round = 0; round < grid_.side(); ++round) {
      for (int i = block_.rank(); i < n_; i += block_.size()) {
        if (target_[i] == kOpen) propose(i);
        if (price_[i] < 0) lower(block_, winner_[target_[i]], claim(price_[i], i));
      }
      block_.sync();
      const int other = winner_without_gain();
      block_.sync();
      bool lost = false;
      for (int i = block_.rank(); i < n_; i += block_.size())
        if (i != other && (price_[i] >= 0 || row_of(winner_[target_[i]]) != i)) turn_down(i), lost = true;
      if (!block_.any(lost)) break;
    }
  }

  FASTMIX_HD void turn_down(int i) {
    lost_price_[i] = price_[i];
    lost_target_[i] = target_[i];
    target_[i] = kOpen;
  }

  // The first of the cheapest targets of row i among those below 0 that it has not been turned down by. These are the
  // ones beyond the last of them, in the order of (price, target).
  FASTMIX_HD void propose_below_zero(int i) {
    const float own = saliency_[i], lost = lost_price_[i];
    target_[i] = kOut;
    if (shown_[i] > 0 && own > 0 && lost == -INFINITY) {  // any move would cost more
      price_[i] = -own, target_[i] = static_cast<uint16_t>(i);
      return;
    }
    const int y = grid_.row(i), x = grid_.column(i), lost_row = grid_.row(lost_target_[i]);
    int reach = -1;
    while (reach + 1 < grid_.height && move_[grid_.cost_index(reach + 1)] < own) ++reach;
    const int top = y > reach ? y - reach : 0, bottom = y + reach < grid_.height ? y + reach : grid_.height - 1;
    uint32_t best = 0;  // bits of a price: those of numbers below 0 rise as these fall
    int best_row = kNone;
    for (int ty = top; ty <= bottom; ++ty) {
      const float *move = move_ + grid_.cost_index(y, x, ty), *shown = shown_ + ty * grid_.width;
      const int tied = first_tied(ty, lost_row, lost_target_[i]);
      uint32_t best_here = 0;
      for (int tx = 0; tx < grid_.width; ++tx) {
        const float price = move[tx] - own * shown[tx];
        const uint32_t open = (price < 0) & ((price > lost) | ((price == lost) & (tx >= tied)));
        const uint32_t bits = same_bits<uint32_t>(price) & (0 - open);
        best_here = bits > best_here ? bits : best_here;
      }
      if (best_here > best) best = best_here, best_row = ty;
    }
    if (best_row == kNone) return;
    const float *move = move_ + grid_.cost_index(y, x, best_row), *shown = shown_ + best_row * grid_.width;
    const float price = same_bits<float>(best);
    int tx = price == lost ? first_tied(best_row, lost_row, lost_target_[i]) : 0;
    while (move[tx] - own * shown[tx] != price) ++tx;
    price_[i] = price;
    target_[i] = static_cast<uint16_t>(best_row * grid_.width + tx);
  }

  // The first column of row ty whose targets come after the last one lost where the price is the same.
  FASTMIX_HD int first_tied(int ty, int lost_row, int lost_target) const {
    return ty < lost_row ? grid_.width : ty > lost_row ? 0 : lost_target - lost_row * grid_.width + 1;
  }

  // The first of the cheapest targets of row i.
  FASTMIX_HD void propose(int i) {
    const int y = grid_.row(i), x = grid_.column(i);
    float best = INFINITY;
    int at = 0;
    for (int j = 0, ty = 0; ty < grid_.height; ++ty) {
      const float* move = move_ + grid_.cost_index(y, x, ty);
      for (int tx = 0; tx < grid_.width; ++tx, ++j) {
        const float price = beyond(move[tx] - saliency_[i] * shown_[j], j, lost_price_[i], lost_target_[i]);
        if (price < best) best = price, at = j;
      }
    }
    price_[i] = best;
    target_[i] = static_cast<uint16_t>(at);
  }

  // The price after the losses so far. A row loses its offers in the order of (price, target), so that the last loss
  // tells how often each target was among them.
  FASTMIX_HD float beyond(float price, int target, float lost_price, int lost_target) const {
    while (price < lost_price || (price == lost_price && target <= lost_target)) {
      const float next = price + 1.f;
      if (next == price) break;  // too large for 1 to count: the row is stuck here
      price = next;
    }
    return price;
  }

  // The one row that wins without a price below 0, if there is one. To the released code a row that does not propose to
  // a target stands there with 0, and the first of the cheapest wins if it does propose: it has to come after none but
  // rows that propose to the same target above 0. Not all rows do: at first none has a price above 0, and who wins then
  // only gives way to one below 0.
  FASTMIX_HD int winner_without_gain() const {
    const int target = target_[0];
    int first = block_.rank();
    while (first < n_ && target_[first] == target && price_[first] > 0) first += block_.size();
    first = block_.min(first);
    const bool wins = target_[first] == target && price_[first] == 0 && winner_[target] == kUnclaimed;
    return wins ? first : kNone;
  }

  // Orders prices below 0, and rows of the same price.
  static FASTMIX_HD uint64_t claim(float price, int row) {
    return static_cast<uint64_t>(~same_bits<uint32_t>(price)) << 32 | static_cast<uint32_t>(row);
  }
  static FASTMIX_HD int row_of(uint64_t claim) { return static_cast<int>(claim & 0xffffffffu); }

  // The visible target that shows block i, if one does.
  FASTMIX_HD int shown_at(int i) const { return target_[i] < kOut && shown_[target_[i]] > 0 ? target_[i] : kNone; }

  // A block for the visible target j that has none: its own, unless that is shown elsewhere. Then that of the target
  // where it is, unless that one is shown elsewhere again, and so on. Nobody else finds this one, and as j shows
  // nothing, the chain does not come back.
  FASTMIX_HD int left_over(int j) const {
    int block = j;
    for (int next = shown_at(block); next != kNone; next = shown_at(block)) block = next;
    return block;
  }

  FASTMIX_HD void write() {
    for (int j = block_.rank(); j < n_; j += block_.size()) source_[j] = kNone;
    block_.sync();
    for (int i = block_.rank(); i < n_; i += block_.size())
      if (shown_at(i) != kNone) source_[shown_at(i)] = i;
    block_.sync();
    for (int j = block_.rank(); j < n_; j += block_.size())
      if (shown_[j] > 0 && source_[j] == kNone) source_[j] = left_over(j);
  }

  const Block& block_;
  const BlockGrid grid_;
  const int n_;
  int32_t* source_;
  uint64_t* winner_;  // by target: the lowest price below 0 that was offered, and the row
  float* move_;       // table
  float* saliency_;   // by block
  float* shown_;      // by target: 1 if visible, else 0
  float* price_;      // by row: of its proposal
  float* lost_price_;
  uint16_t* target_;  // by row: of its proposal
  uint16_t* lost_target_;
};

// The cheapest plan, by shortest paths from every block in its place. Hidden blocks are offered one after another; each
// may push blocks on from target to target until one of them is dropped. Costs are integers, in units of 2^-28 of the
// next power of two above the largest saliency.
template <class Block>
class TransportPaths {
 public:
  static FASTMIX_HD int memory(int height, int width) {
    const BlockGrid grid{height, width};
    return 32 * grid.cell_room() + 4 * grid.cost_room();
  }

  FASTMIX_HD TransportPaths(const Block& block, const Transport& call, int64_t sample, void* memory)
      : block_(block),
        grid_{call.height, call.width},
        n_(grid_.cells()),
        mine_(block, call.width),
        source_(call.source + sample * n_) {
    const int room = grid_.cell_room();
    cost_ = static_cast<int32_t*>(memory);
    worth_ = cost_ + grid_.cost_room();
    price_ = worth_ + room;
    moved_ = price_ + room;
    drop_ = moved_ + room;
    length_ = drop_ + room;
    pushed_ = length_ + room;
    parent_ = pushed_ + room;
    held_ = reinterpret_cast<uint16_t*>(parent_ + room);
    active_ = reinterpret_cast<uint8_t*>(held_ + room);
    visible_ = active_ + room;
    load(call, sample);
  }

  FASTMIX_HD void solve() {
    const int32_t nearest = n_ > 1 ? cost_[grid_.nearest_index()] : 0;
    for (int i = 0; i < n_; ++i)
      if (!visible_[i] && worth_[i] > nearest) offer(i);
    for (int j = block_.rank(); j < n_; j += block_.size()) source_[j] = visible_[j] ? held_[j] : -1;
  }

 private:
  static constexpr int kBits = 28;
  static constexpr int32_t kFar = int32_t{1} << 30;

  FASTMIX_HD void load(const Transport& call, int64_t sample) {
    const float* saliency = call.saliency + sample * n_;
    const uint8_t* visible = call.visible + sample * n_;
    int32_t lowest = 0;  // bits of numbers that are not below 0 are in their order
    for (int i = block_.rank(); i < n_; i += block_.size()) {
      const int32_t bits = -same_bits<int32_t>(share(saliency[i]));
      lowest = bits < lowest ? bits : lowest;
    }
    const double largest = same_bits<float>(-block_.min(lowest));
    int exponent = 0;
    frexp(largest, &exponent);
    const double units = ldexp(1., kBits - exponent);
    // A move that costs more than the largest saliency never pays; one unit more says so, too.
    const double eps = call.eps, dearest = largest * units + 1;
    fill_costs(block_, grid_, cost_, [&](int dy, int dx) {
      const double cost = eps * grid_.template distance<double>(dy, dx) * units;
      return static_cast<int32_t>(rint(cost < dearest ? cost : dearest));
    });
    for (int i = block_.rank(); i < grid_.cell_room(); i += block_.size()) {
      visible_[i] = i < n_ && visible[i] != 0;
      worth_[i] = i < n_ ? static_cast<int32_t>(rint(share(saliency[i]) * units)) : 0;
      price_[i] = visible_[i] ? 0 : -kFar;  // nothing can be brought to a hidden target
      drop_[i] = worth_[i];
      moved_[i] = length_[i] = pushed_[i] = parent_[i] = 0;
      held_[i] = static_cast<uint16_t>(i);
      active_[i] = 0;
    }
    block_.sync();
  }

  // Brings the hidden block k in, if that pays. Lengths of paths are reduced by the prices, so that no step of one is
  // below 0; the path that leaves k out has length 0, and what is no shorter is not looked at.
  FASTMIX_HD void offer(int k) {
    int top = grid_.height, bottom = -1;  // of the rows that paths have reached
    relax(n_ + k, k, -worth_[k], 0, top, bottom);
    int32_t best;
    for (;;) {
      best = block_.min(cheapest_end(top, bottom));
      if (!block_.any(mark_active(best, top, bottom))) break;
      push_active(best, top, bottom);
    }
    const int end = best < 0 ? block_.min(first_end(best, top, bottom)) : 0;
    settle(best, top, bottom);
    block_.sync();
    if (best < 0) {
      if (block_.rank() == 0) shift(end);
      block_.sync();
    }
  }

  // Shortens paths by one that ends with block k, which comes from target `from` or, if that is n + k, into the plan,
  // for `base`, if they come out below `bound`.
  FASTMIX_HD void relax(int from, int k, int32_t base, int32_t bound, int& top, int& bottom) {
    const int y = grid_.row(k), x = grid_.column(k), width = grid_.width;
    int reach = -1;
    while (reach + 1 < grid_.height && base + cost_[grid_.cost_index(reach + 1)] < bound) ++reach;
    if (reach < 0) return;
    const int first = y > reach ? y - reach : 0, last = y + reach < grid_.height ? y + reach : grid_.height - 1;
    top = first < top ? first : top;
    bottom = last > bottom ? last : bottom;
    for (int ty = mine_.first_row(first); ty <= last; ty += mine_.row_step()) {
      const int32_t *cost = cost_ + grid_.cost_index(y, x, ty), *price = price_ + ty * width;
      int32_t *length = length_ + ty * width, *parent = parent_ + ty * width;
      FASTMIX_INDEPENDENT
      for (int tx = mine_.first_column(); tx < width; tx += mine_.column_step()) {
        const int32_t found = base + cost[tx] - price[tx];
        const bool shorter = found < length[tx];
        length[tx] = shorter ? found : length[tx];
        parent[tx] = shorter ? from : parent[tx];
      }
    }
  }

  // Calls f(begin, end) for the targets of this member in the rows top .. bottom, every column_step() of which is its.
  template <class F>
  FASTMIX_HD void for_runs(int top, int bottom, F f) const {
    if (mine_.alone()) return f(top * grid_.width, (bottom + 1) * grid_.width);
    for (int y = mine_.first_row(top); y <= bottom; y += mine_.row_step())
      f(y * grid_.width + mine_.first_column(), (y + 1) * grid_.width);
  }

  // Of all paths that end by dropping the block of a target of this member, what the cheapest costs: 0 is that of none.
  FASTMIX_HD int32_t cheapest_end(int top, int bottom) const {
    const int32_t *length = length_, *drop = drop_;
    int32_t best = 0;
    for_runs(top, bottom, [&](int begin, int end) {
      for (int j = begin; j < end; j += mine_.column_step()) {
        const int32_t total = length[j] + drop[j];
        best = total < best ? total : best;
      }
    });
    return best;
  }

  FASTMIX_HD int first_end(int32_t total, int top, int bottom) const {
    int found = n_;
    for_runs(top, bottom, [&](int begin, int end) {
      for (int j = begin; j < end; j += mine_.column_step())
        if (length_[j] + drop_[j] == total && j < found) found = j;
    });
    return found;
  }

  // Marks the targets with paths below `bound` that are shorter than when their block was last pushed on.
  FASTMIX_HD bool mark_active(int32_t bound, int top, int bottom) {
    const int32_t* length = length_;
    int32_t* pushed = pushed_;
    uint8_t* active = active_;
    int any = 0;
    for_runs(top, bottom, [&](int begin, int end) {
      FASTMIX_INDEPENDENT
      for (int j = begin; j < end; j += mine_.column_step()) {
        const int go = (length[j] < bound) & (length[j] < pushed[j]);
        pushed[j] = go ? length[j] : pushed[j];
        active[j] = static_cast<uint8_t>(go);
        any |= go;
      }
    });
    return any != 0;
  }

  FASTMIX_HD void push_active(int32_t bound, int& top, int& bottom) {
    const int end = (bottom + 1) * grid_.width;
    for (int i = top * grid_.width & ~7; i < end; i += 8) {
      uint64_t eight;
      memcpy(&eight, active_ + i, sizeof eight);
      if (eight == 0) continue;
      for (int j = i; j < i + 8; ++j)
        if (active_[j]) relax(j, held_[j], pushed_[j] - moved_[j] + price_[j], bound, top, bottom);
    }
  }

  // Prices under which no step costs less than 0 in the plan to come, and a clean slate for the next offer.
  FASTMIX_HD void settle(int32_t best, int top, int bottom) {
    int32_t *price = price_, *drop = drop_, *length = length_, *pushed = pushed_;
    for_runs(top, bottom, [&](int begin, int end) {
      FASTMIX_INDEPENDENT
      for (int j = begin; j < end; j += mine_.column_step()) {
        const int32_t fall = length[j] < best ? best - length[j] : 0;
        price[j] -= fall;
        drop[j] -= fall;
        length[j] = 0;
        pushed[j] = 0;
      }
    });
  }

  // Moves the blocks along the path that ends at target `end`; the block there is dropped.
  FASTMIX_HD void shift(int end) {
    for (int j = end; j < n_;) {
      const int from = parent_[j], k = from < n_ ? held_[from] : from - n_;
      held_[j] = static_cast<uint16_t>(k);
      moved_[j] = cost_[grid_.cost_index(grid_.row(k), grid_.column(k), grid_.row(j)) + grid_.column(j)];
      drop_[j] = worth_[k] - moved_[j] + price_[j];
      j = from;
    }
  }

  const Block& block_;
  const BlockGrid grid_;
  const int n_;
  const Share<Block> mine_;
  int32_t* source_;
  int32_t* cost_;    // table
  int32_t* worth_;   // by block
  int32_t* price_;   // by target: what a block there is worth to the plan, negated: never above 0
  int32_t* moved_;   // by target: cost of the move of the block it holds
  int32_t* drop_;    // by target: reduced cost of dropping that block, 0 or more
  int32_t* length_;  // by target: of the shortest path found that brings it a block
  int32_t* pushed_;  // by target: length when its own block was last pushed on
  int32_t* parent_;  // by target: the last step of that path, see relax()
  uint16_t* held_;   // by target: block
  uint8_t* active_;  // by target: its block is to be pushed on
  uint8_t* visible_;
};

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
