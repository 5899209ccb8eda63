#include "index/kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/lanes.h"
#include "core/random.h"
#include "index/cell_kernels.h"
#include "index/dot_int8.h"
#include "index/layout.h"

namespace qcompile {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kSamplePerCoarse = 512;

using Rows = std::vector<int32_t>;

// Mean rows, packed for distances to them.
class Centroids {
 public:
  Centroids(int64_t count, int64_t depth)
      : count_(count),
        depth_(depth),
        means_(static_cast<size_t>(count * depth)),
        packed_(static_cast<size_t>(tiles() * kTileBlocks * step_count(depth) + kRegisterLines)),
        terms_(static_cast<size_t>(tiles() * kTileBlocks)) {}

  int64_t count() const { return count_; }
  float* mean(int64_t index) { return means_.data() + index * depth_; }
  int64_t tiles() const { return ceil_div(count_, kTileRows); }
  const int8_t* tile(int64_t index) const {
    return packed_[static_cast<size_t>(index * kTileBlocks * step_count(depth_))].of;
  }
  const BlockTerms* terms(int64_t tile) const { return terms_.data() + tile * kTileBlocks; }

  // To be called after means have changed.
  void pack(Isa isa) {
    std::vector<int8_t> values(static_cast<size_t>(depth_));
    for (int64_t c = 0; c < tiles() * kTileRows; ++c) {
      BlockTerms& terms = terms_[static_cast<size_t>(c / kBlockRows)];
      const int64_t lane = c % kBlockRows;
      terms.scale[lane] = 0;
      terms.bias[lane] = -std::numeric_limits<float>::infinity();
      if (c >= count_) continue;
      quantise(mean(c), depth_, &terms.scale[lane], values.data(), isa);
      int8_t* block = packed_[static_cast<size_t>(c / kBlockRows * step_count(depth_))].of;
      double squares = 0;
      for (int64_t j = 0; j < depth_; ++j) {
        block[j / kBlockDepth * kStepBytes + lane * kBlockDepth + j % kBlockDepth] = values[j];
        const double value = static_cast<double>(terms.scale[lane]) * values[j];
        squares += value * value;
      }
      // x.c - |c|^2 / 2 is greatest where |x - c|^2 is least.
      terms.bias[lane] = static_cast<float>(-0.5 * squares);
    }
  }

 private:
  int64_t count_, depth_;
  std::vector<float> means_;
  std::vector<RowLine> packed_;  // whole tiles, and room for a tile register to read beyond
  std::vector<BlockTerms> terms_;
};

// The greatest scores of each lane so far, and the block that they are of.
struct LaneBest {
  Lanes score;
  LaneInts block;
};

// Scores of a tile's centroids for one row, from their dot products [kTileRows].
QC_INLINE void keep_greater(const int32_t* dots, const BlockTerms* terms, float scale,
                            int32_t first, LaneBest& best) {
  for (int32_t b = 0; b < kTileBlocks; ++b) {
    LaneInts products;
    std::memcpy(&products, dots + b * kBlockRows, sizeof products);
    const Lanes score =
        __builtin_convertvector(products, Lanes) * (load_lanes(terms[b].scale) * scale) +
        load_lanes(terms[b].bias);
    const LaneInts greater = score > best.score;
    best.score = greater ? score : best.score;
    best.block = greater ? LaneInts{} + (first + b) : best.block;
  }
}
void keep_greater_scalar(const int32_t* dots, const BlockTerms* terms, float scale, int32_t first,
                         LaneBest& best) {
  keep_greater(dots, terms, scale, first, best);
}
QC_AVX2 void keep_greater_avx2(const int32_t* dots, const BlockTerms* terms, float scale,
                               int32_t first, LaneBest& best) {
  keep_greater(dots, terms, scale, first, best);
}
QC_AVX512 void keep_greater_avx512(const int32_t* dots, const BlockTerms* terms, float scale,
                                   int32_t first, LaneBest& best) {
  keep_greater(dots, terms, scale, first, best);
}

// The nearest centroid of each of rows ids[begin, end), into nearest[begin, end): the first of
// those equally near.
class Nearest {
 public:
  Nearest(const QuantisedRows& rows, const Centroids& centroids, Isa isa)
      : rows_(rows), centroids_(centroids), isa_(isa) {
    keep_ = isa == Isa::kScalar ? keep_greater_scalar
            : isa == Isa::kAvx2 ? keep_greater_avx2
                                : keep_greater_avx512;
    dots_.resize(kDotQueries * kTileBlocks);
    gathered_.resize(static_cast<size_t>(kDotQueries * rows.stride / kLineBytes));
  }

  void find(const int32_t* ids, int64_t begin, int64_t end, int32_t* nearest) {
    for (int64_t first = begin; first < end; first += kDotQueries) {
      find_together(ids + first, std::min(kDotQueries, end - first), nearest + first);
    }
  }

 private:
  void find_together(const int32_t* ids, int64_t count, int32_t* nearest) {
    int32_t sums[kDotQueries];
    for (int64_t i = 0; i < count; ++i) {
      sums[i] = rows_.sums[static_cast<size_t>(ids[i])];
      std::memcpy(gathered_[static_cast<size_t>(i * rows_.stride / kLineBytes)].of,
                  rows_.row(ids[i]), static_cast<size_t>(rows_.stride));
    }
    const Lanes lowest = all_lanes(-std::numeric_limits<float>::infinity());
    LaneBest best[kDotQueries];
    for (LaneBest& each : best) each = LaneBest{lowest, LaneInts{}};
    const DotQueries queries{gathered_[0].of, rows_.stride, count, step_count(rows_.depth), sums};
    const DotKernel& kernel = dot_kernel(isa_, count);
    kernel.enter(queries);
    for (int64_t tile = 0; tile < centroids_.tiles(); ++tile) {
      kernel.dots(centroids_.tile(tile), queries, dots_[0].of);
      for (int64_t i = 0; i < count; ++i) {
        keep_(dots_[static_cast<size_t>(i * kTileBlocks)].of, centroids_.terms(tile),
              rows_.scales[static_cast<size_t>(ids[i])], static_cast<int32_t>(tile * kTileBlocks),
              best[i]);
      }
    }
    kernel.leave();
    for (int64_t i = 0; i < count; ++i) nearest[i] = place(best[i]);
  }

  // The first of the best of all lanes.
  static int32_t place(const LaneBest& best) {
    float score = best.score[0];
    for (int lane = 1; lane < kBlockRows; ++lane) {
      score = best.score[lane] > score ? best.score[lane] : score;
    }
    int32_t found = std::numeric_limits<int32_t>::max();
    for (int lane = 0; lane < kBlockRows; ++lane) {
      const int32_t at = best.block[lane] * kBlockRows + lane;
      if (best.score[lane] == score) found = std::min(found, at);
    }
    return found;
  }

  const QuantisedRows& rows_;
  const Centroids& centroids_;
  const Isa isa_;
  void (*keep_)(const int32_t*, const BlockTerms*, float, int32_t, LaneBest&);
  std::vector<DotLine> dots_;
  std::vector<RowLine> gathered_;
};

class Lloyd {
 public:
  Lloyd(const float* weight, const QuantisedRows& rows, const Executor& executor, Isa isa)
      : weight_(weight), rows_(rows), executor_(executor), isa_(isa) {}

  void assign(const Rows& ids, const Centroids& centroids, std::vector<int32_t>& clusters) const {
    clusters.resize(ids.size());
    parallel_for(executor_, std::ssize(ids), 1024, [&](int64_t begin, int64_t end) {
      Nearest(rows_, centroids, isa_).find(ids.data(), begin, end, clusters.data());
    });
  }

  // A cluster without rows keeps its centroid.
  void update(const Rows& ids, const std::vector<int32_t>& clusters, Centroids& centroids) const {
    const Members members(clusters, centroids.count());
    parallel_for(executor_, centroids.count(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        average(ids, members, c, centroids.mean(c));
      }
    });
    centroids.pack(isa_);
  }

  // Clusters of ids after some rounds that start at as many of the rows, drawn at random.
  std::vector<int32_t> run(const Rows& ids, int64_t count, int64_t rounds, uint64_t seed,
                           Centroids& centroids) const {
    const Rows first = draw(ids, count, seed);
    for (int64_t c = 0; c < count; ++c) {
      std::copy_n(weight_ + first[static_cast<size_t>(c)] * rows_.depth, rows_.depth,
                  centroids.mean(c));
    }
    centroids.pack(isa_);
    std::vector<int32_t> clusters;
    for (int64_t round = 0; round < rounds; ++round) {
      assign(ids, centroids, clusters);
      update(ids, clusters, centroids);
    }
    assign(ids, centroids, clusters);
    return clusters;
  }

  // count <= ids.size() of them, ascending, by Floyd's sampling without replacement.
  static Rows draw(const Rows& ids, int64_t count, uint64_t seed) {
    const int64_t size = std::ssize(ids);
    std::vector<bool> taken(ids.size());
    for (int64_t i = size - count; i < size; ++i) {
      const uint64_t bits = random_bits(seed, 0, static_cast<uint64_t>(i));
      const auto at = static_cast<size_t>(below(bits, static_cast<uint64_t>(i + 1)));
      taken[taken[at] ? static_cast<size_t>(i) : at] = true;
    }
    Rows drawn;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (taken[i]) drawn.push_back(ids[i]);
    }
    return drawn;
  }

 private:
  void average(const Rows& ids, const Members& members, int64_t cluster, float* mean) const {
    const std::span<const int32_t> places = members[cluster];
    if (places.empty()) return;
    std::fill_n(mean, rows_.depth, 0.0f);
    const float part = 1 / static_cast<float>(places.size());
    for (int32_t place : places) {
      const float* row = weight_ + ids[static_cast<size_t>(place)] * rows_.depth;
      for (int64_t j = 0; j < rows_.depth; ++j) mean[j] += row[j] * part;
    }
  }

  const float* weight_;
  const QuantisedRows& rows_;
  const Executor& executor_;
  const Isa isa_;
};

// `count` shares for groups of these sizes, in proportion, each at least 1 and at most its size.
std::vector<int64_t> shares(const Members& groups, int64_t count) {
  const auto size = static_cast<double>(groups.total());
  std::vector<int64_t> result;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const int64_t rows = std::ssize(groups[g]);
    const auto fair = static_cast<int64_t>(static_cast<double>(count) * rows / size);
    result.push_back(std::clamp<int64_t>(fair, std::min<int64_t>(rows, 1), rows));
  }
  return result;
}

// Numbers clusters anew, in order, without those that are empty.
void close_gaps(std::vector<int32_t>& clusters, int64_t count) {
  std::vector<int32_t> number(static_cast<size_t>(count));
  for (int32_t cluster : clusters) number[static_cast<size_t>(cluster)] = 1;
  std::exclusive_scan(number.begin(), number.end(), number.begin(), 0);
  for (int32_t& cluster : clusters) cluster = number[static_cast<size_t>(cluster)];
}

}  // namespace

Members::Members(const std::vector<int32_t>& clusters, int64_t count)
    : offsets_(static_cast<size_t>(count) + 1) {
  for (int32_t cluster : clusters) ++offsets_[static_cast<size_t>(cluster) + 1];
  std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
  places_.resize(clusters.size());
  std::vector<int64_t> next(offsets_.begin(), offsets_.end() - 1);
  for (size_t i = 0; i < clusters.size(); ++i) {
    int64_t& at = next[static_cast<size_t>(clusters[i])];
    places_[static_cast<size_t>(at++)] = static_cast<int32_t>(i);
  }
}

QuantisedRows quantise_rows(const float* weight, int64_t rows, int64_t depth,
                            const Executor& executor, Isa isa) {
  QuantisedRows result;
  result.count = rows;
  result.depth = depth;
  result.stride = ceil_div(step_count(depth) * kBlockDepth, kLineBytes) * kLineBytes;
  result.values.resize(static_cast<size_t>(rows * result.stride));
  result.sums.resize(static_cast<size_t>(rows));
  result.scales.resize(static_cast<size_t>(rows));
  result.errors.resize(static_cast<size_t>(rows));
  parallel_for(executor, rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* source = weight + row * depth;
      bool finite = true;
      for (int64_t j = 0; j < depth; ++j) finite &= std::isfinite(source[j]);
      if (!finite) {
        throw std::invalid_argument("row " + std::to_string(row) +
                                    " of the weight holds NaN or infinity");
      }
      int8_t* target = result.values.data() + row * result.stride;
      result.errors[static_cast<size_t>(row)] =
          round_up(quantise(source, depth, &result.scales[static_cast<size_t>(row)], target, isa));
      result.sums[static_cast<size_t>(row)] = std::accumulate(target, target + depth, 0);
    }
  });
  return result;
}

std::vector<int32_t> cluster_rows(const float* weight, const QuantisedRows& rows,
                                  const ClusterOptions& options, const Executor& executor,
                                  Progress progress, Isa isa) {
  const int64_t count = std::min(options.clusters, rows.count);
  Rows all(static_cast<size_t>(rows.count));
  std::iota(all.begin(), all.end(), 0);
  const Lloyd lloyd(weight, rows, executor, isa);

  const auto coarse_count = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count))));
  const int64_t sample = std::min(rows.count, coarse_count * kSamplePerCoarse);
  Centroids coarse(coarse_count, rows.depth);
  lloyd.run(Lloyd::draw(all, sample, random_bits(options.seed, 1, 0)), coarse_count,
            options.coarse_rounds, random_bits(options.seed, 1, 1), coarse);
  progress(0.05);
  std::vector<int32_t> clusters;
  lloyd.assign(all, coarse, clusters);
  progress(0.1);

  const Members groups(clusters, coarse_count);
  const std::vector<int64_t> parts = shares(groups, count);
  std::vector<int64_t> first(parts.size() + 1);
  std::partial_sum(parts.begin(), parts.end(), first.begin() + 1);
  Centroids fine(first.back(), rows.depth);
  // A few groups at a time, so that progress is told by this thread.
  const int64_t together = std::max<int64_t>(1, std::min<int64_t>(coarse_count / 8, 64));
  for (int64_t begin = 0; begin < coarse_count; begin += together) {
    const int64_t end = std::min(begin + together, coarse_count);
    parallel_for(executor, end - begin, 1, [&](int64_t from, int64_t to) {
      const SerialExecutor serial;
      const Lloyd alone(weight, rows, serial, isa);
      for (int64_t g = begin + from; g < begin + to; ++g) {
        const auto at = static_cast<size_t>(g);
        if (parts[at] == 0) continue;
        const Rows ids(groups[g].begin(), groups[g].end());
        Centroids own(parts[at], rows.depth);
        const std::vector<int32_t> found =
            alone.run(ids, parts[at], options.fine_rounds,
                      random_bits(options.seed, 2, static_cast<uint64_t>(g)), own);
        for (size_t i = 0; i < ids.size(); ++i) {
          clusters[static_cast<size_t>(ids[i])] = static_cast<int32_t>(first[at]) + found[i];
        }
        std::copy_n(own.mean(0), parts[at] * rows.depth, fine.mean(first[at]));
      }
    });
    progress(0.1 + 0.5 * static_cast<double>(end) / static_cast<double>(coarse_count));
  }

  for (int64_t round = 0; round < options.joint_rounds; ++round) {
    lloyd.update(all, clusters, fine);
    lloyd.assign(all, fine, clusters);
    progress(0.6 +
             0.35 * static_cast<double>(round + 1) / static_cast<double>(options.joint_rounds));
  }
  close_gaps(clusters, fine.count());
  return clusters;
}

}  // namespace qcompile
