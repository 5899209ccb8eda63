#include "index/scan.h"

#include <algorithm>

namespace qcompile {

void QueryGroup::encode(const Head& head, const float* hidden, int64_t count, Isa isa) {
  steps_ = head.steps();
  lines_ = ceil_div(steps_ * kBlockDepth, sizeof(Line));
  const auto size = static_cast<size_t>(count);
  queries_.resize(size);
  sums_.resize(size);
  scales_.resize(size);
  // Registers hold whole groups of queries; what the last of them holds besides is not looked at.
  values_.resize(static_cast<size_t>(ceil_div(count, kDotGroup) * kDotGroup * lines_));
  for (int64_t i = 0; i < count; ++i) {
    Line* lines = values_.data() + i * lines_;
    auto* bytes = reinterpret_cast<uint8_t*>(lines);
    const Query query = qcompile::encode(hidden + i * head.depth(), head.depth(), bytes, isa);
    for (int64_t j = 0; j < head.depth(); ++j) bytes[j] ^= 0x80;
    std::fill(bytes + head.depth(), bytes + lines_ * sizeof(Line), uint8_t{0});
    queries_[static_cast<size_t>(i)] = query;
    sums_[static_cast<size_t>(i)] = query.sum;
    scales_[static_cast<size_t>(i)] = query.scale;
  }
}

DotQueries QueryGroup::dots(int64_t first, int64_t count) const {
  return {values_[static_cast<size_t>(first * lines_)].bytes, lines_ * int64_t{sizeof(Line)}, count,
          steps_, sums_.data() + first};
}

}  // namespace qcompile
