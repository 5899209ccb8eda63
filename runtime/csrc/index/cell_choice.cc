#include "index/cell_choice.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "index/greatest.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// scores [count] += factor * deviations, which are how far the scores of cells' rows spread for a
// query of that norm.
QC_INLINE void add_deviations(const float* weights, const float* biases, int64_t count, double norm,
                              float factor, float* scores) {
  constexpr double kMost = std::numeric_limits<float>::max();
  for (int64_t i = 0; i < count; ++i) {
    const double weight = norm * weights[i], bias = biases[i];
    const double deviation = std::sqrt(weight * weight + bias * bias);
    scores[i] += factor * static_cast<float>(deviation < kMost ? deviation : kMost);
  }
}
void add_scalar(const float* weights, const float* biases, int64_t count, double norm, float factor,
                float* scores) {
  add_deviations(weights, biases, count, norm, factor, scores);
}
QC_AVX2 void add_avx2(const float* weights, const float* biases, int64_t count, double norm,
                      float factor, float* scores) {
  add_deviations(weights, biases, count, norm, factor, scores);
}
QC_AVX512 void add_avx512(const float* weights, const float* biases, int64_t count, double norm,
                          float factor, float* scores) {
  add_deviations(weights, biases, count, norm, factor, scores);
}

}  // namespace

void CellChoice::start(const CellIndex& index, const CellSearch& search, Isa isa) {
  index_ = &index;
  search_ = &search;
  isa_ = isa;
  const int64_t most = std::max(block_count(index.cells()), block_count(index.groups()));
  while (std::ssize(every_block_) < most) {
    every_block_.push_back(static_cast<int32_t>(every_block_.size()));
  }
}

void CellChoice::choose(const Query& query, const uint8_t* encoded) {
  query_ = &query;
  encoded_ = encoded;
  int64_t probes = std::min(search_->probes, index_->cells());
  if (!search_all()) {
    list_groups();
    score();
    if (take(probes)) return;
  }
  list_all();
  score();
  while (!take(probes) && probes < index_->cells()) probes = std::min(2 * probes, index_->cells());
  if (search_->sum) weigh();
}

// All cells are listed, so each has its score at its own place.
void CellChoice::weigh() {
  masses_.resize(static_cast<size_t>(index_->cells()));
  const double norm = query_->norm, factor = 0.5 * search_->variance * norm * norm;
  for (size_t cell = 0; cell < masses_.size(); ++cell) {
    const double spread = index_->spread()[cell];
    const double mass = static_cast<double>(cell_scores_[cell]) + index_->mass()[cell];
    masses_[cell] = finite_float(mass + factor * spread * spread);
  }
  for (const ScoredCell& each : cells_) leave_out(each.cell);
}

PieceSum CellChoice::rest() { return sum_piece(masses_.data(), std::ssize(masses_), isa_); }

std::span<const uint64_t> CellChoice::others(float least) {
  promises_ = cell_scores_;
  for (const ScoredCell& each : cells_) promises_[static_cast<size_t>(each.cell)] = -kInfinity;
  others_.clear();
  deviate(0, index_->cells(), search_->guard, promises_.data());
  for (int64_t cell = 0; cell < index_->cells(); ++cell) {
    const float bound = promises_[static_cast<size_t>(cell)];
    if (bound >= least) others_.push_back(rank_key(bound, static_cast<uint32_t>(cell)));
  }
  std::sort(others_.begin(), others_.end(), std::greater<>());
  return others_;
}

// The groups' scores have all of the spread of their cells.
void CellChoice::list_groups() {
  const int64_t blocks = block_count(index_->groups());
  score_blocks(index_->groups_of_cells(), every_block_, blocks, scores_);
  const float* spread = index_->group_spread();
  for (int64_t group = 0; group < index_->groups(); ++group) {
    scores_[static_cast<size_t>(group)] += query_->norm * spread[group];
  }
  best_.start(search_->groups, search_->groups, 0, isa_);
  best_.add(scores_.data(), every_block_.data(), blocks);
  list_.clear();
  for (uint64_t key : best_.finish()) {
    if (place_of(key) >= index_->groups()) continue;
    const int32_t end = index_->first_centroids(place_of(key) + 1);
    for (int32_t b = index_->first_centroids(place_of(key)); b < end; ++b) list_.push_back(b);
  }
  std::sort(list_.begin(), list_.end());
}

void CellChoice::score_blocks(const PackedBlocks& blocks, const std::vector<int32_t>& list,
                              int64_t count, std::vector<float>& scores) const {
  scores.resize(static_cast<size_t>(count * kBlockRows));
  const CellQuery query{.values = encoded_, .scale = query_->scale, .scores = scores.data()};
  cell_kernel(isa_)(blocks, {list.data(), count}, &query, 1);
}

void CellChoice::list_all() {
  list_.assign(every_block_.begin(), every_block_.begin() + block_count(index_->cells()));
}

void CellChoice::score() {
  listed_.resize(static_cast<size_t>(block_count(index_->cells())));
  for (size_t i = 0; i < list_.size(); ++i) {
    listed_[static_cast<size_t>(list_[i])] = static_cast<int32_t>(i);
  }
  score_blocks(index_->centroids(), list_, std::ssize(list_), cell_scores_);
  if (search_->spread == 0) return;
  promises_ = cell_scores_;
  for (size_t i = 0; i < list_.size(); ++i) {
    const int64_t cell = int64_t{list_[i]} * kBlockRows;
    deviate(cell, std::min<int64_t>(kBlockRows, index_->cells() - cell), search_->spread,
            promises_.data() + i * kBlockRows);
  }
}

// Adds a multiple of how far the scores of the rows of cells first, first + 1 … spread.
void CellChoice::deviate(int64_t first, int64_t count, float factor, float* scores) const {
  const auto add = isa_ == Isa::kScalar ? add_scalar : isa_ == Isa::kAvx2 ? add_avx2 : add_avx512;
  add(index_->spread() + first, index_->bias_spread() + first, count, query_->norm, factor, scores);
}

// Takes the `probes` best cells of those listed; returns whether they hold k rows.
bool CellChoice::take(int64_t probes) {
  greatest_.clear();
  append_greatest(search_->spread == 0 ? cell_scores_.data() : promises_.data(), list_.data(),
                  std::ssize(list_), probes, greatest_, isa_);
  cells_.clear();
  int64_t rows = 0;
  for (uint64_t key : greatest_) {
    const int64_t cell = place_of(key);
    if (cell >= index_->cells()) continue;
    cells_.push_back({static_cast<int32_t>(cell), score_of_cell(cell)});
    rows += index_->size(cell);
  }
  return rows >= search_->k;
}

}  // namespace qcompile
