#include "index/build_cells.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/cell_groups.h"
#include "index/layout.h"

namespace qcompile {
namespace {

// Means of the rows of each cluster [count, depth], summed in the order of the rows.
std::vector<float> means_of(const Dense& dense, const std::vector<int32_t>& clusters, int64_t count,
                            const Executor& executor) {
  const Members members(clusters, count);
  std::vector<float> means(static_cast<size_t>(count * dense.depth));
  parallel_for(executor, count, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(dense.depth));
    for (int64_t c = begin; c < end; ++c) {
      std::ranges::fill(sums, 0.0);
      const std::span<const int32_t> rows = members[c];
      for (int32_t row : rows) {
        const float* values = dense.weight + row * dense.depth;
        for (int64_t j = 0; j < dense.depth; ++j) sums[static_cast<size_t>(j)] += values[j];
      }
      for (double& sum : sums) sum /= static_cast<double>(rows.size());
      std::ranges::copy(sums, means.begin() + c * dense.depth);
    }
  });
  return means;
}

class Layout {
 public:
  // means: of the clusters [count, depth].
  Layout(const Dense& dense, const QuantisedRows& rows, const std::vector<int32_t>& clusters,
         const std::vector<float>& means, const CellGroups& groups, BuiltCells& out)
      : dense_(dense), rows_(rows), out_(out) {
    out.cells = groups.cells;
    out.group_offsets = groups.offsets;
    std::vector<int64_t> sizes(static_cast<size_t>(out.cells));
    for (int32_t of : clusters) ++sizes[number(groups, of)];
    out.offsets.push_back(0);
    for (int64_t size : sizes) {
      out.offsets.push_back(out.offsets.back() + static_cast<uint32_t>(block_count(size)));
    }
    out.blocks = out.offsets.back();
    out.row_ids.assign(static_cast<size_t>(out.blocks * kBlockRows), -1);
    std::vector<int64_t> at;
    for (int64_t cell = 0; cell < out.cells; ++cell) at.push_back(first_place(cell));
    for (size_t row = 0; row < clusters.size(); ++row) {
      out.row_ids[static_cast<size_t>(at[number(groups, clusters[row])]++)] =
          static_cast<int32_t>(row);
    }
    out.packed.resize(static_cast<size_t>(out.blocks * step_count(dense.depth) * kStepBytes));
    out.scale.resize(out.row_ids.size());
    out.error.resize(out.row_ids.size());
    out.cell_bias.resize(sizes.size());
    out.cell_spread.resize(sizes.size());
    means_.resize(static_cast<size_t>(out.cells * dense.depth));
    for (size_t c = 0; c < groups.number.size(); ++c) {
      std::copy_n(means.begin() + static_cast<int64_t>(c) * dense.depth, dense.depth,
                  means_.begin() + groups.number[c] * dense.depth);
    }
    out.group_bias.resize(groups.offsets.size() - 1);
    out.group_spread.resize(out.group_bias.size());
    group_means_.resize(out.group_bias.size() * static_cast<size_t>(dense.depth));
  }

  void fill(int64_t cell) {
    for (int64_t place = first_place(cell); place < first_place(cell + 1); ++place) {
      const int32_t id = out_.row_ids[static_cast<size_t>(place)];
      if (id >= 0) put(place, id);
    }
    describe(cell);
  }

  // After all cells.
  void fill_group(size_t group) {
    const int64_t first = int64_t{out_.group_offsets[group]} * kBlockRows;
    const int64_t end = int64_t{out_.group_offsets[group + 1]} * kBlockRows;
    const auto each = [&](auto&& body) {
      for (int64_t cell = first; cell < end; ++cell) {
        if (first_place(cell) == first_place(cell + 1)) continue;
        body(means_.data() + cell * dense_.depth, out_.cell_bias[static_cast<size_t>(cell)]);
      }
    };
    std::vector<double> mean(static_cast<size_t>(dense_.depth));
    double cells = 0, bias = 0, squares = 0, bias_squares = 0;
    each([&](const float* values, float b) {
      ++cells;
      bias += b;
      for (int64_t j = 0; j < dense_.depth; ++j) mean[static_cast<size_t>(j)] += values[j];
    });
    bias /= cells;
    for (double& value : mean) value /= cells;
    each([&](const float* values, float b) {
      bias_squares += (b - bias) * (b - bias);
      squares += squares_apart(values, mean.data());
    });
    std::ranges::copy(mean, group_means_.begin() + static_cast<int64_t>(group) * dense_.depth);
    out_.group_bias[group] =
        static_cast<float>(std::min(bias + std::sqrt(bias_squares / cells),
                                    static_cast<double>(std::numeric_limits<float>::max())));
    out_.group_spread[group] =
        static_cast<float>(std::sqrt(squares / (cells * static_cast<double>(dense_.depth))));
  }

  const float* means() const { return means_.data(); }
  const float* group_means() const { return group_means_.data(); }

 private:
  static size_t number(const CellGroups& groups, int32_t cluster) {
    return static_cast<size_t>(groups.number[static_cast<size_t>(cluster)]);
  }

  int64_t first_place(int64_t cell) const {
    return int64_t{out_.offsets[static_cast<size_t>(cell)]} * kBlockRows;
  }

  template <typename Mean>
  double squares_apart(const float* values, const Mean* mean) const {
    double squares = 0;
    for (int64_t j = 0; j < dense_.depth; ++j) {
      const double apart = static_cast<double>(values[j]) - mean[j];
      squares += apart * apart;
    }
    return squares;
  }

  void put(int64_t place, int32_t id) {
    const int64_t block = place / kBlockRows, lane = place % kBlockRows;
    int8_t* target = out_.packed.data() + block * step_count(dense_.depth) * kStepBytes;
    const int8_t* source = rows_.row(id);
    for (int64_t j = 0; j < dense_.depth; ++j) {
      target[j / kBlockDepth * kStepBytes + lane * kBlockDepth + j % kBlockDepth] = source[j];
    }
    out_.scale[static_cast<size_t>(place)] = rows_.scales[static_cast<size_t>(id)];
    out_.error[static_cast<size_t>(place)] = rows_.errors[static_cast<size_t>(id)];
  }

  void describe(int64_t cell) {
    const float* mean = means_.data() + cell * dense_.depth;
    double bias = 0, squares = 0;
    int64_t rows = 0, finite = 0;
    for (int64_t place = first_place(cell); place < first_place(cell + 1); ++place) {
      const int32_t id = out_.row_ids[static_cast<size_t>(place)];
      if (id < 0) continue;
      ++rows;
      squares += squares_apart(dense_.weight + id * dense_.depth, mean);
      if (!std::isfinite(dense_.bias[id])) continue;
      ++finite;
      bias += dense_.bias[id];
    }
    const auto at = static_cast<size_t>(cell);
    out_.cell_bias[at] = std::numeric_limits<float>::lowest();
    if (rows == 0) return;
    out_.cell_bias[at] =
        static_cast<float>(bias / static_cast<double>(std::max<int64_t>(finite, 1)));
    out_.cell_spread[at] =
        static_cast<float>(std::sqrt(squares / static_cast<double>(rows * dense_.depth)));
  }

  const Dense& dense_;
  const QuantisedRows& rows_;
  BuiltCells& out_;
  std::vector<float> means_, group_means_;
};

// Packs centroids [count, depth].
void pack_centroids(const float* means, int64_t count, int64_t depth, std::vector<int8_t>& packed,
                    std::vector<float>& scale, const Executor& executor) {
  packed.resize(static_cast<size_t>(block_count(count) * step_count(depth) * kStepBytes));
  scale.resize(static_cast<size_t>(count));
  std::vector<float> unused(scale.size());
  pack_rows(means, count, depth, packed.data(), scale.data(), unused.data(), executor);
}

}  // namespace

BuiltCells build_cells(const Dense& dense, const ClusterOptions& options, const Executor& executor,
                       Progress progress, Isa isa) {
  const QuantisedRows rows = quantise_rows(dense.weight, dense.rows, dense.depth, executor, isa);
  const std::vector<int32_t> clusters =
      cluster_rows(dense.weight, rows, options, executor, progress, isa);
  const int64_t count = *std::ranges::max_element(clusters) + 1;
  const std::vector<float> means = means_of(dense, clusters, count, executor);
  const CellGroups groups =
      group_cells(means.data(), count, dense.depth, options.seed, executor, isa);
  BuiltCells out;
  Layout layout(dense, rows, clusters, means, groups, out);
  parallel_for(executor, out.cells, 16, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) layout.fill(cell);
  });
  for (size_t group = 0; group < out.group_bias.size(); ++group) layout.fill_group(group);
  pack_centroids(layout.means(), out.cells, dense.depth, out.centroids, out.centroid_scale,
                 executor);
  pack_centroids(layout.group_means(), std::ssize(out.group_bias), dense.depth, out.group_centroids,
                 out.group_scale, executor);
  progress(1);
  return out;
}

}  // namespace qcompile
