#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/lanes.h"
#include "index/hashed_rows.h"
#include "index/operators.h"
#include "index/rescore.h"
#include "lsh/lookups.h"
#include "lsh/multi_probe.h"

namespace qcompile {
namespace {

// Buckets are all over memory: the next ones are asked for while one is read.
constexpr size_t kPlaceAhead = 8, kRowsAhead = 4;

struct Bucket {
  int32_t table;
  uint32_t key;
};

// One thread's memory.
struct Workspace {
  RowHasher::Workspace hashing;
  std::vector<int32_t> codes, seconds;  // [functions, kLanes]
  std::vector<float> leads;
  ProbeSequence sequence;
  std::vector<std::vector<Bucket>> rounds;  // the first bucket of each table, the second …
  std::vector<Bucket> buckets;
  CollisionCounts collisions;
  std::vector<uint32_t> rows;
  std::vector<double> x;
  std::vector<Ranked> ranked;
};

class Search {
 public:
  Search(const HashedRows& index, const HashedSearch& search, Isa isa, Workspace& workspace)
      : index_(index), search_(search), isa_(isa), w_(workspace) {
    const auto size = static_cast<size_t>(index.functions() * kLanes);
    w_.codes.resize(size);
    w_.seconds.resize(size);
    w_.leads.resize(size);
    const auto rows = static_cast<size_t>(index.head().rows());
    if (w_.collisions.counts.size() < rows) w_.collisions.counts.resize(rows);
  }

  // Up to kLanes queries. done [count] is false where every score has to be computed.
  void run(const float* hidden, int64_t count, float* scores, int64_t* ids, char* done) {
    const Dense& dense = index_.head().dense();
    int64_t at[kLanes];
    for (int64_t i = 0; i < count; ++i) at[i] = i;
    index_.hasher().rank({hidden, Storage::kFloat32, dense.depth}, at, count,
                         {w_.codes.data(), w_.seconds.data(), w_.leads.data()}, w_.hashing, isa_);
    for (int64_t i = 0; i < count; ++i) {
      const float* x = hidden + i * dense.depth;
      done[i] = std::all_of(x, x + dense.depth, [](float v) { return std::isfinite(v); }) &&
                answer(x, i, scores + i * search_.k, ids + i * search_.k);
    }
  }

 private:
  bool answer(const float* x, int64_t lane, float* scores, int64_t* ids) {
    const Dense& dense = index_.head().dense();
    list_buckets(lane);
    count_collisions();
    w_.rows.clear();
    w_.collisions.take_most_frequent(
        index_.tables(), static_cast<size_t>(std::max(search_.k, search_.rescore)), w_.rows);
    if (std::ssize(w_.rows) < search_.k) return false;
    w_.ranked.clear();
    for (uint32_t row : w_.rows) {
      prefetch_row(dense, row);
      w_.ranked.push_back({0, static_cast<int32_t>(row)});
    }
    w_.x.assign(x, x + dense.depth);
    write_best(dense, w_.x.data(), w_.ranked, search_.k, scores, ids, isa_);
    return true;
  }

  void list_buckets(int64_t lane) {
    const RowHasher& hasher = index_.hasher();
    const auto probes = static_cast<size_t>(search_.probes);
    w_.rounds.resize(std::max(w_.rounds.size(), probes));
    for (std::vector<Bucket>& round : w_.rounds) round.clear();
    for (int64_t table = 0; table < index_.tables(); ++table) {
      const int64_t first = table * index_.hashes() * kLanes + lane;
      w_.sequence.start({w_.codes.data() + first, w_.seconds.data() + first,
                         w_.leads.data() + first, kLanes, index_.hashes(), hasher.code_bits()});
      uint64_t codes;
      for (size_t round = 0; round < probes && w_.sequence.next(&codes); ++round) {
        const Bucket bucket{static_cast<int32_t>(table), hasher.key(codes)};
        if (!probed(bucket, round)) w_.rounds[round].push_back(bucket);
      }
    }
    w_.buckets.clear();
    for (const std::vector<Bucket>& round : w_.rounds) {
      w_.buckets.insert(w_.buckets.end(), round.begin(), round.end());
    }
  }

  // Different codes may share a bucket only where keys are folded.
  bool probed(const Bucket& bucket, size_t rounds) const {
    if (!index_.hasher().folds()) return false;
    return std::any_of(w_.rounds.begin(), w_.rounds.begin() + static_cast<std::ptrdiff_t>(rounds),
                       [&](const std::vector<Bucket>& round) {
                         return !round.empty() && round.back().table == bucket.table &&
                                round.back().key == bucket.key;
                       });
  }

  void count_collisions() {
    const std::vector<Bucket>& buckets = w_.buckets;
    CollisionCounts& collisions = w_.collisions;
    collisions.clear();
    for (size_t i = 0; i < buckets.size(); ++i) {
      if (i + kPlaceAhead < buckets.size()) {
        index_.prefetch_place(buckets[i + kPlaceAhead].table, buckets[i + kPlaceAhead].key);
      }
      if (i + kRowsAhead < buckets.size()) {
        index_.prefetch_rows(buckets[i + kRowsAhead].table, buckets[i + kRowsAhead].key);
      }
      for (int32_t row : index_.bucket(buckets[i].table, buckets[i].key)) {
        uint16_t& times = collisions.counts[static_cast<size_t>(row)];
        if (times == 0) collisions.seen.push_back(static_cast<uint32_t>(row));
        ++times;
      }
    }
  }

  const HashedRows& index_;
  const HashedSearch& search_;
  const Isa isa_;
  Workspace& w_;
};

}  // namespace

void hashed_top_k(const HashedRows& index, const HashedSearch& search, const float* hidden,
                  int64_t count, float* scores, int64_t* ids, const Executor& executor, Isa isa) {
  const Head& head = index.head();
  if (search.k < 1 || search.k > head.rows()) {
    throw std::invalid_argument("k is " + std::to_string(search.k) + ", expected 1 to " +
                                std::to_string(head.rows()));
  }
  if (search.probes < 1 || search.probes > HashedSearch::kMostProbes) {
    throw std::invalid_argument("probes is " + std::to_string(search.probes) + ", expected 1 to " +
                                std::to_string(HashedSearch::kMostProbes));
  }
  std::vector<char> done(static_cast<size_t>(count));
  parallel_for(executor, count, 4, [&](int64_t begin, int64_t end) {
    thread_local Workspace workspace;
    Search one(index, search, isa, workspace);
    for (int64_t first = begin; first < end; first += kLanes) {
      one.run(hidden + first * head.depth(), std::min<int64_t>(kLanes, end - first),
              scores + first * search.k, ids + first * search.k, done.data() + first);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (done[static_cast<size_t>(i)]) continue;
    linear_top_k(head, hidden + i * head.depth(), 1, search.k, scores + i * search.k,
                 ids + i * search.k, executor, isa);
  }
}

}  // namespace qcompile
