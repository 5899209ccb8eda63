#include "lsh/row_hasher.h"

#include <algorithm>
#include <bit>

#include "core/lanes.h"
#include "core/random.h"
#include "lsh/transpose.h"

namespace qcompile {
namespace {

struct Packing {
  int64_t hashes;
  int code_bits;
  int key_bits;
};

// keys [tables, kLanes] from codes [tables, hashes, kLanes], the first code in the highest bits.
QC_INLINE void pack(const int32_t* codes, int64_t tables, const Packing& packing, uint32_t* keys) {
  for (int64_t table = 0; table < tables; ++table) {
    LaneInts key = {};
    for (int64_t h = 0; h < packing.hashes; ++h, codes += kLanes) {
      LaneInts code;
      std::memcpy(&code, codes, sizeof code);
      key = (key << packing.code_bits) | code;
    }
    std::memcpy(keys + table * kLanes, &key, sizeof key);
  }
}

QC_INLINE void pack_folded(const int32_t* codes, int64_t tables, const Packing& packing,
                           uint32_t* keys) {
  for (int64_t table = 0; table < tables; ++table) {
    uint64_t key[kLanes] = {};
    for (int64_t h = 0; h < packing.hashes; ++h, codes += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        key[lane] = key[lane] << packing.code_bits | static_cast<uint32_t>(codes[lane]);
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      keys[table * kLanes + lane] =
          static_cast<uint32_t>(mix_bits(key[lane]) >> (64 - packing.key_bits));
    }
  }
}

using Pack = void (*)(const int32_t*, int64_t, const Packing&, uint32_t*);

void pack_scalar(const int32_t* codes, int64_t tables, const Packing& packing, uint32_t* keys) {
  pack(codes, tables, packing, keys);
}
QC_AVX2 void pack_avx2(const int32_t* codes, int64_t tables, const Packing& packing,
                       uint32_t* keys) {
  pack(codes, tables, packing, keys);
}
QC_AVX512 void pack_avx512(const int32_t* codes, int64_t tables, const Packing& packing,
                           uint32_t* keys) {
  pack(codes, tables, packing, keys);
}
void fold_scalar(const int32_t* codes, int64_t tables, const Packing& packing, uint32_t* keys) {
  pack_folded(codes, tables, packing, keys);
}
QC_AVX2 void fold_avx2(const int32_t* codes, int64_t tables, const Packing& packing,
                       uint32_t* keys) {
  pack_folded(codes, tables, packing, keys);
}
QC_AVX512 void fold_avx512(const int32_t* codes, int64_t tables, const Packing& packing,
                           uint32_t* keys) {
  pack_folded(codes, tables, packing, keys);
}

}  // namespace

RowHasher::RowHasher(const HashOptions& options, uint64_t seed)
    : options_(options),
      family_(
          make_family(options.family, options.dimension, options.tables * options.hashes, seed)) {
  const int64_t bits = options.hashes * family_->bits();
  const int worth = std::bit_width(static_cast<uint64_t>(options.rows)) + 1;
  key_bits_ = static_cast<int>(std::min<int64_t>(bits, std::min(worth, kMaxKeyBits)));
  folds_ = bits > key_bits_;
}

void RowHasher::keys(const RowsView& rows, const int64_t* ids, int64_t count, int64_t begin,
                     int64_t end, uint32_t* keys, Workspace& workspace, Isa isa) const {
  transpose(rows, ids, count, workspace, isa);
  workspace.codes.resize((end - begin) * options_.hashes * kLanes);
  family_->codes(workspace.columns.data(), begin * options_.hashes, end * options_.hashes,
                 workspace.codes.data(), isa);
  const Packing packing = {options_.hashes, family_->bits(), key_bits_};
  const Pack kernel = isa >= Isa::kAvx512 ? (folds_ ? fold_avx512 : pack_avx512)
                      : isa == Isa::kAvx2 ? (folds_ ? fold_avx2 : pack_avx2)
                                          : (folds_ ? fold_scalar : pack_scalar);
  kernel(workspace.codes.data(), end - begin, packing, keys);
}

void RowHasher::rank(const RowsView& rows, const int64_t* ids, int64_t count,
                     const RankedCodes& ranked, Workspace& workspace, Isa isa) const {
  transpose(rows, ids, count, workspace, isa);
  family_->rank(workspace.columns.data(), ranked, isa);
}

void RowHasher::transpose(const RowsView& rows, const int64_t* ids, int64_t count,
                          Workspace& workspace, Isa isa) const {
  const int64_t dimension = options_.dimension;
  workspace.columns.resize(dimension * kLanes);
  const float* source[kLanes];
  for (int64_t lane = 0; lane < count; ++lane) {
    if (rows.storage == Storage::kFloat32) {
      source[lane] = static_cast<const float*>(rows.data) + ids[lane] * dimension;
    } else {
      workspace.rows.resize(kLanes * dimension);
      source[lane] = workspace.rows.data() + lane * dimension;
      load_row(rows, ids[lane], workspace.rows.data() + lane * dimension);
    }
  }
  std::fill(source + count, source + kLanes, source[count - 1]);
  transpose_rows(source, dimension, workspace.columns.data(), isa);
}

}  // namespace qcompile
