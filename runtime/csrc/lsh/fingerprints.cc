#include "lsh/fingerprints.h"

#include <cstring>

#include "core/random.h"

namespace qcompile {
namespace {

// The sum, modulo 2^64, of words that were scrambled with their place: the order does not matter,
// so that the compiler makes vectors of any width of it.
QC_INLINE uint64_t scramble(const unsigned char* bytes, int64_t size) {
  constexpr uint64_t kPlace = 0xd1342543de82ef95u;  // odd
  uint64_t sum = 0;
  const int64_t words = size / 8;
  for (int64_t i = 0; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes + i * 8, 8);
    sum += mix_bits(word ^ (static_cast<uint64_t>(i) * kPlace));
  }
  uint64_t rest = 0;
  std::memcpy(&rest, bytes + words * 8, size % 8);
  return sum + mix_bits(rest ^ (static_cast<uint64_t>(words) * kPlace));
}

uint64_t scramble_scalar(const unsigned char* bytes, int64_t size) { return scramble(bytes, size); }
QC_AVX2 uint64_t scramble_avx2(const unsigned char* bytes, int64_t size) {
  return scramble(bytes, size);
}
QC_AVX512 uint64_t scramble_avx512(const unsigned char* bytes, int64_t size) {
  return scramble(bytes, size);
}

}  // namespace

bool Fingerprints::changed(const RowsView& rows, int64_t row, Isa isa) {
  const int64_t size = rows.depth * (rows.storage == Storage::kFloat32 ? 4 : 2);
  const unsigned char* bytes = static_cast<const unsigned char*>(rows.data) + row * size;
  const uint64_t bits = isa >= Isa::kAvx512 ? scramble_avx512(bytes, size)
                        : isa == Isa::kAvx2 ? scramble_avx2(bytes, size)
                                            : scramble_scalar(bytes, size);
  const bool same = known_ && bits_[row] == bits;
  bits_[row] = bits;
  return !same;
}

}  // namespace qcompile
