#include "lsh/family.h"

namespace qcompile {

Dwta::Dwta(int64_t dimension, int64_t functions, uint64_t seed)
    : HashFamily(dimension, functions),
      bins_(Bins::consecutive(dimension, functions, seed)),
      densifier_(seed) {}

void Dwta::codes(const float* columns, int64_t begin, int64_t end, int32_t* codes, Isa isa) const {
  // Weights are hardly ever zero, and then no bin is empty.
  if (any_zero(columns, dimension(), isa)) {
    densifier_.winners(bins_, columns, begin, end, codes, isa);
  } else {
    bins_.winners(columns, begin, end, codes, isa);
  }
}

void Dwta::rank(const float* columns, const RankedCodes& ranked, Isa isa) const {
  densifier_.rank(bins_, columns, ranked, isa);
}

}  // namespace qcompile
