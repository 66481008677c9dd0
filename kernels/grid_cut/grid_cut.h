// Exact cuts of grids with integer costs, one sample on one execution block. README.md derives what is done here.
#pragma once

#include "block.h"
#include "fastmix.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

constexpr int kCutMaxWeight = 1 << 20;  // keeps every sum of capacities in int32
constexpr int kCutFar = 1 << 20;        // height of a node that cannot reach the sink
constexpr int kCutSweeps = 8;           // between two exact measurements of the heights

FASTMIX_HD int lesser(int a, int b) { return a < b ? a : b; }
FASTMIX_HD int clamped(int64_t value, int low, int high) {
  return value < low ? low : value > high ? high : static_cast<int>(value);
}

// Hands out arrays of one value a site; those that neighbours read have a row of margin on both sides, so that nobody
// has to ask whether a neighbour exists.
struct CutMemory {
  int32_t* next;
  int sites, margin;

  FASTMIX_HD int32_t* plain(int count = 1) {
    int32_t* first = next;
    next += count * sites;
    return first;
  }
  FASTMIX_HD int32_t* with_margin(int count = 1) {
    int32_t* first = next + margin;
    next += count * (sites + 2 * margin);
    return first;
  }
};

// What is to be set before a maximum flow: the excess of each site, and how much it can send in the four directions.
struct CutArcs {
  int32_t* excess;
  int32_t* residual[4];
};

// A maximum preflow by push and relabel (Goldberg and Tarjan, 1988) in lock-step: in each phase a node sends along one
// arc and receives along one. So every value has one writer, and the result does not depend on the schedule.
//
// The nodes (a, i) are the sites i of `Layers` copies a of the grid, and arcs lead from (a, i) to (b, i + step(d)) for
// the four directions d and all b. A positive `excess` still has to leave its node; a negative one is what the sink can
// still take there. From (a, i) to (a + 1, i) anything can be sent; `lifted` is how much has been.
template <class Block, int Layers>
class CutFlow {
 public:
  static FASTMIX_HD int64_t memory(int64_t sites, int64_t margin) {
    return (Layers + 4 * Layers * Layers + Layers - 1) * sites + 4 * Layers * (sites + 2 * margin);
  }

  FASTMIX_HD CutFlow(const Block& block, int width, CutMemory& memory)
      : block_(block),
        sites_(memory.sites),
        width_(width),
        stride_(memory.sites + 2 * memory.margin),
        excess_(memory.plain(Layers)),
        residual_(memory.plain(4 * Layers * Layers)),
        lifted_(memory.plain(Layers - 1)),
        height_(memory.with_margin(Layers)),
        next_height_(memory.with_margin(Layers)),
        sent_(memory.with_margin(Layers)),
        next_sent_(memory.with_margin(Layers)) {
    for (int i = block_.rank() - memory.margin; i < sites_ + memory.margin; i += block_.size())
      for (int a = 0; a < Layers; ++a) {
        height_[a * stride_ + i] = next_height_[a * stride_ + i] = kCutFar;
        sent_[a * stride_ + i] = next_sent_[a * stride_ + i] = 0;
      }
    for (int i = block_.rank(); i < sites_; i += block_.size())
      for (int a = 0; a + 1 < Layers; ++a) lifted_[a * sites_ + i] = 0;
    block_.sync();
  }

  // Members set the excess and the residual capacities of the sites that they own.
  FASTMIX_HD int32_t* excess(int a) const { return excess_ + a * sites_; }
  FASTMIX_HD int32_t* residual(int d, int a, int b) const {
    return residual_ + ((d * Layers + a) * Layers + b) * sites_;
  }

  // The same for a single layer.
  FASTMIX_HD CutArcs arcs() const {
    return {excess_, {residual(0, 0, 0), residual(1, 0, 0), residual(2, 0, 0), residual(3, 0, 0)}};
  }

  // After maximize(): whether the sink can still be reached from a node, that is, whether every minimum cut leaves it
  // on the sink's side.
  FASTMIX_HD bool reaches_sink(int a, int i) const { return height_[a * stride_ + i] < kCutFar; }

  // Ends when no excess can reach the sink. Heights never sink and end within the number of nodes, and a sweep moves
  // all excess that it finds downwards or raises a height, so it does end.
  FASTMIX_HD void maximize() {
    while (measure_heights())
      for (int sweep = 0; sweep < kCutSweeps; ++sweep) {
        FASTMIX_ROLLED
        for (int d = 0; d < 4; ++d) push(d);
        push_between_layers();
        if (!raise_heights()) break;
      }
  }

 private:
  // The members that a loop reads, as locals of it: the compiler then knows that no store changes them.
  struct Nodes {
    int sites, width, stride;
    const int32_t *excess, *residual, *lifted, *height;

    // One more than the lowest height to which an arc of (A, i) leads; that of the sink is 0.
    template <int A>
    FASTMIX_HD int above_lowest(int i) const {
      const int next = Layers * Layers * sites;
      int lowest = excess[A * sites + i] < 0 ? 1 : kCutFar;
      FASTMIX_FLAT
      for (int b = 0; b < Layers; ++b) {
        const int32_t* target = height + b * stride + i;
        const int32_t* room = residual + (A * Layers + b) * sites + i;
        lowest = lesser(lowest, above(target[width], room[0]));
        lowest = lesser(lowest, above(target[-width], room[next]));
        lowest = lesser(lowest, above(target[1], room[2 * next]));
        lowest = lesser(lowest, above(target[-1], room[3 * next]));
      }
      if constexpr (A + 1 < Layers) lowest = lesser(lowest, height[(A + 1) * stride + i] + 1);
      if constexpr (A > 0) lowest = lesser(lowest, above(height[(A - 1) * stride + i], lifted[(A - 1) * sites + i]));
      return lowest;
    }

    static FASTMIX_HD int above(int height, int residual) { return residual > 0 ? height + 1 : kCutFar; }
  };
  FASTMIX_HD Nodes nodes() const { return {sites_, width_, stride_, excess_, residual_, lifted_, height_}; }

  // Makes every height the length of the shortest path to the sink; whether there is excess that has one.
  FASTMIX_HD bool measure_heights() {
    const Nodes now = nodes();
    for (int a = 0; a < Layers; ++a) {
      int32_t* height = height_ + a * now.stride;
      FASTMIX_INDEPENDENT
      for (int i = block_.rank(); i < now.sites; i += block_.size())
        height[i] = now.excess[a * now.sites + i] < 0 ? 1 : kCutFar;
    }
    block_.sync();
    for (bool changed = true; changed;) {
      changed = block_.any(lower_heights<0>(nodes()));
      exchange(height_, next_height_);
    }
    bool active = false;
    for (int a = 0; a < Layers; ++a)
      for (int i = block_.rank(); i < now.sites; i += block_.size()) active |= excess(a)[i] > 0 && reaches_sink(a, i);
    return block_.any(active);
  }

  // One step of the measurement, for the layers from A on; whether a height has changed.
  template <int A>
  FASTMIX_HD bool lower_heights(const Nodes now) {
    int32_t* next = next_height_ + A * now.stride;
    int change = 0;
    FASTMIX_INDEPENDENT
    for (int i = block_.rank(); i < now.sites; i += block_.size()) {
      const int before = now.height[A * now.stride + i], after = lesser(before, now.template above_lowest<A>(i));
      change |= before ^ after;
      next[i] = after;
    }
    if constexpr (A + 1 < Layers) change |= lower_heights<A + 1>(now);
    return change;
  }

  // Raises every height as far as its neighbours allow; whether there is excess that may still reach the sink.
  FASTMIX_HD bool raise_heights() {
    const bool active = raise_heights<0>(nodes());
    exchange(height_, next_height_);
    return block_.any(active);
  }

  template <int A>
  FASTMIX_HD bool raise_heights(const Nodes now) {
    int32_t* next = next_height_ + A * now.stride;
    int active = 0;
    FASTMIX_INDEPENDENT
    for (int i = block_.rank(); i < now.sites; i += block_.size()) {
      const int after = now.template above_lowest<A>(i);
      active |= (now.excess[A * now.sites + i] > 0) & (after < kCutFar);
      next[i] = after;
    }
    if constexpr (A + 1 < Layers) active |= raise_heights<A + 1>(now);
    return active;
  }

  // Sends excess in direction d to nodes one lower, to the same layer, the next one and so on in turn.
  FASTMIX_HD void push(int d) {
    const Nodes now = nodes();
    const int step = (d < 2 ? now.width : 1) * (d % 2 ? -1 : 1);
    FASTMIX_ROLLED
    for (int shift = 0; shift < Layers; ++shift) {
      FASTMIX_ROLLED
      for (int a = 0; a < Layers; ++a) {
        const int b = (a + shift) % Layers;
        const int32_t *height = now.height + a * now.stride, *target = now.height + b * now.stride + step;
        const int32_t *excess = now.excess + a * now.sites, *room = residual(d, a, b);
        int32_t* sent = sent_ + a * now.stride;
        FASTMIX_INDEPENDENT
        for (int i = block_.rank(); i < now.sites; i += block_.size()) {
          const int most = lesser(excess[i], room[i]);
          sent[i] = (height[i] == target[i] + 1) & (most > 0) ? most : 0;
        }
      }
      block_.sync();
      FASTMIX_ROLLED
      for (int a = 0; a < Layers; ++a) {
        const int to = (a + shift) % Layers, from = (a + Layers - shift) % Layers;
        const int32_t *out = sent_ + a * now.stride, *in = sent_ + from * now.stride - step;
        int32_t *excess = excess_ + a * now.sites, *room = residual(d, a, to), *room_back = residual(d ^ 1, a, from);
        FASTMIX_INDEPENDENT
        for (int i = block_.rank(); i < now.sites; i += block_.size()) {
          excess[i] += in[i] - out[i];
          room[i] -= out[i];
          room_back[i] += in[i];
        }
      }
      exchange(sent_, next_sent_);  // others may still read what was sent in this phase
    }
  }

  FASTMIX_HD void push_between_layers() {
    for (int i = block_.rank(); i < sites_; i += block_.size()) {
      for (int a = 0; a + 1 < Layers; ++a)
        if (excess(a)[i] > 0 && height_[a * stride_ + i] == height_[(a + 1) * stride_ + i] + 1)
          lift(a, i, excess(a)[i]);
      for (int a = Layers - 1; a > 0; --a)
        if (excess(a)[i] > 0 && height_[a * stride_ + i] == height_[(a - 1) * stride_ + i] + 1)
          lift(a - 1, i, -lesser(excess(a)[i], lifted_[(a - 1) * sites_ + i]));
    }
  }

  FASTMIX_HD void lift(int a, int i, int amount) {
    excess(a)[i] -= amount;
    excess(a + 1)[i] += amount;
    lifted_[a * sites_ + i] += amount;
  }

  FASTMIX_HD void exchange(int32_t*& a, int32_t*& b) {
    int32_t* const kept = a;
    a = b, b = kept;
  }

  const Block& block_;
  int sites_, width_, stride_;
  int32_t *excess_, *residual_, *lifted_, *height_, *next_height_, *sent_, *next_sent_;
};

// The costs of one sample, and its labels.
struct CutSites {
  int width, count, labels;
  const int32_t* unaries;
  const int32_t *weight_y, *weight_x;  // to the site below, to the right; 0 where there is none
  int32_t* label;

  FASTMIX_HD int64_t unary(int i, int label) const { return unaries[i * labels + label]; }

  // f(direction, neighbour, weight) for the four neighbours of a site; those that do not exist have weight 0.
  template <class F>
  FASTMIX_HD void for_edges(int i, F f) const {
    f(0, i + width, weight_y[i]);
    f(1, i - width, weight_y[i - width]);
    f(2, i + 1, weight_x[i]);
    f(3, i - 1, weight_x[i - 1]);
  }
};

template <class Block>
class GridCut {
 public:
  // int32 values of memory that one sample takes; `layers` copies of the grid, 1 for binary cuts.
  static FASTMIX_HD int64_t memory(int64_t height, int64_t width, int layers) {
    const int64_t sites = height * width, own = sites + 3 * (sites + 2 * width);
    if (layers == 1) return own + CutFlow<Block, 1>::memory(sites, width);
    return own + (layers == 2 ? CutFlow<Block, 2>::memory(sites, width) : CutFlow<Block, 3>::memory(sites, width));
  }

  FASTMIX_HD GridCut(const Block& block, const Cut& cut, int64_t sample, int32_t* memory) : block_(block) {
    const int height = static_cast<int>(cut.height), width = static_cast<int>(cut.width), count = height * width;
    memory_ = {memory, count, width};
    int32_t *label = memory_.with_margin(), *weight_y = memory_.with_margin(), *weight_x = memory_.with_margin();
    const int32_t* down = cut.weight_y + sample * (count - width);
    const int32_t* right = cut.weight_x + sample * (count - height);
    for (int i = block_.rank() - width; i < count + width; i += block_.size()) {
      const bool inside = i >= 0 && i < count;
      const int y = inside ? i / width : 0, x = i - y * width;
      label[i] = 0;
      weight_y[i] = inside && i + width < count ? clamped(down[i], 0, kCutMaxWeight) : 0;
      weight_x[i] = inside && x + 1 < width ? clamped(right[i - y], 0, kCutMaxWeight) : 0;
    }
    sites_ = {width, count, cut.labels, cut.unary + sample * count * cut.labels, weight_y, weight_x, label};
    block_.sync();
  }

  // Whether binary cuts find the minimum: no label of a site costs more than the mean of the labels next to it.
  FASTMIX_HD bool convex() const {
    const CutSites s = sites_;
    int dents = 0;
    for (int i = block_.rank(); i < s.count; i += block_.size())
      for (int l = 1; l + 1 < s.labels; ++l) dents |= s.unary(i, l - 1) + s.unary(i, l + 1) < 2 * s.unary(i, l);
    return !block_.any(dents);
  }

  // From all labels 0, again and again raises by 1 the smallest set of sites that lowers the energy most.
  FASTMIX_HD void raise_labels() {
    const CutSites s = sites_;
    const int scale = energy_scale();
    int32_t* cost = memory_.plain();
    CutFlow<Block, 1> flow(block_, s.width, memory_);
    const CutArcs arcs = flow.arcs();
    FASTMIX_INDEPENDENT
    for (int i = block_.rank(); i < s.count; i += block_.size()) {
      cost[i] = arcs.excess[i] = 0;
      s.for_edges(i, [&](int d, int, int weight) { arcs.residual[d][i] = weight; });
    }
    for (int round = 1; round < s.labels; ++round) {
      FASTMIX_INDEPENDENT
      for (int i = block_.rank(); i < s.count; i += block_.size()) {
        int weights = 0, edges = 0;
        s.for_edges(i, [&](int, int j, int weight) {
          weights += weight;
          edges += 2 * weight * (s.label[i] - s.label[j]);
        });
        const int64_t raise = scale * (s.unary(i, s.label[i] + 1) - s.unary(i, s.label[i])) + edges;
        // What flows already is a flow for the new costs, too: only the terminals' part has changed.
        const int before = cost[i], now = clamped(raise, -weights - 1, weights);
        cost[i] = now;
        arcs.excess[i] += now - before;
      }
      flow.maximize();
      int raised = 0;
      for (int i = block_.rank(); i < s.count; i += block_.size()) {
        const int raise = flow.reaches_sink(0, i);
        s.label[i] += raise;
        raised |= raise;
      }
      if (!block_.any(raised)) return;
    }
  }

  // All labels in one cut (Ishikawa, 2003): node (a, i) is on the sink's side where the label of i is above a.
  template <int Layers>
  FASTMIX_HD void cut_layers() {
    const CutSites s = sites_;
    CutFlow<Block, Layers> flow(block_, s.width, memory_);
    for (int i = block_.rank(); i < s.count; i += block_.size()) {
      int weights = 0;
      s.for_edges(i, [&](int d, int, int weight) {
        weights += weight;
        FASTMIX_ROLLED
        for (int a = 0; a < Layers; ++a) {
          FASTMIX_ROLLED
          for (int b = 0; b < Layers; ++b) flow.residual(d, a, b)[i] = weight;
        }
      });
      int64_t lowest = s.unary(i, 0);
      for (int l = 1; l <= Layers; ++l) lowest = s.unary(i, l) < lowest ? s.unary(i, l) : lowest;
      // A label that costs more than all edges of its site together is as good as any that is worse still.
      const auto own = [&](int l) {
        return clamped(Layers * Layers * (s.unary(i, l) - lowest), 0, Layers * Layers * weights + 1);
      };
      FASTMIX_ROLLED
      for (int a = 0; a < Layers; ++a) flow.excess(a)[i] = own(a + 1) - own(a) + (2 * a + 1 - Layers) * weights;
    }
    flow.maximize();
    for (int i = block_.rank(); i < s.count; i += block_.size())
      for (int a = 0; a < Layers; ++a) s.label[i] += flow.reaches_sink(a, i);
    block_.sync();
  }

  // Alpha-beta swaps (Boykov, Veksler and Zabih, 2001) from all labels 0, in the order of gco-v3.0 and with its rounded
  // label distances.
  FASTMIX_HD void swap_labels() {
    CutFlow<Block, 1> flow(block_, sites_.width, memory_);
    const int labels = sites_.labels, pairs = labels * (labels - 1) / 2;
    int unchanged = -1;  // swaps in a row that left all labels as they were, after one that did not
    int64_t before, now = swap_energy();
    do {
      before = now;
      for (int low = 0; low + 1 < labels; ++low)
        for (int high = labels - 1; high > low; --high) {
          unchanged = swap(flow, low, high) ? 0 : unchanged + 1;
          if (unchanged == pairs - 1) return;  // the rounds that gco goes on for would change nothing either
        }
      now = swap_energy();
    } while (now < before);
  }

  FASTMIX_HD int64_t energy() const {
    return energy(energy_scale(), [](int distance) { return distance * distance; });
  }

  FASTMIX_HD int label(int i) const { return sites_.label[i]; }

 private:
  FASTMIX_HD int energy_scale() const { return (sites_.labels - 1) * (sites_.labels - 1); }

  // gco's costs, divided by what all of them have in common.
  FASTMIX_HD int swap_scale() const { return sites_.labels == 4 ? 100 : energy_scale(); }
  static FASTMIX_HD int swap_distance(int labels, int distance) {
    const int square = distance * distance;
    return labels == 4 ? 11 * square + (square == 9) : square;
  }
  FASTMIX_HD int64_t swap_energy() const {
    const int labels = sites_.labels;
    return energy(swap_scale(), [labels](int distance) { return swap_distance(labels, distance); });
  }

  template <class F>
  FASTMIX_HD int64_t energy(int scale, F distance) const {
    const CutSites s = sites_;
    int64_t total = 0;
    for (int i = block_.rank(); i < s.count; i += block_.size()) {
      const int label = s.label[i];
      total += scale * s.unary(i, label);
      total += static_cast<int64_t>(s.weight_y[i]) * distance(label - s.label[i + s.width]);
      total += static_cast<int64_t>(s.weight_x[i]) * distance(label - s.label[i + 1]);
    }
    return block_.sum(total);
  }

  // Shares the sites labelled `low` or `high` out between these two at the least cost; whether a label has changed.
  FASTMIX_HD bool swap(CutFlow<Block, 1>& flow, int low, int high) {
    const CutSites s = sites_;
    const CutArcs arcs = flow.arcs();
    const int scale = swap_scale(), between = swap_distance(s.labels, high - low);
    int anyone = 0;
    FASTMIX_INDEPENDENT
    for (int i = block_.rank(); i < s.count; i += block_.size()) {
      const int own = s.label[i];
      const bool free = (own == low) | (own == high);
      int capacities = 0, edges = 0;
      s.for_edges(i, [&](int d, int j, int weight) {
        const int other = s.label[j];
        const bool both = free & ((other == low) | (other == high));
        const int capacity = both ? weight * between : 0;
        const int raise = weight * (swap_distance(s.labels, high - other) - swap_distance(s.labels, low - other));
        arcs.residual[d][i] = capacity;
        capacities += capacity;
        edges += both ? 0 : raise;
      });
      const int64_t raise = scale * (s.unary(i, high) - s.unary(i, low)) + edges;
      const int limited = clamped(raise, -capacities - 1, capacities);
      arcs.excess[i] = free ? limited : 0;
      anyone |= free;
    }
    if (!block_.any(anyone)) return false;
    flow.maximize();
    int changed = 0;
    for (int i = block_.rank(); i < s.count; i += block_.size()) {
      const int own = s.label[i], label = flow.reaches_sink(0, i) ? high : low;
      const bool free = (own == low) | (own == high);
      changed |= free & (own != label);
      s.label[i] = free ? label : own;
    }
    return block_.any(changed);
  }

  const Block& block_;
  CutSites sites_;
  CutMemory memory_;
};

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
