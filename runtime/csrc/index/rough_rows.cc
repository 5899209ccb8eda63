#include "index/rough_rows.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace qcompile {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;
// Steps whose sums of squares, below 2^14 each, fit int32.
constexpr int64_t kChunk = 1 << 14;

QC_INLINE void sum_body(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows]) {
  for (RowSums& sum : sums) sum = {};
  for (int64_t first = 0; first < steps; first += kChunk) {
    const int64_t end = first + kChunk < steps ? first + kChunk : steps;
    int32_t squares[kStepBytes] = {}, rough_squares[kStepBytes] = {}, differences[kStepBytes] = {};
    for (int64_t step = first; step < end; ++step) {
      const int8_t* values = block + step * kStepBytes;
      for (int i = 0; i < kStepBytes; ++i) {
        const auto value = static_cast<int16_t>(values[i]);
        const auto rough = static_cast<int16_t>((((value + 128) >> 4) << 4) - kRoughOffset);
        const auto difference = static_cast<int16_t>(value - rough);
        squares[i] += value * value;
        rough_squares[i] += rough * rough;
        differences[i] += difference * difference;
      }
    }
    for (int i = 0; i < kStepBytes; ++i) {
      sums[i / kBlockDepth].squares += squares[i];
      sums[i / kBlockDepth].rough_squares += rough_squares[i];
      sums[i / kBlockDepth].difference += differences[i];
    }
  }
}

QC_INLINE void split_body(const int8_t* block, int64_t steps, uint8_t* rough) {
  for (int64_t step = 0; step < steps; step += 2) {
    const int8_t* low = block + step * kStepBytes;
    uint8_t* out = rough + step / 2 * kStepBytes;
    for (int i = 0; i < kStepBytes; ++i) {
      const auto first = static_cast<uint8_t>(static_cast<uint8_t>(low[i]) ^ 0x80);
      out[i] = static_cast<uint8_t>(first >> 4);
    }
    if (step + 1 == steps) break;
    for (int i = 0; i < kStepBytes; ++i) {
      const auto second = static_cast<uint8_t>(static_cast<uint8_t>(low[kStepBytes + i]) ^ 0x80);
      out[i] = static_cast<uint8_t>(out[i] | (second & 0xF0));
    }
  }
}

void sum_scalar(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) { sum_body(b, n, s); }
QC_AVX2 void sum_avx2(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) { sum_body(b, n, s); }
QC_AVX512 void sum_avx512(const int8_t* b, int64_t n, RowSums (&s)[kBlockRows]) {
  sum_body(b, n, s);
}
void split_scalar(const int8_t* b, int64_t n, uint8_t* r) { split_body(b, n, r); }
QC_AVX2 void split_avx2(const int8_t* b, int64_t n, uint8_t* r) { split_body(b, n, r); }

}  // namespace

RoughPlane::RoughPlane(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, size);
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory, size, MADV_HUGEPAGE);  // only faster if it succeeds
  bytes_.reset(static_cast<uint8_t*>(memory));
}

void RoughPlane::Free::operator()(uint8_t* bytes) const { std::free(bytes); }

void sum_block(const int8_t* block, int64_t steps, RowSums (&sums)[kBlockRows], Isa isa) {
  if (isa == Isa::kScalar) return sum_scalar(block, steps, sums);
  if (isa == Isa::kAvx2) return sum_avx2(block, steps, sums);
  sum_avx512(block, steps, sums);
}

void split_block(const int8_t* block, int64_t steps, uint8_t* rough, Isa isa) {
  if (isa == Isa::kScalar) return split_scalar(block, steps, rough);
  split_avx2(block, steps, rough);
}

}  // namespace qcompile
