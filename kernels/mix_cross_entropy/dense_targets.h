// Tiles of dense targets, mixed or not.
#pragma once

#include "rows.h"

namespace fastmix {
namespace FASTMIX_ISA {
namespace {

// Targets of row n from class c on in the accumulation type; readable up to a whole group of lanes. `tile` may be used.
template <class Acc>
const Acc* dense_tile(const Loss& l, const void* targets, int64_t n, int64_t c, int64_t count, Acc* tile) {
  const Acc* t = load(l.target_type, targets, n * l.classes + c, count, tile);
  if (count % kLanes == 0) return t;
  if (t != tile) std::copy(t, t + count, tile);
  std::fill(tile + count, tile + (count + kLanes - 1) / kLanes * kLanes, Acc(0));
  return tile;
}

}  // namespace
}  // namespace FASTMIX_ISA
}  // namespace fastmix
