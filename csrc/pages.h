// Memory that is about to be written for the first time.
#pragma once

#include <cstdint>

namespace fastmix {

// Asks for huge pages under a large result. Allocators map results of this size afresh each time: faulting them in by
// small pages takes several times as long as filling them. Memory that is in use already is left as it is.
void expect_result(void* begin, int64_t bytes);

}  // namespace fastmix
