// Every instruction set computes what the scalar kernels compute, bit for bit, within its buffers.
#include <cstring>
#include <limits>

#include "index/dense.h"
#include "index/dot_int8.h"
#include "index/exponential.h"
#include "index/rescore.h"
#include "index/scan_kernels.h"
#include "tests/index_testing.h"

namespace qcompile {
namespace {

struct EncodedQueries {
  EncodedQueries(int64_t count, int64_t depth, unsigned seed)
      : stride(step_count(depth) * kBlockDepth), values(static_cast<size_t>(count * stride)) {
    const std::vector<float> x = normal_values(count * depth, seed);
    for (int64_t i = 0; i < count; ++i) {
      queries.push_back(
          encode(x.data() + i * depth, depth, values.data() + i * stride, Isa::kScalar));
    }
  }
  int64_t stride;
  std::vector<uint8_t> values;
  std::vector<Query> queries;
};

void test_dot_products(int64_t rows, int64_t depth, int64_t count) {
  const TestLayer layer(rows, depth, 7);
  const EncodedQueries queries(count, depth, 8);
  const int64_t blocks = block_count(rows);
  const DotTile tile{layer.packed.data(),   layer.head->figures(0), blocks, step_count(depth),
                     queries.values.data(), queries.stride,         count};
  std::vector<int32_t> expected(static_cast<size_t>(count * blocks * kBlockRows));
  dot_int8_scalar(tile, expected.data());
  for (Isa isa : supported_isas()) {
    std::vector<int32_t> found(expected.size());
    dot_kernel(isa, count)(tile, found.data());
    EXPECT(found == expected);
  }
}

void test_extreme_dot_products() {
  // The largest sums there are: nothing may saturate.
  constexpr int64_t kDepth = 1000;
  std::vector<int8_t> rows(static_cast<size_t>(step_count(kDepth) * kStepBytes));
  for (int lane = 0; lane < kBlockRows; ++lane) {
    for (int64_t i = 0; i < kDepth; ++i) {
      const int sign = lane % 2 ? 1 : (i % 2 ? -1 : 1);
      rows[static_cast<size_t>(i / 4 * kStepBytes + lane * 4 + i % 4)] =
          static_cast<int8_t>(lane < 2 ? 127 * sign : -128);
    }
  }
  std::vector<uint8_t> x(kDepth);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i % 3 ? 255 : 1;  // 127 and -127
  BlockFigures figures{};
  for (int lane = 0; lane < kBlockRows; ++lane) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kDepth; ++i) {
      sum += rows[static_cast<size_t>(i / 4 * kStepBytes + lane * 4 + i % 4)];
    }
    figures.correction[lane] = -128 * sum;
  }
  const DotTile tile{rows.data(), &figures, 1, step_count(kDepth), x.data(), kDepth, 1};
  int32_t expected[kBlockRows];
  dot_int8_scalar(tile, expected);
  for (Isa isa : supported_isas()) {
    int32_t found[kBlockRows];
    dot_kernel(isa, 1)(tile, found);
    EXPECT(std::memcmp(found, expected, sizeof found) == 0);
    if (!supported(Isa::kAmx)) continue;
    dot_int8_amx(tile, found);
    EXPECT(std::memcmp(found, expected, sizeof found) == 0);
  }
}

void test_scan_kernels(int64_t rows, float bias) {
  TestLayer layer(rows, 20, 3);
  layer.bias[static_cast<size_t>(rows / 2)] = bias;
  const Head head(layer.dense, {layer.packed.data(), layer.scale.data(), layer.error.data()},
                  SerialExecutor());
  const EncodedQueries queries(1, 20, 4);
  const int64_t blocks = block_count(rows);
  std::vector<int32_t> dots(static_cast<size_t>(blocks * kBlockRows));
  dot_int8_scalar({layer.packed.data(), head.figures(0), blocks, step_count(20),
                   queries.values.data(), queries.stride, 1},
                  dots.data());
  const ScoreTile tile{dots.data(), head.figures(0), blocks, queries.queries[0].scale};
  const std::vector<float> widths(static_cast<size_t>(blocks), 0.25f);
  const std::vector<float> bars(static_cast<size_t>(blocks), 1.5f);
  const auto run = [&](const ScanKernels& kernels) {
    std::vector<uint32_t> bits(static_cast<size_t>(blocks));
    std::vector<float> low(kTilePeaks), high(kTilePeaks), scores(dots.size() + 1);
    kernels.reach(tile, bars.data(), bits.data());
    kernels.low_peaks(tile, widths.data(), low.data());
    scores.back() = kernels.scores(tile, widths.data(), scores.data(), high.data());
    const uint64_t reached = kernels.peaks_reach(high.data(), 1.5f);
    std::vector<uint32_t> all = bits;
    for (const auto& values : {low, high, scores}) {
      for (float value : values) {
        uint32_t pattern;
        std::memcpy(&pattern, &value, sizeof pattern);
        all.push_back(std::isnan(value) ? 0x7FC00000 : pattern);
      }
    }
    all.push_back(static_cast<uint32_t>(reached));
    all.push_back(static_cast<uint32_t>(reached >> 32));
    return all;
  };
  const auto expected = run(kScanScalar);
  if (supported(Isa::kAvx2)) EXPECT(run(kScanAvx2) == expected);
  if (supported(Isa::kAvx512)) EXPECT(run(kScanAvx512) == expected);
}

void test_fp32_kernels(int64_t rows, int64_t depth, int64_t count) {
  const TestLayer layer(rows, depth, 11);
  const std::vector<float> x = normal_values(count * depth, 12);
  std::vector<std::vector<float>> results;
  for (Isa isa : supported_isas()) {
    std::vector<float> scores(static_cast<size_t>(count * rows));
    std::vector<DenseQuery> queries;
    for (int64_t i = 0; i < count; ++i) {
      queries.push_back({x.data() + i * depth, scores.data() + i * rows});
    }
    dense_scores(layer.dense, queries, 0, rows, isa);
    const std::vector<double> wide(x.begin(), x.begin() + depth);
    for (int64_t row = 0; row < rows; ++row) {
      scores.push_back(score_kernel(isa)(layer.dense, row, wide.data()));
      EXPECT(std::fabs(scores.back() - scores[static_cast<size_t>(row)]) < 1e-3f);
    }
    results.push_back(scores);
    EXPECT(results.back() == results.front());
  }
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
      for (int64_t count : {1, 3, 4, 5, 16, 21, 32}) test_dot_products(rows, depth, count);
    }
  }
  test_extreme_dot_products();
  const float infinity = std::numeric_limits<float>::infinity();
  for (int64_t rows : {1, 15, 16, 100, 256}) {
    for (float bias : {0.0f, infinity, -infinity, std::nanf("")}) test_scan_kernels(rows, bias);
  }
  for (int64_t rows : {1, 31, 32, 33, 70}) {
    for (int64_t depth : {1, 7, 8, 9, 16, 33}) {
      for (int64_t count : {1, 3, 4, 12, 13, 30}) test_fp32_kernels(rows, depth, count);
    }
  }
  test_exponentials();
}
