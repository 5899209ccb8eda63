#include "index/log_sum_scan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "index/cell_kernels.h"
#include "index/exponential.h"
#include "index/rescore.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPieceTiles = 64;   // tiles that one task handles
constexpr double kMostChange = 1e-5;  // of the sum, by rows that stay int8
constexpr double kPlanned = 0.3e-5;   // of it by tiles that are not looked at again, and by the
                                      // other rows that are not rescored
constexpr float kWidest = 40;         // bounds wider than this say nothing
constexpr int64_t kAlone = 8;         // queries that are better multiplied one by one
constexpr size_t kFetched = 8;        // rows that are asked for before they are scored
// A query with more rows to rescore than this, and than one in so many of all, is better off with
// fp32 scores.
constexpr int64_t kLeastRoom = 64;
constexpr int64_t kShare = 32;

// A bar under which the changes sum up to `most` at most; within a quarter of a power of two.
float bar_under(std::span<const float> changes, double most) {
  constexpr int kShift = 21;  // leaves the exponent and two bits of a positive float
  constexpr size_t kBuckets = size_t{1} << (31 - kShift);
  std::array<double, kBuckets> sums{};
  for (float change : changes) sums[std::bit_cast<uint32_t>(change) >> kShift] += change;
  double total = 0;
  uint32_t bucket = 0;
  while (bucket < kBuckets - 1 && (total += sums[bucket]) <= most) ++bucket;
  return std::bit_cast<float>(bucket << kShift);
}

double sum_up(const float* values) {
  float lanes[kBlockRows] = {};
  for (int64_t block = 0; block < kTileRows; block += kBlockRows) {
    for (int64_t i = 0; i < kBlockRows; ++i) lanes[i] += values[block + i];
  }
  return std::accumulate(lanes, lanes + kBlockRows, 0.0);
}

}  // namespace

LogSumScan::LogSumScan(const Head& head, std::span<const DenseAnswer> queries, int64_t k,
                       const Executor& executor, Isa isa, LogSumWorkspace& workspace)
    : head_(head),
      queries_(queries),
      count_(std::ssize(queries)),
      k_(k),
      executor_(executor),
      isa_(isa),
      w_(workspace),
      pieces_(ceil_div(head.tiles(), kPieceTiles)),
      room_(std::max(kLeastRoom, 4 * k) + head.rows() / kShare) {}

std::vector<DenseAnswer> LogSumScan::run() {
  const auto all = static_cast<size_t>(count_);
  const size_t tiles = all * static_cast<size_t>(head_.tiles());
  w_.hidden.clear();
  for (const DenseAnswer& query : queries_) {
    w_.hidden.insert(w_.hidden.end(), query.x, query.x + head_.depth());
  }
  w_.x.assign(w_.hidden.begin(), w_.hidden.end());
  w_.group.encode(head_, w_.hidden.data(), count_, isa_);
  w_.tiles.resize(tiles);
  w_.again.assign(tiles, 0);
  w_.queries.assign(all, {});
  w_.pieces.resize(all * static_cast<size_t>(pieces_));
  w_.found.resize(all);
  for (auto& found : w_.found) found.store(0, std::memory_order_relaxed);
  executor_.run(pieces_, [&](int64_t piece) { sum_tiles(piece); });
  executor_.run(count_, [&](int64_t query) { choose(query); });
  executor_.run(pieces_, [&](int64_t piece) { look_again(piece); });
  std::vector<DenseAnswer> left;
  for (int64_t i = 0; i < count_; ++i) {
    if (!finish(i)) left.push_back(queries_[static_cast<size_t>(i)]);
  }
  return left;
}

// What roundings and rows without a scale add to the width of a bound. Scores that count are no
// further from zero than the reference is and the 88 below which they have no exponential.
float LogSumScan::rounding(int64_t query) const {
  const float reference = w_.queries[static_cast<size_t>(query)].reference;
  return 0x1p-20f * (std::fabs(reference) + 88 + kWidest) + unscaled(query);
}

// A tile's rows, until this thread asks for another's.
const int8_t* LogSumScan::merged(const Tile& tile) const {
  thread_local std::vector<RowLine> rows;
  rows.resize(static_cast<size_t>(ceil_div(head_.merged_bytes(), kStepBytes)));
  head_.merge(tile, rows.front().of, isa_);
  return rows.front().of;
}

void LogSumScan::sum_tiles(int64_t piece) {
  DotLine lines[kDotQueries * kTileBlocks];
  int32_t* dots = lines->of;
  const DotQueries queries = w_.group.dots(0, count_);
  const DotKernel& kernel = dot_kernel(isa_, count_);
  kernel.enter(queries);
  const int64_t end = std::min((piece + 1) * kPieceTiles, head_.tiles());
  for (int64_t t = piece * kPieceTiles; t < end; ++t) {
    const Tile tile = head_.tile(t);
    kernel.dots(merged(tile), queries, dots);
    const float scale = greatest(tile.scale, kTileRows, isa_);
    for (int64_t q = 0; q < count_; ++q) {
      if (!w_.group[q].finite) continue;
      tiles_of(q)[static_cast<size_t>(t)] = sum_tile(tile, dots + q * kTileRows, scale, q);
    }
  }
  kernel.leave();
}

// `scale` is the greatest of the tile's rows.
TileSum LogSumScan::sum_tile(const Tile& tile, const int32_t* dots, float scale,
                             int64_t query) const {
  const TileDots work{dots, w_.group[query].scale, tile_width(tile, w_.group[query])};
  float scores[kTileRows], peaks[kBlockRows];
  const float least = scan_kernels(isa_).scores(tile, work, scores, peaks);
  TileSum result;
  result.width = scale * work.width;
  result.upper = greatest(peaks, kBlockRows, isa_);
  result.least = known_lower(least - unscaled(query));
  const float shift = result.upper == -kInfinity ? 0 : result.upper - result.width;
  result.shift = shift;
  if (std::fabs(shift) < kInfinity && result.width < kWidest) {
    result.sum = static_cast<float>(exponentials(scores, kTileRows, shift, isa_));
  } else {
    result.sum = std::nanf("");
  }
  return result;
}

// Decides which tiles are looked at again: those that may hold one of the k best rows, and those
// whose scores are not certain enough for the sum.
void LogSumScan::choose(int64_t query) {
  LogSumQuery& known = w_.queries[static_cast<size_t>(query)];
  if (!w_.group[query].finite) return;
  thread_local std::vector<float> least;
  least.clear();
  for (const TileSum& tile : tiles_of(query)) least.push_back(tile.least);
  // Each tile has a row of its own, so the k-th of them bounds the k-th best row.
  const auto kth = least.begin() + k_ - 1;
  std::nth_element(least.begin(), kth, least.end(), std::greater<>());
  known.reference = *std::max_element(least.begin(), kth + 1);
  if (!std::isfinite(known.reference) || !std::isfinite(*kth)) return;
  known.bar = bar_for(*kth) - unscaled(query);
  known.answered = choose_tiles(query);
}

// Chooses the tiles; false if there is too much in them.
bool LogSumScan::choose_tiles(int64_t query) {
  LogSumQuery& known = w_.queries[static_cast<size_t>(query)];
  const std::span<const TileSum> tiles = tiles_of(query);
  const std::span<char> again = again_of(query);
  thread_local std::vector<float> sums, changes;
  sums.clear();
  changes.clear();
  const float more = rounding(query);
  for (const TileSum& tile : tiles) {
    const float width = tile.width + more;
    const bool bounded = width < kWidest && tile.shift - known.reference < kWidest;
    if (!bounded || std::isnan(tile.sum)) return false;
    sums.push_back(tile.shift);
    changes.push_back(width);
  }
  const std::ptrdiff_t size = std::ssize(sums);
  exponentials(sums.data(), size, known.reference, isa_);
  exponentials(changes.data(), size, 0, isa_);
  double total = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    sums[i] *= tiles[i].sum;
    changes[i] = sums[i] * (changes[i] - (1 - 0x1p-20f));
    total += sums[i];
  }
  const float bar = bar_under(changes, kPlanned * total);
  double effective = 0;  // rows that have nearly all of the weight of the tiles chosen
  int64_t chosen = 0;
  for (size_t i = 0; i < tiles.size(); ++i) {
    const bool uncertain = changes[i] >= bar;
    if (uncertain) effective += tiles[i].sum;
    again[i] = uncertain || !(tiles[i].upper < known.bar);
    chosen += again[i];
    if (again[i]) continue;
    known.sum += sums[i];
    known.change += changes[i];
  }
  known.budget =
      static_cast<float>(kPlanned * total / static_cast<double>(std::max<int64_t>(chosen, 1)));
  return effective <= static_cast<double>(room_);
}

void LogSumScan::look_again(int64_t piece) {
  DotLine lines[kDotQueries * kTileBlocks];
  int32_t* dots = lines->of;
  const DotQueries queries = w_.group.dots(0, count_);
  const DotKernel &together = dot_kernel(isa_, count_), &alone = dot_kernel(isa_, 1);
  for (int64_t q = 0; q < count_; ++q) {
    LogSumPiece& own = piece_of(q, piece);
    own.rows.clear();
    own.sum = own.change = 0;
  }
  together.enter(queries);
  const int64_t end = std::min((piece + 1) * kPieceTiles, head_.tiles());
  for (int64_t t = piece * kPieceTiles; t < end; ++t) {
    const auto again = [&](int64_t query) {
      const bool open = w_.queries[static_cast<size_t>(query)].answered;
      return open && again_of(query)[static_cast<size_t>(t)] != 0;
    };
    int64_t wanted = 0;
    for (int64_t q = 0; q < count_; ++q) wanted += again(q);
    if (wanted == 0) continue;
    const Tile tile = head_.tile(t);
    const int8_t* rows = merged(tile);
    if (wanted > kAlone) together.dots(rows, queries, dots);
    for (int64_t q = 0; q < count_; ++q) {
      if (!again(q)) continue;
      int32_t* own = dots + q * kTileRows;
      if (wanted <= kAlone) alone.dots(rows, w_.group.dots(q, 1), own);
      look_at(tile, own, q, piece_of(q, piece));
    }
  }
  together.leave();
  for (int64_t q = 0; q < count_; ++q) rescore(q, piece_of(q, piece));
}

// Notes the rows that have to be rescored, and sums up the others.
void LogSumScan::look_at(const Tile& tile, const int32_t* dots, int64_t query, LogSumPiece& piece) {
  const LogSumQuery& known = w_.queries[static_cast<size_t>(query)];
  const TileDots work{dots, w_.group[query].scale, tile_width(tile, w_.group[query])};
  float scores[kTileRows], upper[kTileRows], peaks[kBlockRows];
  scan_kernels(isa_).scores(tile, work, scores, peaks);
  for (int64_t i = 0; i < kTileRows; ++i) upper[i] = scores[i] + tile.scale[i] * work.width;
  uint64_t kept = not_below(isa_)(upper, known.bar);
  kept = sum_light(scores, upper, kept, query, piece);
  if (tile.rows < kTileRows) kept &= (uint64_t{1} << tile.rows) - 1;
  if (kept == 0) return;
  std::atomic<int64_t>& found = w_.found[static_cast<size_t>(query)];
  found.fetch_add(std::popcount(kept), std::memory_order_relaxed);
  if (given_up(query)) return;
  for (; kept != 0; kept &= kept - 1) {
    piece.rows.push_back({0, static_cast<int32_t>(tile.first + std::countr_zero(kept))});
  }
}

// Sums up rows that are not kept, the lighter ones, as far as a tile's budget goes; returns the
// rows that are kept then. Overwrites scores and their upper bounds.
uint64_t LogSumScan::sum_light(float* scores, float* upper, uint64_t kept, int64_t query,
                               LogSumPiece& piece) const {
  const LogSumQuery& known = w_.queries[static_cast<size_t>(query)];
  const float more = rounding(query);
  for (int64_t i = 0; i < kTileRows; ++i) upper[i] += more;
  exponentials(scores, kTileRows, known.reference, isa_);
  exponentials(upper, kTileRows, known.reference, isa_);
  float values[kTileRows], changes[kTileRows];
  for (int64_t i = 0; i < kTileRows; ++i) {
    values[i] = scores[i];
    changes[i] = upper[i] - scores[i] + 0x1p-20f * scores[i];
    upper[i] = changes[i];
  }
  const uint64_t heavy =
      not_below(isa_)(changes, known.budget / static_cast<float>(kTileRows)) & ~kept;
  for (uint64_t rest = kept | heavy; rest != 0; rest &= rest - 1) {
    const int row = std::countr_zero(rest);
    values[row] = upper[row] = 0;
  }
  const double change = sum_up(upper);
  piece.sum += sum_up(values);
  // Of the others some may still fit.
  const uint64_t lighter = heavy & ~not_below(isa_)(changes, known.budget / 8);
  double more_sum = 0, more_change = 0;
  for (uint64_t rest = lighter; rest != 0; rest &= rest - 1) {
    more_sum += scores[std::countr_zero(rest)];
    more_change += changes[std::countr_zero(rest)];
  }
  const bool fit = change + more_change <= known.budget;
  piece.sum += fit ? more_sum : 0;
  piece.change += fit ? change + more_change : change;
  return kept | (fit ? heavy & ~lighter : heavy);
}

void LogSumScan::rescore(int64_t query, LogSumPiece& piece) const {
  if (given_up(query)) return;
  const ScoreKernel score = score_kernel(isa_);
  const double* x = w_.x.data() + query * head_.depth();
  const std::span<Ranked> rows = piece.rows;
  for (size_t i = 0; i < rows.size() + kFetched; ++i) {
    if (i < rows.size()) prefetch_row(head_.dense(), rows[i].row);
    if (i < kFetched) continue;
    Ranked& row = rows[i - kFetched];
    row.score = score(head_.dense(), row.row, x);
  }
}

// False if the query is not answered after all.
bool LogSumScan::finish(int64_t query) {
  LogSumQuery& known = w_.queries[static_cast<size_t>(query)];
  if (!known.answered || given_up(query)) return false;
  w_.ranked.clear();
  for (int64_t i = 0; i < pieces_; ++i) {
    const LogSumPiece& piece = piece_of(query, i);
    w_.ranked.insert(w_.ranked.end(), piece.rows.begin(), piece.rows.end());
    known.sum += piece.sum;
    known.change += piece.change;
  }
  w_.finals.clear();
  for (const Ranked& row : w_.ranked) w_.finals.push_back(row.score);
  known.sum += exponentials(w_.finals.data(), std::ssize(w_.finals), known.reference, isa_);
  if (!(known.change <= kMostChange * known.sum)) return false;
  const DenseAnswer& answer = queries_[static_cast<size_t>(query)];
  *answer.log_sum = static_cast<float>(known.reference + std::log(known.sum));
  std::partial_sort(w_.ranked.begin(), w_.ranked.begin() + k_, w_.ranked.end(), before);
  for (int64_t i = 0; i < k_; ++i) {
    answer.scores[i] = w_.ranked[static_cast<size_t>(i)].score;
    answer.ids[i] = w_.ranked[static_cast<size_t>(i)].row;
  }
  return true;
}

}  // namespace qcompile
