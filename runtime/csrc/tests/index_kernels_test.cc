// Every instruction set computes what the scalar kernels compute, bit for bit, within its buffers.
#include <bit>
#include <cstring>
#include <limits>

#include "index/dense.h"
#include "index/dot_int8.h"
#include "index/exponential.h"
#include "index/flat_queries.h"
#include "index/rescore.h"
#include "index/scan.h"
#include "index/scan_kernels.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void test_dot_products(int64_t rows, int64_t depth, int64_t count, Kept kept) {
  const TestLayer layer(rows, depth, 7, kept);
  const std::vector<float> x = normal_values(count * depth, 8);
  QueryGroup group;
  group.encode(*layer.head, x.data(), count, Isa::kScalar);
  const DotQueries queries = group.dots(0, count);
  const int64_t room = ceil_div(count, kDotGroup) * kDotGroup;
  const auto run = [&](const DotKernel& kernel, Isa isa, bool rough) {
    std::vector<int32_t> all, dots(static_cast<size_t>(room * kTileRows));
    std::vector<int8_t> merged(static_cast<size_t>(layer.head->merged_bytes()));
    kernel.enter(queries);
    for (int64_t i = 0; i < layer.head->tiles(); ++i) {
      const Tile tile = layer.head->tile(i);
      if (rough) {
        kernel.rough_dots(tile.high, queries, dots.data());
      } else {
        layer.head->merge(tile, merged.data(), isa);
        kernel.dots(merged.data(), queries, dots.data());
      }
      all.insert(all.end(), dots.begin(), dots.begin() + count * kTileRows);
    }
    kernel.leave();
    return all;
  };
  for (bool rough : {false, true}) {
    const auto expected = run(kDotScalar, Isa::kScalar, rough);
    for (Isa isa : supported_isas()) EXPECT(run(dot_kernel(isa, count), isa, rough) == expected);
  }
  // Without a plane of low halves, rows are the rough ones.
  if (kept == Kept::kBFloat16) {
    EXPECT(run(kDotScalar, Isa::kScalar, false) == run(kDotScalar, Isa::kScalar, true));
  }
}

void test_extreme_dot_products() {
  // The largest sums there are: nothing may saturate.
  constexpr int64_t kDepth = 1000;
  const int64_t steps = step_count(kDepth), bytes = steps * kStepBytes;
  std::vector<int8_t> rows(static_cast<size_t>(kTileBlocks * bytes));
  std::vector<uint8_t> high(static_cast<size_t>(kTileBlocks * plane_bytes(kDepth)));
  for (int64_t i = 0; i < std::ssize(rows); ++i) {
    const int64_t lane = i / kBlockDepth % kBlockRows;
    const int sign = lane % 2 ? 1 : (i % 2 ? -1 : 1);
    rows[static_cast<size_t>(i)] = static_cast<int8_t>(lane < 2 ? 127 * sign : -128);
  }
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    split_block(rows.data() + b * bytes, steps, high.data() + b * plane_bytes(kDepth), nullptr);
  }
  std::vector<int8_t> x(16 * 1024);
  int32_t sum = 0;
  for (size_t i = 0; i < kDepth; ++i) sum += x[i] = i % 3 ? 127 : -127;
  const DotQueries queries{x.data(), 1024, 1, steps, &sum};
  for (Isa isa : supported_isas()) {
    const DotKernel& kernel = isa == Isa::kAmx ? kDotAmx : dot_kernel(isa, 1);
    int32_t expected[kTileRows], found[16 * kTileRows];
    kernel.enter(queries);
    kDotScalar.dots(rows.data(), queries, expected);
    kernel.dots(rows.data(), queries, found);
    EXPECT(std::memcmp(found, expected, sizeof expected) == 0);
    kDotScalar.rough_dots(high.data(), queries, expected);
    kernel.rough_dots(high.data(), queries, found);
    EXPECT(std::memcmp(found, expected, sizeof expected) == 0);
    kernel.leave();
  }
}

void test_planes(int64_t rows, int64_t depth) {
  const TestLayer layer(rows, depth, 9);
  const int64_t steps = layer.head->steps(), bytes = plane_bytes(depth);
  for (int64_t block = 0; block < block_count(rows); ++block) {
    const uint8_t *high = layer.high.data() + block * bytes,
                  *low = layer.low.data() + block * bytes;
    std::vector<int8_t> values(static_cast<size_t>(2 * bytes)), rough = values;
    merge_planes(high, low, bytes, values.data(), Isa::kScalar);
    merge_planes(high, nullptr, bytes, rough.data(), Isa::kScalar);
    std::vector<uint8_t> again_high(static_cast<size_t>(bytes)), again_low = again_high;
    split_block(values.data(), steps, again_high.data(), again_low.data());
    EXPECT(std::equal(again_high.begin(), again_high.end(), high));
    EXPECT(std::equal(again_low.begin(), again_low.end(), low));
    RowSums expected[kBlockRows] = {};
    for (size_t i = 0; i < values.size(); ++i) {
      const int difference = values[i] - rough[i];
      EXPECT(difference >= -8 && difference <= 7 && (rough[i] + kRoughOffset) % 16 == 0);
      RowSums& sums = expected[i / kBlockDepth % kBlockRows];
      sums.squares += values[i] * values[i];
      sums.rough_squares += rough[i] * rough[i];
      sums.difference += difference * difference;
    }
    for (Isa isa : supported_isas()) {
      std::vector<int8_t> merged(values.size());
      merge_planes(high, low, bytes, merged.data(), isa);
      EXPECT(merged == values);
      merge_planes(high, nullptr, bytes, merged.data(), isa);
      EXPECT(merged == rough);
      RowSums found[kBlockRows];
      sum_block(values.data(), steps, found, isa);
      EXPECT(std::memcmp(found, expected, sizeof expected) == 0);
    }
  }
}

void test_scan_kernels(int64_t rows, float bias) {
  TestLayer layer(rows, 20, 3);
  layer.bias[static_cast<size_t>(rows / 2)] = bias;
  const Head head(layer.dense, layer.packed(), SerialExecutor());
  const std::vector<float> x = normal_values(5 * 20, 4);
  QueryGroup group;
  group.encode(head, x.data(), 5, Isa::kScalar);
  std::vector<int32_t> dots(16 * kTileRows);
  const std::vector<float> widths(5, 0.25f), bars{-kInfinity, 0, 1.5f, 3, kInfinity};
  for (int64_t i = 0; i < head.tiles(); ++i) {
    const Tile tile = head.tile(i);
    std::vector<int8_t> merged(static_cast<size_t>(head.merged_bytes()));
    head.merge(tile, merged.data(), Isa::kScalar);
    kDotScalar.dots(merged.data(), group.dots(0, 5), dots.data());
    const auto run = [&](const ScanKernels& kernels) {
      std::vector<uint64_t> reached(5);
      uint64_t any = kernels.reach(tile, {dots.data(), group.scales(0), widths.data(), 5},
                                   bars.data(), reached.data());
      for (size_t q = 0; q < 5; ++q) {
        if (!(any >> q & 1)) reached[q] = 0;
        for (int64_t row = 0; row < tile.rows; ++row) {
          const float dot = static_cast<float>(dots[q * kTileRows + static_cast<size_t>(row)]);
          const float upper = (dot * group.scales(0)[q] + 0.25f) * tile.scale[row] + tile.bias[row];
          // Roundings differ; the bound allows for it.
          if (std::fabs(upper - bars[q]) < 1e-5f) continue;
          EXPECT((reached[q] >> row & 1) == !(upper < bars[q]));
        }
      }
      std::vector<float> scores(kTileRows + kBlockRows + 1);
      const TileDots query{dots.data(), group[0].scale, 0.25f};
      scores.back() = kernels.scores(tile, query, scores.data(), scores.data() + kTileRows);
      std::vector<uint32_t> all;
      for (float value : scores) {
        all.push_back(std::isnan(value) ? 0x7FC00000 : std::bit_cast<uint32_t>(value));
      }
      return all;
    };
    const auto expected = run(kScanScalar);
    if (supported(Isa::kAvx2)) EXPECT(run(kScanAvx2) == expected);
    if (supported(Isa::kAvx512)) EXPECT(run(kScanAvx512) == expected);
  }
}

// Scores of rows in each form, against double precision.
void test_scores(int64_t rows, int64_t depth, Kept kept) {
  const TestLayer layer(rows, depth, 13, kept);
  const std::vector<float> x = normal_values(depth, 14);
  const std::vector<double> wide(x.begin(), x.end());
  for (int64_t row = 0; row < rows; ++row) {
    double expected = layer.bias[static_cast<size_t>(row)];
    for (int64_t j = 0; j < depth; ++j) {
      const auto at = static_cast<size_t>(row * depth + j);
      const double scale = layer.scale[static_cast<size_t>(row)];
      const double w = kept == Kept::kPacked
                           ? scale * std::nearbyint(static_cast<double>(layer.weight[at]) / scale)
                           : static_cast<double>(layer.weight[at]);
      expected += w * wide[static_cast<size_t>(j)];
    }
    const float scalar = score_kernel(Isa::kScalar)(layer.head->dense(), row, wide.data());
    EXPECT(std::fabs(static_cast<double>(scalar) - expected) < 1e-5);
    prefetch_row(layer.head->dense(), row);
    for (Isa isa : supported_isas()) {
      EXPECT(score_kernel(isa)(layer.head->dense(), row, wide.data()) == scalar);
    }
  }
}

void test_fp32_kernels(int64_t rows, int64_t depth, int64_t count) {
  const TestLayer layer(rows, depth, 11);
  const std::vector<float> x = normal_values(count * depth, 12);
  std::vector<std::vector<float>> results;
  for (Isa isa : supported_isas()) {
    std::vector<float> scores(static_cast<size_t>(count * rows));
    std::vector<const float*> hidden;
    std::vector<float*> targets;
    for (int64_t i = 0; i < count; ++i) {
      hidden.push_back(x.data() + i * depth);
      targets.push_back(scores.data() + i * rows);
    }
    DenseQueries queries;
    queries.assign(hidden, depth);
    dense_scores(layer.dense, queries, 0, rows, targets, isa);
    const std::vector<double> wide(x.begin(), x.begin() + depth);
    for (int64_t row = 0; row < rows; ++row) {
      scores.push_back(score_kernel(isa)(layer.dense, row, wide.data()));
      EXPECT(std::fabs(scores.back() - scores[static_cast<size_t>(row)]) < 1e-3f);
    }
    results.push_back(scores);
    EXPECT(results.back() == results.front());
  }
}

void test_flat_queries() {
  constexpr int64_t kRows = 5000, kDepth = 24, kCount = 16;
  const TestLayer layer(kRows, kDepth, 3);
  std::vector<float> x = normal_values(kCount * kDepth, 4);
  for (int64_t q = 0; q < kCount; ++q) {  // every other one is peaked
    for (int64_t j = 0; j < kDepth; ++j)
      x[static_cast<size_t>(q * kDepth + j)] *= q % 2 ? 20 : 0.01f;
  }
  x.back() = std::nanf("");
  for (Isa isa : supported_isas()) {
    const std::vector<char> flat = find_flat(*layer.head, x.data(), kCount, 4, isa);
    for (int64_t q = 0; q < kCount; ++q) EXPECT(flat[static_cast<size_t>(q)] == (q % 2 == 0));
  }
  const TestLayer small(500, kDepth, 3);
  EXPECT(find_flat(*small.head, x.data(), 1, 4, Isa::kScalar) == std::vector<char>{0});
  EXPECT(log_least_share(1000) == log_least_share(1 << 16));
  EXPECT(log_least_share(1 << 20) < log_least_share(1 << 17));
}

void test_exponentials() {
  for (int64_t count : {1, 15, 16, 17, 300, 1000}) {
    std::vector<std::vector<float>> results;
    for (Isa isa : supported_isas()) {
      std::vector<float> values = normal_values(count, 5, 30);
      values[0] = -std::numeric_limits<float>::infinity();
      const std::vector<float> weights(static_cast<size_t>(count / 16 + 1), 0.5f);
      const float most = greatest(values.data(), count, isa);
      const WeightedSums sums =
          weighted_exponentials(values.data(), count, count > 1 ? most : 0, weights.data(), isa);
      EXPECT(std::fabs(sums.weighted - sums.plain / 2) <= 1e-6 * sums.plain);
      EXPECT(values[0] == 0);
      scale_values(values.data(), count, 3, isa);
      values.push_back(static_cast<float>(sums.plain));
      results.push_back(values);
      EXPECT(results.back() == results.front());
    }
  }
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  for (int64_t rows : {1, 16, 17, 150, 256}) {
    for (int64_t depth : {1, 4, 63, 64, 65, 120, 200}) {
      for (int64_t count : {1, 3, 4, 5, 16, 21, 40, 64}) {
        for (Kept kept : {Kept::kFloat32, Kept::kBFloat16}) {
          test_dot_products(rows, depth, count, kept);
        }
      }
      test_planes(rows, depth);
    }
  }
  test_extreme_dot_products();
  for (int64_t rows : {1, 15, 16, 100, 256}) {
    for (float bias : {0.0f, kInfinity, -kInfinity, std::nanf("")}) test_scan_kernels(rows, bias);
  }
  for (int64_t rows : {1, 31, 32, 33, 70}) {
    for (int64_t depth : {1, 7, 8, 9, 16, 33}) {
      for (int64_t count : {1, 3, 4, 12, 13, 30}) test_fp32_kernels(rows, depth, count);
    }
  }
  // Several blocks of panels, whole and cut off; and panels larger than a block.
  test_fp32_kernels(1100, 100, 13);
  test_fp32_kernels(65, 2100, 5);
  for (Kept kept : {Kept::kFloat32, Kept::kBFloat16, Kept::kPacked}) {
    for (int64_t depth : {1, 7, 8, 16, 33, 100}) test_scores(70, depth, kept);
  }
  test_flat_queries();
  test_exponentials();
}
