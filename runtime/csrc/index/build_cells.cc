#include "index/build_cells.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "index/layout.h"

namespace qcompile {
namespace {

class Layout {
 public:
  Layout(const Dense& dense, const QuantisedRows& rows, const std::vector<int32_t>& clusters,
         BuiltCells& out)
      : dense_(dense), rows_(rows), out_(out) {
    out.cells = *std::ranges::max_element(clusters) + 1;
    std::vector<int64_t> sizes(static_cast<size_t>(out.cells));
    for (int32_t cell : clusters) ++sizes[static_cast<size_t>(cell)];
    out.offsets.push_back(0);
    for (int64_t size : sizes) {
      out.offsets.push_back(out.offsets.back() + static_cast<uint32_t>(block_count(size)));
    }
    out.blocks = out.offsets.back();
    out.row_ids.assign(static_cast<size_t>(out.blocks * kBlockRows), -1);
    std::vector<int64_t> at;
    for (int64_t cell = 0; cell < out.cells; ++cell) at.push_back(first_place(cell));
    for (size_t row = 0; row < clusters.size(); ++row) {
      out.row_ids[static_cast<size_t>(at[static_cast<size_t>(clusters[row])]++)] =
          static_cast<int32_t>(row);
    }
    out.packed.resize(static_cast<size_t>(out.blocks * step_count(dense.depth) * kStepBytes));
    out.scale.resize(out.row_ids.size());
    out.error.resize(out.row_ids.size());
    out.centroid_scale.resize(sizes.size());
    out.cell_bias.resize(sizes.size());
    out.cell_spread.resize(sizes.size());
    means_.resize(static_cast<size_t>(out.cells * dense.depth));
  }

  void fill(int64_t cell, Isa isa) {
    for (int64_t place = first_place(cell); place < first_place(cell + 1); ++place) {
      const int32_t id = out_.row_ids[static_cast<size_t>(place)];
      if (id >= 0) put(place, id);
    }
    describe(cell, isa);
  }

  const float* means() const { return means_.data(); }

 private:
  int64_t first_place(int64_t cell) const {
    return int64_t{out_.offsets[static_cast<size_t>(cell)]} * kBlockRows;
  }

  void put(int64_t place, int32_t id) {
    const int64_t block = place / kBlockRows, lane = place % kBlockRows;
    int8_t* target = out_.packed.data() + block * step_count(dense_.depth) * kStepBytes;
    const uint8_t* source = rows_.row(id);
    for (int64_t j = 0; j < dense_.depth; ++j) {
      target[j / kBlockDepth * kStepBytes + lane * kBlockDepth + j % kBlockDepth] =
          static_cast<int8_t>(source[j] ^ 0x80);
    }
    out_.scale[static_cast<size_t>(place)] = rows_.scales[static_cast<size_t>(id)];
    out_.error[static_cast<size_t>(place)] = rows_.errors[static_cast<size_t>(id)];
  }

  void describe(int64_t cell, Isa) {
    std::vector<double> mean(static_cast<size_t>(dense_.depth));
    double bias = 0;
    int64_t rows = 0, finite = 0;
    const auto each = [&](auto&& body) {
      for (int64_t place = first_place(cell); place < first_place(cell + 1); ++place) {
        const int32_t id = out_.row_ids[static_cast<size_t>(place)];
        if (id >= 0) body(dense_.weight + id * dense_.depth, dense_.bias[id]);
      }
    };
    each([&](const float* row, float b) {
      ++rows;
      for (int64_t j = 0; j < dense_.depth; ++j) mean[static_cast<size_t>(j)] += row[j];
      if (!std::isfinite(b)) return;
      ++finite;
      bias += b;
    });
    for (double& value : mean) value /= static_cast<double>(rows);
    double squares = 0;
    each([&](const float* row, float) {
      for (int64_t j = 0; j < dense_.depth; ++j) {
        const double apart = row[j] - mean[static_cast<size_t>(j)];
        squares += apart * apart;
      }
    });
    std::ranges::copy(mean, means_.begin() + cell * dense_.depth);
    const auto at = static_cast<size_t>(cell);
    out_.cell_bias[at] =
        static_cast<float>(bias / static_cast<double>(std::max<int64_t>(finite, 1)));
    out_.cell_spread[at] =
        static_cast<float>(std::sqrt(squares / static_cast<double>(rows * dense_.depth)));
  }

  const Dense& dense_;
  const QuantisedRows& rows_;
  BuiltCells& out_;
  std::vector<float> means_;
};

}  // namespace

BuiltCells build_cells(const Dense& dense, const ClusterOptions& options, const Executor& executor,
                       Progress progress, Isa isa) {
  const QuantisedRows rows = quantise_rows(dense.weight, dense.rows, dense.depth, executor, isa);
  const std::vector<int32_t> clusters =
      cluster_rows(dense.weight, rows, options, executor, progress, isa);
  BuiltCells out;
  Layout layout(dense, rows, clusters, out);
  parallel_for(executor, out.cells, 16, [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) layout.fill(cell, isa);
  });
  out.centroids.resize(
      static_cast<size_t>(block_count(out.cells) * step_count(dense.depth) * kStepBytes));
  std::vector<float> unused(static_cast<size_t>(out.cells));
  pack_rows(layout.means(), out.cells, dense.depth, out.centroids.data(), out.centroid_scale.data(),
            unused.data(), executor);
  progress(1);
  return out;
}

}  // namespace qcompile
