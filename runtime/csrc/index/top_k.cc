#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <stdexcept>
#include <string>

#include "index/operators.h"
#include "index/rescore.h"
#include "index/scan.h"

namespace qcompile {
namespace {

// Queries that share one pass over the rows.
constexpr int64_t kGroup = 64;
// Tiles that a thread takes at a time.
constexpr int64_t kTake = 4;

struct Ranked {
  float score;
  int32_t row;
};

bool before(const Ranked& a, const Ranked& b) {
  if (std::isnan(a.score) != std::isnan(b.score)) return std::isnan(a.score);
  if (a.score != b.score && !std::isnan(a.score)) return a.score > b.score;
  return a.row < b.row;
}

// Buffers of one thread that scans.
struct Scanner {
  std::vector<Collector> collectors;
  std::vector<int32_t> dots;
};

// Buffers of one thread that rescores.
struct Rescorer {
  std::vector<Candidate> candidates;
  std::vector<double> x;
  std::vector<Ranked> ranked;
};

// Buffers of one call, kept by the calling thread.
struct Workspace {
  QueryGroup group;
  std::deque<Threshold> thresholds;
  std::vector<Scanner> scanners;
  std::vector<char> done;  // for each query, whether the scan answered it
};

class TopK {
 public:
  TopK(const Head& head, int64_t k, const Executor& executor, Isa isa, Workspace& workspace)
      : head_(head), k_(k), executor_(executor), isa_(isa), workspace_(workspace) {}

  void run(const float* hidden, int64_t count, float* scores, int64_t* ids) {
    const bool scan = head_.packed() && 8 * k_ <= head_.rows();
    if (scan) collect(hidden, count);
    std::vector<char>& done = workspace_.done;
    done.assign(static_cast<size_t>(count), 0);
    if (scan) {
      executor_.run(count, [&](int64_t i) {
        done[static_cast<size_t>(i)] = rescore(i, hidden, scores + i * k_, ids + i * k_);
      });
    }
    for (int64_t i = 0; i < count; ++i) {
      if (done[static_cast<size_t>(i)]) continue;
      all_rows(hidden + i * head_.depth(), scores + i * k_, ids + i * k_);
    }
  }

 private:
  void collect(const float* hidden, int64_t count) {
    Workspace& w = workspace_;
    w.group.encode(head_, hidden, count, isa_);
    w.thresholds.resize(static_cast<size_t>(count));
    for (Threshold& threshold : w.thresholds) threshold.reset();
    w.scanners.resize(static_cast<size_t>(executor_.threads()));
    for (Scanner& scanner : w.scanners) {
      scanner.collectors.resize(static_cast<size_t>(count));
      for (size_t i = 0; i < scanner.collectors.size(); ++i) {
        scanner.collectors[i].start(k_, &w.thresholds[i]);
      }
    }
    // Each thread takes the next rows that nobody has taken, so that one thread alone keeps one
    // list, whatever number of threads the host promised.
    std::atomic<int64_t> next{0};
    const int64_t tiles = tile_count(head_);
    executor_.run(executor_.threads(), [&](int64_t slot) {
      for (int64_t tile = next.fetch_add(kTake); tile < tiles; tile = next.fetch_add(kTake)) {
        for (int64_t t = tile; t < std::min(tile + kTake, tiles); ++t) {
          scan_tile(t, w.scanners[static_cast<size_t>(slot)]);
        }
      }
    });
  }

  void scan_tile(int64_t index, Scanner& scanner) {
    const QueryGroup& group = workspace_.group;
    const TileRows tile(head_, index);
    scanner.dots.resize(kTileQueries * kTileRows);
    for (int64_t q = 0; q < group.size(); q += kTileQueries) {
      const int64_t together = std::min(kTileQueries, group.size() - q);
      tile_dots(head_, tile, group, q, together, scanner.dots.data(), isa_);
      for (int64_t i = 0; i < together; ++i) {
        Collector& collector = scanner.collectors[static_cast<size_t>(q + i)];
        if (!group[q + i].finite || collector.overflowed()) continue;
        collect_tile(head_, tile, scanner.dots.data() + i * tile.blocks * kBlockRows, group[q + i],
                     collector, isa_);
        collector.tidy();
      }
    }
  }

  // False if every score has to be computed.
  bool rescore(int64_t query, const float* hidden, float* scores, int64_t* ids) {
    if (!workspace_.group[query].finite) return false;
    thread_local Rescorer buffers;
    buffers.candidates.clear();
    for (const Scanner& scanner : workspace_.scanners) {
      const Collector& collector = scanner.collectors[static_cast<size_t>(query)];
      if (collector.overflowed()) return false;
      buffers.candidates.insert(buffers.candidates.end(), collector.candidates().begin(),
                                collector.candidates().end());
    }
    if (static_cast<int64_t>(buffers.candidates.size()) < k_) return false;
    prune(buffers.candidates, k_);
    const float* x = hidden + query * head_.depth();
    buffers.x.assign(x, x + head_.depth());
    buffers.ranked.clear();
    const ScoreKernel score = score_kernel(isa_);
    for (const Candidate& candidate : buffers.candidates) {
      buffers.ranked.push_back(
          {score(head_.dense(), candidate.row, buffers.x.data()), candidate.row});
    }
    emit(buffers.ranked, scores, ids);
    return true;
  }

  void all_rows(const float* hidden, float* scores, int64_t* ids) {
    thread_local Rescorer buffers;
    buffers.x.assign(hidden, hidden + head_.depth());
    buffers.ranked.resize(static_cast<size_t>(head_.rows()));
    const ScoreKernel score = score_kernel(isa_);
    // References: a thread_local that is named in the loop's body would be the other thread's.
    const double* x = buffers.x.data();
    Ranked* ranked = buffers.ranked.data();
    parallel_for(executor_, head_.rows(), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        ranked[row] = {score(head_.dense(), row, x), static_cast<int32_t>(row)};
      }
    });
    emit(buffers.ranked, scores, ids);
  }

  void emit(std::vector<Ranked>& ranked, float* scores, int64_t* ids) {
    std::partial_sort(ranked.begin(), ranked.begin() + k_, ranked.end(), before);
    for (int64_t i = 0; i < k_; ++i) {
      scores[i] = ranked[static_cast<size_t>(i)].score;
      ids[i] = ranked[static_cast<size_t>(i)].row;
    }
  }

  const Head& head_;
  const int64_t k_;
  const Executor& executor_;
  const Isa isa_;
  Workspace& workspace_;
};

}  // namespace

void linear_top_k(const Head& head, const float* hidden, int64_t count, int64_t k, float* scores,
                  int64_t* ids, const Executor& executor, Isa isa) {
  if (k < 1 || k > head.rows()) {
    throw std::invalid_argument("k is " + std::to_string(k) + ", expected 1 to " +
                                std::to_string(head.rows()));
  }
  thread_local Workspace workspace;
  for (int64_t first = 0; first < count; first += kGroup) {
    const int64_t group = std::min(kGroup, count - first);
    const SerialExecutor serial;
    const bool small = head.rows() * head.depth() < kParallelWork / group;
    const Executor& used = small ? static_cast<const Executor&>(serial) : executor;
    TopK(head, k, used, isa, workspace)
        .run(hidden + first * head.depth(), group, scores + first * k, ids + first * k);
  }
}

}  // namespace qcompile
