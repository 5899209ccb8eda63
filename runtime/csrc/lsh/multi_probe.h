// The buckets of one hash table in which what a query looks for is likely to be.
#pragma once

#include <cstdint>
#include <vector>

namespace qcompile {

// One table's codes of one query, [hashes] each, `stride` apart; see RankedCodes.
struct QueryCodes {
  const int32_t* codes;
  const int32_t* seconds;
  const float* leads;
  int64_t stride;
  int64_t hashes;
  int code_bits;
};

// Query-directed probing (Lv, Josephson, Wang, Charikar and Li, "Multi-probe LSH", VLDB 2007,
// sections 4.2 to 4.4): the query's own bucket first, then those that a set of codes, exchanged for
// the ones that come second, leads to. Sets come by the sum of the squares of their codes' leads,
// the least first. Of equal sums that set comes first whose binary number is smaller, bit i for the
// code of the i-th smallest lead, of equal leads that of the first code.
class ProbeSequence {
 public:
  void start(const QueryCodes& query);
  // Writes a table's packed codes, the first in the highest bits. False at the end.
  bool next(uint64_t* codes);

 private:
  struct Set {
    double cost;
    uint64_t members;
  };
  static bool dearer(const Set& a, const Set& b);
  void push(uint64_t members);

  QueryCodes query_;
  bool first_ = true, sorted_ = false;
  std::vector<int32_t> order_;  // of the codes, by lead
  std::vector<double> costs_;   // in that order
  std::vector<Set> heap_;
};

}  // namespace qcompile
