#include <algorithm>
#include <atomic>
#include <bit>
#include <deque>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "index/collector.h"
#include "index/operators.h"
#include "index/rescore.h"
#include "index/scan.h"

namespace qcompile {
namespace {

// Tiles that a thread takes at a time, between which thresholds rise: so many, or fewer where that
// leaves threads without.
constexpr int64_t kMostStripTiles = 64, kLeastStripTiles = 16;
constexpr int64_t kStripsOfThread = 8;
// Bytes of rows that are put together at a time: memory is read fast in long runs, and a
// second-level cache holds them.
constexpr int64_t kMergedBytes = 1 << 17;
// Queries that wait for memory rather than for multiplications, so that rough rows are worth it.
constexpr int64_t kRoughQueries = 3;
// What is pending is looked at after each so many tiles, if it is more than one row in kFewShare.
constexpr int64_t kJudgedTiles = 64;
constexpr int64_t kFewShare = 24;
// Rough rows do not pay if more than one row in so many needs a second look. That is not known
// before the threshold has risen.
constexpr int64_t kRoughShare = 10;
constexpr int64_t kTrialTiles = 512;
// If more rows than this are close to the k-th, computing all scores is cheaper.
constexpr int64_t kMostPending = 1 << 14;
constexpr int64_t kPendingShare = 16;

// Buffers of one thread that scans.
struct Scanner {
  std::vector<Collector> collectors;
  std::vector<float> thresholds, bars, widths;  // of each query
  std::vector<DotLine> dots;
  std::vector<RowLine> rows;           // merged, of some tiles
  std::vector<std::vector<double>> x;  // of each query; empty if it has not been needed
  int64_t seen = 0;                    // tiles
  int64_t judged = 0;                  // the same, when what was pending was looked at
};

// Buffers of one call, kept by the calling thread.
struct Workspace {
  QueryGroup group;
  std::deque<Threshold> thresholds;
  std::vector<Scanner> scanners;
  std::deque<std::atomic<bool>> given_up;  // for each query, whether every score is computed
  std::vector<Ranked> ranked;
};

class TopK {
 public:
  TopK(const Head& head, const float* hidden, int64_t k, const Executor& executor, Isa isa,
       Workspace& workspace)
      : head_(head),
        hidden_(hidden),
        k_(k),
        executor_(executor),
        isa_(isa),
        score_(score_kernel(isa)),
        w_(workspace) {}

  void run(int64_t count, float* scores, int64_t* ids) {
    const bool scan = head_.packed() && 8 * k_ <= head_.rows();
    if (scan) collect(count);
    for (int64_t i = 0; i < count; ++i) {
      if (scan && !given_up(i)) {
        merge(i);
      } else {
        score_all(i);
      }
      emit(scores + i * k_, ids + i * k_);
    }
  }

 private:
  void collect(int64_t count) {
    w_.group.encode(head_, hidden_, count, isa_);
    w_.thresholds.resize(static_cast<size_t>(count));
    for (Threshold& threshold : w_.thresholds) threshold.reset();
    w_.given_up.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) give_up(i, !w_.group[i].finite);
    w_.scanners.resize(static_cast<size_t>(executor_.threads()));
    for (Scanner& scanner : w_.scanners) start(scanner, count);
    rough_ = k_ <= head_.rough_best() && count <= kRoughQueries;
    // Each thread takes the next rows that nobody has taken, so that one thread alone keeps one
    // list, whatever number of threads the host promised.
    const int64_t share = head_.tiles() / (kStripsOfThread * executor_.threads());
    strip_tiles_ = std::clamp(share, kLeastStripTiles, kMostStripTiles);
    const int64_t strips = ceil_div(head_.tiles(), strip_tiles_), stride = stride_of(strips);
    std::atomic<int64_t> next{0};
    executor_.run(executor_.threads(), [&](int64_t slot) {
      Scanner& scanner = w_.scanners[static_cast<size_t>(slot)];
      const DotQueries queries = w_.group.dots(0, count);
      const DotKernel& kernel = dot_kernel(isa_, count);
      kernel.enter(queries);
      for (int64_t i = next.fetch_add(1); i < strips; i = next.fetch_add(1)) {
        scan_strip(i * stride % strips, kernel, queries, scanner);
      }
      kernel.leave();
    });
    for (int64_t i = 0; i < count; ++i) check_pending(i);
    const int64_t lists = count * executor_.threads();
    parallel_for(executor_, lists, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t query = i % count;
        Scanner& scanner = w_.scanners[static_cast<size_t>(i / count)];
        if (given_up(query)) continue;
        scanner.collectors[static_cast<size_t>(query)].finish(
            [&](int32_t row) { return final_score(scanner, query, row); },
            [&](int32_t row) { prefetch_row(head_.dense(), row); });
      }
    });
  }

  void start(Scanner& scanner, int64_t count) {
    const auto size = static_cast<size_t>(count);
    scanner.collectors.resize(size);
    for (size_t i = 0; i < size; ++i) scanner.collectors[i].start(k_, &w_.thresholds[i]);
    scanner.thresholds.resize(size);
    scanner.bars.resize(size);
    scanner.widths.resize(size);
    scanner.dots.resize(static_cast<size_t>(ceil_div(count, kDotGroup) * kDotGroup * kTileBlocks));
    scanner.rows.resize(static_cast<size_t>(together() * tile_lines() + kRegisterLines));
    scanner.x.resize(size);
    for (std::vector<double>& x : scanner.x) x.clear();
    scanner.seen = scanner.judged = 0;
  }

  // Lines of a merged tile, and tiles that are merged together.
  int64_t tile_lines() const { return kTileBlocks * head_.steps(); }
  int64_t together() const {
    return std::max<int64_t>(1, kMergedBytes / (tile_lines() * int64_t{sizeof(RowLine)}));
  }

  // Strips are taken in steps of this, so that the first of them are a sample of all.
  static int64_t stride_of(int64_t strips) {
    int64_t stride = std::max<int64_t>(1, strips * 618 / 1000);
    while (std::gcd(stride, strips) != 1) ++stride;
    return stride;
  }

  void scan_strip(int64_t strip, const DotKernel& kernel, const DotQueries& queries,
                  Scanner& scanner) {
    const int64_t first = strip * strip_tiles_;
    const int64_t last = std::min(first + strip_tiles_, head_.tiles());
    // A thread's first strip in parts, of which each excludes most of the next.
    int64_t part = scanner.seen == 0 ? 1 : strip_tiles_;
    const bool rough = rough_.load(std::memory_order_relaxed);
    for (int64_t tile = first; tile < last;) {
      const int64_t end = std::min(tile + part, last);
      part = std::min(2 * part, strip_tiles_);
      prepare(tile, end, rough, scanner);
      for (; tile < end; tile = std::min(tile + together(), end)) {
        scan_tiles(tile, std::min(tile + together(), end), kernel, queries, rough, scanner);
      }
      for (int64_t i = 0; i < queries.count; ++i) {
        Collector& collector = scanner.collectors[static_cast<size_t>(i)];
        if (!scores_early(rough)) {
          collector.keep();
          continue;
        }
        collector.settle([&](int32_t row) { return final_score(scanner, i, row); });
      }
    }
    scanner.seen += last - first;
    if (scanner.seen < scanner.judged + kJudgedTiles) return;
    scanner.judged = scanner.seen;
    judge(queries.count, rough, scanner);
  }

  // Sets thresholds, bars and widths for tiles [begin, end).
  void prepare(int64_t begin, int64_t end, bool rough, Scanner& scanner) {
    float error = 0, norm = 0;
    for (int64_t i = begin; i < end; ++i) {
      const RowBounds& bounds = head_.bounds(i);
      error = std::max(error, rough ? bounds.rough_error : bounds.error);
      norm = std::max(norm, rough ? bounds.rough_norm : bounds.norm);
    }
    for (int64_t i = 0; i < w_.group.size(); ++i) {
      const Query& query = w_.group[i];
      const auto at = static_cast<size_t>(i);
      scanner.widths[at] = query.width(error, norm);
      scanner.thresholds[at] = scanner.collectors[at].threshold();
      scanner.bars[at] = given_up(i) ? std::numeric_limits<float>::infinity()
                                     : bar_for(scanner.thresholds[at]) - unscaled(query);
    }
  }

  void scan_tiles(int64_t begin, int64_t end, const DotKernel& kernel, const DotQueries& queries,
                  bool rough, Scanner& scanner) {
    const auto rows = [&](int64_t i) {
      return scanner.rows[static_cast<size_t>((i - begin) * tile_lines())].of;
    };
    for (int64_t i = begin; i < end && !rough; ++i) head_.merge(head_.tile(i), rows(i), isa_);
    int32_t* dots = scanner.dots.front().of;
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = head_.tile(i);
      if (rough) {
        kernel.rough_dots(tile.high, queries, dots);
      } else {
        kernel.dots(rows(i), queries, dots);
      }
      meet_what_reaches(tile, dots, queries.count, rough, scanner);
    }
  }

  void meet_what_reaches(const Tile& tile, const int32_t* dots, int64_t count, bool rough,
                         Scanner& scanner) {
    uint64_t rows[kDotQueries];
    const GroupDots group{dots, w_.group.scales(0), scanner.widths.data(), count};
    for (uint64_t any = scan_kernels(isa_).reach(tile, group, scanner.bars.data(), rows); any != 0;
         any &= any - 1) {
      const int query = std::countr_zero(any);
      if (!given_up(query)) meet(tile, query, rows[query], rough, scanner);
    }
  }

  void meet(const Tile& tile, int64_t query, uint64_t rows, bool rough, Scanner& scanner) {
    const auto at = static_cast<size_t>(query);
    const int32_t* dots = scanner.dots.front().of + at * kTileRows;
    const float scale = w_.group[query].scale, width = scanner.widths[at];
    const float apart = unscaled(w_.group[query]);
    for (; rows != 0; rows &= rows - 1) {
      const int row = std::countr_zero(rows);
      if (row >= tile.rows) break;
      const float product = static_cast<float>(dots[row]) * scale;
      const float score = product * tile.scale[row] + tile.bias[row];
      const float upper = (product + width) * tile.scale[row] + tile.bias[row] + apart;
      const float lower = (product - width) * tile.scale[row] + tile.bias[row] - apart;
      const auto id = static_cast<int32_t>(tile.first + row);
      scanner.collectors[at].meet({score, upper, lower, id});
      if (scores_early(rough) && !(score < scanner.thresholds[at])) prefetch_row(head_.dense(), id);
    }
  }

  // Whether bounds are so far apart that final scores are wanted soon; see index/collector.h.
  bool scores_early(bool rough) const { return rough || !head_.fine(); }

  // What a row without a scale may be off.
  float unscaled(const Query& query) const { return head_.unscaled_error() * query.norm; }

  bool given_up(int64_t query) const {
    return w_.given_up[static_cast<size_t>(query)].load(std::memory_order_relaxed);
  }
  void give_up(int64_t query, bool value) {
    w_.given_up[static_cast<size_t>(query)].store(value, std::memory_order_relaxed);
  }

  int64_t most_pending() const {
    return std::max(kMostPending + 4 * k_, head_.rows() / kPendingShare);
  }

  // Drops what has been excluded; gives up rough rows if too many are left, or the query.
  void judge(int64_t count, bool rough, Scanner& scanner) {
    const int64_t seen = scanner.seen * kTileRows;
    const bool tried = scanner.seen >= kTrialTiles;
    for (int64_t i = 0; i < count; ++i) {
      Collector& collector = scanner.collectors[static_cast<size_t>(i)];
      if (collector.pending() <= 2 * k_ + seen / kFewShare) continue;
      collector.tidy();
      collector.sharpen([&](int32_t row) { return final_score(scanner, i, row); });
      if (rough && head_.fine() && tried && collector.pending() > seen / kRoughShare) {
        rough_.store(false, std::memory_order_relaxed);
      }
      if (collector.pending() > most_pending()) give_up(i, true);
    }
  }

  // Gives up a query of which too many rows are pending.
  void check_pending(int64_t query) {
    int64_t pending = 0;
    for (Scanner& scanner : w_.scanners) {
      Collector& collector = scanner.collectors[static_cast<size_t>(query)];
      collector.tidy();
      pending += collector.pending();
    }
    if (pending > most_pending()) give_up(query, true);
  }

  float final_score(Scanner& scanner, int64_t query, int32_t row) const {
    std::vector<double>& x = scanner.x[static_cast<size_t>(query)];
    const float* from = hidden_ + query * head_.depth();
    if (x.empty()) x.assign(from, from + head_.depth());
    return score_(head_.dense(), row, x.data());
  }

  void merge(int64_t query) {
    w_.ranked.clear();
    for (const Scanner& scanner : w_.scanners) {
      const auto best = scanner.collectors[static_cast<size_t>(query)].best();
      w_.ranked.insert(w_.ranked.end(), best.begin(), best.end());
    }
  }

  void score_all(int64_t query) {
    const float* from = hidden_ + query * head_.depth();
    const std::vector<double> x(from, from + head_.depth());
    w_.ranked.resize(static_cast<size_t>(head_.rows()));
    Ranked* ranked = w_.ranked.data();
    parallel_for(executor_, head_.rows(), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        ranked[row] = {score_(head_.dense(), row, x.data()), static_cast<int32_t>(row)};
      }
    });
  }

  void emit(float* scores, int64_t* ids) {
    std::partial_sort(w_.ranked.begin(), w_.ranked.begin() + k_, w_.ranked.end(), before);
    for (int64_t i = 0; i < k_; ++i) {
      scores[i] = w_.ranked[static_cast<size_t>(i)].score;
      ids[i] = w_.ranked[static_cast<size_t>(i)].row;
    }
  }

  const Head& head_;
  const float* hidden_;
  const int64_t k_;
  const Executor& executor_;
  const Isa isa_;
  const ScoreKernel score_;
  Workspace& w_;
  std::atomic<bool> rough_{false};
  int64_t strip_tiles_ = kLeastStripTiles;
};

}  // namespace

void linear_top_k(const Head& head, const float* hidden, int64_t count, int64_t k, float* scores,
                  int64_t* ids, const Executor& executor, Isa isa) {
  if (k < 1 || k > head.rows()) {
    throw std::invalid_argument("k is " + std::to_string(k) + ", expected 1 to " +
                                std::to_string(head.rows()));
  }
  thread_local Workspace workspace;
  for (int64_t first = 0; first < count; first += kDotQueries) {
    const int64_t group = std::min(kDotQueries, count - first);
    const SerialExecutor serial;
    const bool small = head.rows() * head.depth() < kParallelWork / group;
    const Executor& used = small ? static_cast<const Executor&>(serial) : executor;
    TopK(head, hidden + first * head.depth(), k, used, isa, workspace)
        .run(group, scores + first * k, ids + first * k);
  }
}

}  // namespace qcompile
