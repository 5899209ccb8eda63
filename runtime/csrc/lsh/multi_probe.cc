#include "lsh/multi_probe.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace qcompile {

void ProbeSequence::start(const QueryCodes& query) {
  query_ = query;
  first_ = true;
  sorted_ = false;
  heap_.clear();
}

bool ProbeSequence::dearer(const Set& a, const Set& b) {
  return a.cost != b.cost ? a.cost > b.cost : a.members > b.members;
}

void ProbeSequence::push(uint64_t members) {
  double cost = 0;
  for (uint64_t rest = members; rest != 0; rest &= rest - 1) {
    cost += costs_[static_cast<size_t>(std::countr_zero(rest))];
  }
  heap_.push_back({cost, members});
  std::ranges::push_heap(heap_, dearer);
}

bool ProbeSequence::next(uint64_t* codes) {
  uint64_t members = 0;
  if (!first_) {
    if (!sorted_) {
      sorted_ = true;
      const auto lead = [&](int32_t h) { return query_.leads[h * query_.stride]; };
      order_.resize(static_cast<size_t>(query_.hashes));
      std::iota(order_.begin(), order_.end(), 0);
      std::ranges::stable_sort(order_, [&](int32_t a, int32_t b) { return lead(a) < lead(b); });
      costs_.clear();
      for (int32_t h : order_) costs_.push_back(static_cast<double>(lead(h)) * lead(h));
      push(1);
    }
    if (heap_.empty()) return false;
    std::ranges::pop_heap(heap_, dearer);
    members = heap_.back().members;
    heap_.pop_back();
    // Its dearest member exchanged for the next one, and the next one taken in besides: each set
    // comes from one other, that costs no more.
    const int last = std::bit_width(members) - 1;
    if (last + 1 < query_.hashes) {
      const uint64_t following = uint64_t{2} << last;
      push((members ^ (uint64_t{1} << last)) | following);
      push(members | following);
    }
  }
  first_ = false;
  uint64_t exchanged = 0;  // one bit for each code
  for (uint64_t rest = members; rest != 0; rest &= rest - 1) {
    exchanged |= uint64_t{1} << order_[static_cast<size_t>(std::countr_zero(rest))];
  }
  *codes = 0;
  for (int64_t h = 0; h < query_.hashes; ++h) {
    const int32_t* from = exchanged >> h & 1 ? query_.seconds : query_.codes;
    *codes = *codes << query_.code_bits | static_cast<uint32_t>(from[h * query_.stride]);
  }
  return true;
}

}  // namespace qcompile
