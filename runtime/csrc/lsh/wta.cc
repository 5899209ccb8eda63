#include "lsh/family.h"

namespace qcompile {

Wta::Wta(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions), bins_(Bins::independent(dimension, functions, seed)) {}

void Wta::codes(const float* columns, int64_t begin, int64_t end, int32_t* codes, Isa isa) const {
  bins_.winners(columns, begin, end, codes, isa);
}

void Wta::rank(const float* columns, const RankedCodes& ranked, Isa isa) const {
  bins_.rank(columns, ranked, isa);
}

}  // namespace qcompile
