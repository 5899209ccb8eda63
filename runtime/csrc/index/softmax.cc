#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "index/dense.h"
#include "index/dense_softmax.h"
#include "index/exponential.h"
#include "index/flat_queries.h"
#include "index/operators.h"
#include "index/rescore.h"
#include "index/scan.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kMostChange = 1e-5;  // of the normaliser, by rows that stay int8
constexpr int64_t kPieceTiles = 64;   // tiles that one task handles
constexpr int64_t kTileQueries = 32;  // queries that share a pass over the rows
// A query with more probable rows than this, and than one in so many of all, is better off with
// fp32 scores. Those of several queries cost less each than those of one.
constexpr int64_t kRescoredRows = 16;
constexpr int64_t kShareOfFew = 16;
constexpr int64_t kShareOfMany = 512;
// The same of some of its rows, which have a lesser best one.
constexpr int64_t kFlatShareOfFew = 4;
constexpr int64_t kFlatShareOfMany = 128;
constexpr int64_t kProbe = 8;       // queries that are scanned before the others
constexpr int64_t kLeastGroup = 4;  // queries that are worth a pass of their own over the rows

// What a tile's approximate scores say of its final ones.
struct TilePeaks {
  float upper[kBlockRows];  // the greatest upper bound of each lane of the tile's blocks
  float width;              // of a row's score, in units of its scale
  float least;              // some row's final score is at least this
};

// A run of rows of one query.
struct Piece {
  std::vector<int32_t> rows;  // rescored
  std::vector<float> scores;  // theirs, later their exponentials
  WeightedSums tail{0, 0};    // of the other rows' exponentials, and of their possible changes
};

// Buffers of one call, kept by the calling thread.
struct Workspace {
  QueryGroup group;
  std::vector<TilePeaks> peaks;  // of each query and tile
  std::vector<Piece> pieces;
  std::vector<float> greatest;
  std::vector<double> total;
};

// Softmax of one group of queries by the int8 scan.
class Scan {
 public:
  Scan(const Head& head, const float* hidden, float* out, const Executor& executor, Isa isa,
       Workspace& workspace)
      : head_(head), hidden_(hidden), out_(out), executor_(executor), isa_(isa), w_(workspace) {}

  // Sets done[i] for every query whose probabilities are complete.
  void run(int64_t count, char* done) {
    w_.group.encode(head_, hidden_, count, isa_);
    tiles_ = head_.tiles();
    parts_ = ceil_div(tiles_, kPieceTiles);
    w_.peaks.resize(static_cast<size_t>(count * tiles_));
    w_.pieces.resize(static_cast<size_t>(count * parts_));
    w_.greatest.assign(static_cast<size_t>(count), -kInfinity);
    w_.total.assign(static_cast<size_t>(count), 0);
    executor_.run(parts_, [&](int64_t part) { scan(part); });
    executor_.run(count, [&](int64_t q) { done[q] = select(q); });
    executor_.run(count * parts_, [&](int64_t i) {
      if (done[i / parts_]) rescore(i / parts_, i % parts_);
    });
    for (int64_t q = 0; q < count; ++q) done[q] = done[q] && find_greatest(q);
    executor_.run(count * parts_, [&](int64_t i) {
      if (done[i / parts_]) exponentiate(i / parts_, i % parts_);
    });
    for (int64_t q = 0; q < count; ++q) done[q] = done[q] && find_total(q);
    executor_.run(count * parts_, [&](int64_t i) {
      if (done[i / parts_]) normalise(i / parts_, i % parts_);
    });
  }

 private:
  int64_t first_row(int64_t part) const {
    return std::min(part * kPieceTiles * kTileRows, head_.rows());
  }
  Piece& piece(int64_t query, int64_t part) {
    return w_.pieces[static_cast<size_t>(query * parts_ + part)];
  }
  TilePeaks& peaks(int64_t query, int64_t tile) {
    return w_.peaks[static_cast<size_t>(query * tiles_ + tile)];
  }
  int64_t last_tile(int64_t part) const { return std::min((part + 1) * kPieceTiles, tiles_); }
  float* row(int64_t query) { return out_ + query * head_.rows(); }

  void scan(int64_t part) {
    thread_local std::vector<DotLine> lines;
    thread_local std::vector<RowLine> rows;
    lines.resize(kTileQueries * kTileBlocks);
    rows.resize(static_cast<size_t>(ceil_div(head_.merged_bytes(), kStepBytes)));
    int32_t* dots = lines.front().of;
    const DotQueries queries = w_.group.dots(0, w_.group.size());
    const DotKernel& kernel = dot_kernel(isa_, queries.count);
    kernel.enter(queries);
    for (int64_t t = part * kPieceTiles; t < last_tile(part); ++t) {
      const Tile tile = head_.tile(t);
      head_.merge(tile, rows.front().of, isa_);
      kernel.dots(rows.front().of, queries, dots);
      for (int64_t q = 0; q < queries.count; ++q) {
        if (w_.group[q].finite) score_tile(tile, dots + q * kTileRows, q, peaks(q, t));
      }
    }
    kernel.leave();
  }

  void score_tile(const Tile& tile, const int32_t* dots, int64_t query, TilePeaks& peaks) {
    const TileDots work{dots, w_.group[query].scale, tile_width(tile, w_.group[query])};
    float padded[kTileRows];  // for the last tile, of which some rows may not exist
    float* target = tile.rows == kTileRows ? row(query) + tile.first : padded;
    const float lower = scan_kernels(isa_).scores(tile, work, target, peaks.upper);
    if (target == padded) std::copy_n(padded, tile.rows, row(query) + tile.first);
    peaks.width = work.width;
    peaks.least = known_lower(lower - unscaled(query));
  }

  // What the score of a row without a scale may be off.
  float unscaled(int64_t query) const { return head_.unscaled_error() * w_.group[query].norm; }

  // Finds the rows that may be probable. False if there are so many that computing all scores is
  // no more work.
  bool select(int64_t query) {
    if (!w_.group[query].finite) return false;
    float best = -kInfinity;
    for (int64_t t = 0; t < tiles_; ++t) best = std::max(best, peaks(query, t).least);
    // Rows below that share of the best stay int8.
    const float bar = bar_for(best + log_least_share(head_.rows())) - unscaled(query);
    const int64_t share = w_.group.size() < kPanelQueries ? kShareOfFew : kShareOfMany;
    int64_t room = kRescoredRows + head_.rows() / share;
    for (int64_t part = 0; part < parts_ && room >= 0; ++part) {
      std::vector<int32_t>& rows = piece(query, part).rows;
      rows.clear();
      for (int64_t t = part * kPieceTiles; t < last_tile(part); ++t) {
        select_rows(head_.tile(t), query, peaks(query, t), bar, rows);
      }
      room -= std::ssize(rows);
    }
    return room >= 0;
  }

  void select_rows(const Tile& tile, int64_t query, const TilePeaks& peaks, float bar,
                   std::vector<int32_t>& rows) {
    for (int lane = 0; lane < kBlockRows; ++lane) {
      if (peaks.upper[lane] < bar) continue;
      for (int64_t at = lane; at < tile.rows; at += kBlockRows) {
        const auto id = static_cast<int32_t>(tile.first + at);
        if (row(query)[id] + tile.scale[at] * peaks.width < bar) continue;
        rows.push_back(id);
      }
    }
  }

  // Computes exactly what may be probable, and takes it out of the row for now.
  void rescore(int64_t query, int64_t part) {
    Piece& p = piece(query, part);
    p.scores.clear();
    thread_local std::vector<double> x;
    const float* hidden = hidden_ + query * head_.depth();
    x.assign(hidden, hidden + head_.depth());
    const ScoreKernel score = score_kernel(isa_);
    for (int32_t r : p.rows) {
      p.scores.push_back(score(head_.dense(), r, x.data()));
      row(query)[r] = -kInfinity;
    }
  }

  bool find_greatest(int64_t query) {
    float& best = w_.greatest[static_cast<size_t>(query)];
    for (int64_t part = 0; part < parts_; ++part) {
      for (float score : piece(query, part).scores) best = std::max(best, score);
    }
    return std::isfinite(best);
  }

  void exponentiate(int64_t query, int64_t part) {
    Piece& p = piece(query, part);
    const float best = w_.greatest[static_cast<size_t>(query)];
    const int64_t begin = first_row(part), end = first_row(part + 1);
    // A score that is off by `width` changes its exponential by a factor of exp(width) at most;
    // scores further than 88 below the best have none.
    float changes[kPieceTiles * kTileBlocks];
    int64_t blocks = 0;
    for (int64_t t = part * kPieceTiles; t < last_tile(part); ++t) {
      const Tile tile = head_.tile(t);
      for (int64_t b = 0; b < kTileBlocks; ++b) {
        const float* scales = tile.scale + b * kBlockRows;
        const float scale = *std::max_element(scales, scales + kBlockRows);
        changes[blocks++] = scale * peaks(query, t).width;
      }
    }
    // Scores are no further from zero than the best is and these 88.
    const float more = 0x1p-20f * (std::fabs(best) + 88) + unscaled(query);
    for (int64_t b = 0; b < blocks; ++b) changes[b] = std::min(changes[b] + more, 80.0f);
    exponentials(changes, blocks, 0, isa_);
    for (int64_t b = 0; b < blocks; ++b) changes[b] -= 1 - 0x1p-20f;
    p.tail = weighted_exponentials(row(query) + begin, end - begin, best, changes, isa_);
  }

  // Adds up the normaliser; false if the int8 scores might change it too much.
  bool find_total(int64_t query) {
    const float best = w_.greatest[static_cast<size_t>(query)];
    double change = 0, total = 0;
    for (int64_t part = 0; part < parts_; ++part) {
      Piece& p = piece(query, part);
      change += p.tail.weighted;
      total += p.tail.plain;
      total += exponentials(p.scores.data(), static_cast<int64_t>(p.scores.size()), best, isa_);
    }
    w_.total[static_cast<size_t>(query)] = total;
    return change <= kMostChange * total;
  }

  void normalise(int64_t query, int64_t part) {
    const Piece& p = piece(query, part);
    const auto factor = static_cast<float>(1 / w_.total[static_cast<size_t>(query)]);
    const int64_t begin = first_row(part), end = first_row(part + 1);
    scale_values(row(query) + begin, end - begin, factor, isa_);
    for (size_t i = 0; i < p.rows.size(); ++i) row(query)[p.rows[i]] = p.scores[i] * factor;
  }

  const Head& head_;
  const float* hidden_;
  float* out_;
  const Executor& executor_;
  const Isa isa_;
  Workspace& w_;
  int64_t tiles_ = 0;
  int64_t parts_ = 0;
};

// One call of linear_softmax.
struct Call {
  const Head& head;
  const float* hidden;
  int64_t count;
  float* out;
  const Executor& executor;
  Isa isa;
  char* done;  // for each query, whether the scan answered it
};

// Scans queries [first, first + size). Threads take groups of them if there are enough, else parts
// of the rows.
void scan_queries(const Call& call, int64_t first, int64_t size) {
  if (size == 0) return;
  const SerialExecutor serial;
  const int64_t threads = call.executor.threads();
  const int64_t wanted = ceil_div(ceil_div(size, kTileQueries), threads) * threads;
  const int64_t groups = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, size / kLeastGroup));
  const int64_t step = std::min(kTileQueries, ceil_div(size, groups));
  const Executor& one = serial;
  const Executor& outer = groups > 1 ? call.executor : one;
  const Executor& inner = groups > 1 ? one : call.executor;
  outer.run(ceil_div(size, step), [&](int64_t i) {
    thread_local Workspace workspace;
    const int64_t query = first + i * step;
    Scan(call.head, call.hidden + query * call.head.depth(), call.out + query * call.head.rows(),
         inner, call.isa, workspace)
        .run(std::min(step, size - i * step), call.done + query);
  });
}

// Scans the queries, a few, that do not look flat.
void scan_peaked(const Call& call) {
  const std::vector<char> flat =
      find_flat(call.head, call.hidden, call.count, kFlatShareOfFew, call.isa);
  for (int64_t first = 0; first < call.count;) {
    int64_t end = first;
    while (end < call.count && flat[end] == flat[first]) ++end;
    if (!flat[first]) scan_queries(call, first, end - first);
    first = end;
  }
}

// A few queries from the middle tell whether the others are worth a scan: flat distributions come
// together.
void scan_many(const Call& call) {
  const int64_t first = (call.count - kProbe) / 2;
  const float* middle = call.hidden + first * call.head.depth();
  const std::vector<char> flat = find_flat(call.head, middle, kProbe, kFlatShareOfMany, call.isa);
  if (4 * std::count(flat.begin(), flat.end(), 0) < 3 * kProbe) return;
  scan_queries(call, first, kProbe);
  if (4 * std::count(call.done + first, call.done + first + kProbe, 1) < 3 * kProbe) return;
  scan_queries(call, 0, first);
  scan_queries(call, first + kProbe, call.count - first - kProbe);
}

}  // namespace

void linear_softmax(const Head& head, const float* hidden, int64_t count, float* probabilities,
                    const Executor& executor, Isa isa) {
  if (count == 0) return;
  thread_local std::vector<char> done;
  done.assign(static_cast<size_t>(count), 0);
  const SerialExecutor serial;
  const bool small = head.rows() * head.depth() < kParallelWork / count;
  const Executor& used = small ? static_cast<const Executor&>(serial) : executor;
  const Call call{head, hidden, count, probabilities, used, isa, done.data()};
  if (head.packed() && count <= 2 * kProbe) {
    scan_peaked(call);
  } else if (head.packed()) {
    scan_many(call);
  }
  std::vector<SoftmaxQuery> left;
  for (int64_t i = 0; i < count; ++i) {
    if (call.done[i]) continue;
    left.push_back({hidden + i * head.depth(), probabilities + i * head.rows()});
  }
  dense_softmax(head.dense(), left, used, isa);
}

}  // namespace qcompile
