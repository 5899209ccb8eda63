// Queries whose scores lie so close together that a quantised scan would exclude too little.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "index/head.h"

namespace qcompile {

// Rows of a layer below this share of the best one are too improbable to be told apart: the 1e-7 of
// float32, and in large layers less, since there are more of them. The logarithm of it.
float log_least_share(int64_t rows);

// Whether each of the queries, hidden [count, depth], kDotQueries at most, looks flat: of some of
// the rows, the same for every query, one in `share` would have to be computed in fp32. The best of
// those rows may be far from the best of all, so that a query may look flat and not be: that costs
// time alone. False for small layers, and for queries that are not finite.
std::vector<char> find_flat(const Head& head, const float* hidden, int64_t count, int64_t share,
                            Isa isa);

}  // namespace qcompile
