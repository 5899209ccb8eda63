#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "index/best_scores.h"
#include "index/cells.h"
#include "index/operators.h"
#include "index/query.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

// Queries that read the centroids together.
constexpr int64_t kTogether = 4;
// Blocks whose scores are kept at once: half of the first-level cache.
constexpr int64_t kListed = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct alignas(64) Line {
  uint8_t bytes[64];
};

// One thread's memory.
struct Workspace {
  std::vector<Line> encoded;
  std::vector<float> cell_scores;    // [queries, cells rounded up to blocks]
  std::vector<float> spread_scores;  // of one query, with the cells' spreads
  std::vector<int32_t> every_block;  // 0, 1, 2 …
  std::vector<int32_t> list;         // of blocks to be scanned
  std::vector<uint64_t> cells;       // rank keys of cells
  std::vector<float> scores;
  std::vector<double> x;
  std::vector<Ranked> ranked;
  BestScores best;
};

class Search {
 public:
  Search(const CellIndex& index, const CellSearch& search, Isa isa, Workspace& workspace)
      : index_(index),
        search_(search),
        isa_(isa),
        w_(workspace),
        most_(std::max(search.k, search.rescore)) {}

  // Up to kTogether queries [count, depth]; done [count] is false where every score has to be
  // computed.
  void run(const float* x, int64_t count, float* scores, int64_t* ids, char* done) {
    const int64_t depth = index_.dense().depth;
    w_.encoded.resize(static_cast<size_t>(lines() * count));
    for (int64_t i = 0; i < count; ++i) {
      queries_[i] = encode(x + i * depth, depth, values(i), isa_);
      scales_[i] = queries_[i].scale;
    }
    score_cells(count);
    for (int64_t i = 0; i < count; ++i) {
      at_ = i;
      done[i] =
          query().finite && answer(x + i * depth, scores + i * search_.k, ids + i * search_.k);
    }
  }

 private:
  bool answer(const float* x, float* scores, int64_t* ids) {
    const int64_t depth = index_.dense().depth;
    add_spread();
    const int64_t probes = choose();
    // Products of scales may be flushed to zero, and dot products are as large as this.
    const float most_dot = 127.0f * 127.0f * static_cast<float>(depth) + 16;
    const float flushed = 2 * std::numeric_limits<float>::min() * most_dot;
    const float width = query().width(index_.error(), index_.norm()) + flushed;
    w_.best.start(most_, search_.k, 2 * width, isa_);
    for (int64_t i = 0; i < probes; ++i) list_cell(place_of(w_.cells[static_cast<size_t>(i)]));
    scan();
    if (search_.guard > 0) widen(probes);
    return rescore(x, scores, ids);
  }

  int64_t lines() const { return ceil_div(index_.steps() * kBlockDepth, sizeof(Line)); }
  uint8_t* values(int64_t query) const { return w_.encoded.data()[query * lines()].bytes; }
  const Query& query() const { return queries_[at_]; }
  EncodedQueries encoded() const { return {values(at_), 0, scales_ + at_, 1}; }
  float* cell_scores() const {
    return w_.cell_scores.data() + at_ * block_count(index_.cells()) * kBlockRows;
  }

  void score_cells(int64_t count) {
    const int64_t blocks = block_count(index_.cells());
    w_.cell_scores.resize(static_cast<size_t>(count * blocks * kBlockRows));
    while (std::ssize(w_.every_block) < blocks) {
      w_.every_block.push_back(static_cast<int32_t>(w_.every_block.size()));
    }
    const EncodedQueries together{values(0), lines() * static_cast<int64_t>(sizeof(Line)), scales_,
                                  count};
    cell_kernel(isa_, count)(index_.centroids(), w_.every_block.data(), blocks, together,
                             w_.cell_scores.data());
  }

  void add_spread() {
    if (search_.spread == 0) return;
    w_.spread_scores.assign(cell_scores(),
                            cell_scores() + block_count(index_.cells()) * kBlockRows);
    for (int64_t i = 0; i < index_.cells(); ++i) {
      w_.spread_scores[static_cast<size_t>(i)] += search_.spread * deviation(i);
    }
  }

  // How far the scores of a cell's rows spread for this query.
  float deviation(int64_t cell) const {
    const double weights = static_cast<double>(query().norm) * index_.spread()[cell];
    const double biases = index_.bias_spread()[cell];
    return static_cast<float>(std::min(std::sqrt(weights * weights + biases * biases),
                                       static_cast<double>(std::numeric_limits<float>::max())));
  }

  // What cells are ordered by.
  const float* promises() const {
    return search_.spread == 0 ? cell_scores() : w_.spread_scores.data();
  }

  // Sorts the best cells to the front of w_.cells; returns how many are to be searched: `probes`,
  // or as many as hold k rows.
  int64_t choose() {
    int64_t probes = std::min(search_.probes, index_.cells());
    for (;;) {
      w_.best.start(probes, probes, 0, isa_);
      w_.best.add(promises(), w_.every_block.data(), block_count(index_.cells()));
      w_.cells = w_.best.finish();
      std::sort(w_.cells.begin(), w_.cells.end(), std::greater<>());
      int64_t rows = 0;
      for (uint64_t key : w_.cells) {
        if (place_of(key) < index_.cells()) rows += index_.size(place_of(key));
      }
      if (rows >= search_.k || probes == index_.cells()) break;
      probes = std::min(2 * probes, index_.cells());
    }
    w_.list.clear();
    return probes;
  }

  void list_cell(int64_t cell) {
    for (int32_t b = index_.first_block(cell); b < index_.first_block(cell + 1); ++b) {
      w_.list.push_back(b);
    }
  }

  void scan() {
    const CellKernel kernel = cell_kernel(isa_, 1);
    w_.scores.resize(kListed * kBlockRows);
    for (int64_t first = 0; first < std::ssize(w_.list); first += kListed) {
      const int64_t listed = std::min(kListed, std::ssize(w_.list) - first);
      kernel(index_.rows(), w_.list.data() + first, listed, encoded(), w_.scores.data());
      w_.best.add(w_.scores.data(), w_.list.data() + first, listed);
    }
    w_.list.clear();
  }

  bool rescore(const float* x, float* scores, int64_t* ids) {
    const Dense& dense = index_.dense();
    w_.x.assign(x, x + dense.depth);
    w_.ranked.clear();
    for (uint64_t key : w_.best.finish()) {
      const int32_t row = index_.id(place_of(key));
      if (row < 0) continue;
      prefetch_row(dense, row);
      w_.ranked.push_back({0, row});
    }
    if (std::ssize(w_.ranked) < search_.k) return false;
    write_best(dense, w_.x.data(), w_.ranked, search_.k, scores, ids, isa_);
    return true;
  }

  // Searches every further cell whose bound reaches the k-th best score, the greatest bound first.
  void widen(int64_t probes) {
    for (int64_t i = 0; i < probes; ++i) {
      cell_scores()[place_of(w_.cells[static_cast<size_t>(i)])] = -kInfinity;
    }
    float least = w_.best.kth_best();
    w_.cells.clear();
    for (int64_t cell = 0; cell < index_.cells(); ++cell) {
      const float bound = cell_scores()[cell] + search_.guard * deviation(cell);
      if (bound >= least) w_.cells.push_back(rank_key(bound, static_cast<uint32_t>(cell)));
    }
    std::sort(w_.cells.begin(), w_.cells.end(), std::greater<>());
    for (uint64_t key : w_.cells) {
      if (score_of(key) < least) break;
      list_cell(place_of(key));
      scan();
      least = w_.best.kth_best();
    }
  }

  const CellIndex& index_;
  const CellSearch& search_;
  const Isa isa_;
  Workspace& w_;
  const int64_t most_;
  Query queries_[kTogether];
  float scales_[kTogether];
  int64_t at_ = 0;  // the query that is answered
};

}  // namespace

void cells_top_k(const CellIndex& index, const CellSearch& search, const float* hidden,
                 int64_t count, float* scores, int64_t* ids, const Executor& executor, Isa isa) {
  const Dense& dense = index.dense();
  if (search.k < 1 || search.k > dense.rows) {
    throw std::invalid_argument("k is " + std::to_string(search.k) + ", expected 1 to " +
                                std::to_string(dense.rows));
  }
  std::vector<char> done(static_cast<size_t>(count));
  parallel_for(executor, count, 4, [&](int64_t begin, int64_t end) {
    thread_local Workspace workspace;
    Search some(index, search, isa, workspace);
    for (int64_t i = begin; i < end; i += kTogether) {
      some.run(hidden + i * dense.depth, std::min(kTogether, end - i), scores + i * search.k,
               ids + i * search.k, done.data() + i);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (done[static_cast<size_t>(i)]) continue;
    linear_top_k(Head(dense), hidden + i * dense.depth, 1, search.k, scores + i * search.k,
                 ids + i * search.k, executor, isa);
  }
}

}  // namespace qcompile
