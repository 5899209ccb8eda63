#include "index/rescore.h"

#include <algorithm>

#include "train/storage.h"

namespace qcompile {
namespace {

constexpr int kLanes = 16;

bool quantised(const Dense& dense) { return dense.weight == nullptr && dense.half == nullptr; }

// What the values that load() gives are multiples of.
double scale_of(const Dense& dense, int64_t row) {
  return quantised(dense) ? static_cast<double>(dense.quantised.scale[row]) : 1;
}

// The same of the quantised rows, without their scale.
QC_INLINE void load_quantised(const Dense& dense, int64_t row, int64_t j, int count, float* to) {
  constexpr int kPairDepth = 2 * kBlockDepth;
  const int64_t from = row / kBlockRows * plane_bytes(dense.depth) + row % kBlockRows * kBlockDepth;
  for (int i = 0; i < count; ++i) {
    const int64_t pair = (j + i) / kPairDepth, place = (j + i) % kPairDepth;
    const int64_t at = from + pair * kStepBytes + place % kBlockDepth;
    const int shift = place < kBlockDepth ? 0 : 4;
    const int high = dense.quantised.high[at] >> shift & 0x0F;
    const int low = dense.quantised.low[at] >> shift & 0x0F;
    to[i] = static_cast<float>(16 * high + low - 128);
  }
}

// Coordinates [j, j + count) of a row, kLanes at most; j is a multiple of kLanes.
QC_INLINE void load(const Dense& dense, int64_t row, int64_t j, int count, float* to) {
  const int64_t at = row * dense.depth + j;
  if (dense.weight != nullptr) {
    for (int i = 0; i < count; ++i) to[i] = dense.weight[at + i];
  } else if (dense.half != nullptr) {
    for (int i = 0; i < count; ++i) to[i] = from_bfloat16(dense.half[at + i]);
  } else {
    load_quantised(dense, row, j, count, to);
  }
}

QC_INLINE float score(const Dense& dense, int64_t row, const double* x) {
  double sums[kLanes] = {};
  float w[kLanes];
  int64_t j = 0;
  for (; j + kLanes <= dense.depth; j += kLanes) {
    load(dense, row, j, kLanes, w);
    for (int lane = 0; lane < kLanes; ++lane)
      sums[lane] += static_cast<double>(w[lane]) * x[j + lane];
  }
  const auto rest = static_cast<int>(dense.depth - j);
  load(dense, row, j, rest, w);
  for (int lane = 0; lane < rest; ++lane) sums[lane] += static_cast<double>(w[lane]) * x[j + lane];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  const double product = sums[0] * scale_of(dense, row);
  return static_cast<float>(product + static_cast<double>(dense.bias[row]));
}

float score_scalar(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}
QC_AVX2 float score_avx2(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}
QC_AVX512 float score_avx512(const Dense& dense, int64_t row, const double* x) {
  return score(dense, row, x);
}

}  // namespace

ScoreKernel score_kernel(Isa isa) {
  if (isa == Isa::kScalar) return score_scalar;
  return isa == Isa::kAvx2 ? score_avx2 : score_avx512;
}

void prefetch_row(const Dense& dense, int64_t row) {
  const auto ask = [](const void* from, int64_t bytes) {
    const auto* begin = static_cast<const char*>(from);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at);
  };
  const int64_t at = row * dense.depth;
  if (dense.weight != nullptr) {
    ask(dense.weight + at, dense.depth * static_cast<int64_t>(sizeof(float)));
  } else if (dense.half != nullptr) {
    ask(dense.half + at, dense.depth * static_cast<int64_t>(sizeof(uint16_t)));
  } else {
    const int64_t bytes = plane_bytes(dense.depth), from = row / kBlockRows * bytes;
    ask(dense.quantised.high + from, bytes);
    ask(dense.quantised.low + from, bytes);
  }
}

void write_best(const Dense& dense, const double* x, std::vector<Ranked>& rows, int64_t k,
                float* scores, int64_t* ids, Isa isa) {
  const ScoreKernel score = score_kernel(isa);
  for (Ranked& each : rows) each.score = score(dense, each.row, x);
  std::partial_sort(rows.begin(), rows.begin() + k, rows.end(), before);
  for (int64_t i = 0; i < k; ++i) {
    scores[i] = rows[static_cast<size_t>(i)].score;
    ids[i] = rows[static_cast<size_t>(i)].row;
  }
}

}  // namespace qcompile
