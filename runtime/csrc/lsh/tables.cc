#include "lsh/tables.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "core/lanes.h"
#include "core/random.h"

namespace qcompile {
namespace {

constexpr uint64_t kReservoirSeed = 0x7265736572766f69u;

void require(const char* name, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  throw std::invalid_argument(std::string(name) + " must be in [1, " + std::to_string(most) +
                              "], got " + std::to_string(value));
}

void transpose(const float* vectors, int64_t count, int64_t dimension, float* columns) {
  for (int64_t j = 0; j < dimension; ++j) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      columns[j * kLanes + lane] = lane < count ? vectors[lane * dimension + j] : 0.0f;
    }
  }
}

}  // namespace

LshTables::LshTables(const TableOptions& options) : options_(options) {
  require("dimension", options.dimension, kMaxDimension);
  require("rows", options.rows, kMaxRows - 1);
  require("tables", options.tables, kMaxTables);
  require("bucket", options.bucket, kMaxRows);

  require("hashes", options.hashes, 63 / code_bits(options.family));
  family_ =
      make_family(options.family, options.dimension, options.tables * options.hashes, options.seed);
  const int64_t bits = options.hashes * family_->bits();
  const int worth = std::bit_width(static_cast<uint64_t>(options.rows)) + 1;
  key_bits_ = static_cast<int>(std::min<int64_t>(bits, std::min(worth, kMaxKeyBits)));
  folds_ = bits > key_bits_;
}

uint32_t LshTables::fold(uint64_t key) const {
  return static_cast<uint32_t>(folds_ ? mix_bits(key) >> (64 - key_bits_) : key);
}

std::vector<uint32_t> LshTables::keys(const float* vectors, int64_t count, const Executor& executor,
                                      Isa isa) const {
  const int64_t dimension = options_.dimension;
  const int64_t functions = family_->functions();
  std::vector<uint32_t> keys(options_.tables * count);
  const int64_t blocks = (count + kLanes - 1) / kLanes;
  parallel_for(executor, blocks, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> columns(dimension * kLanes);
    std::vector<int32_t> codes(functions * kLanes);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kLanes;
      const int64_t lanes = std::min<int64_t>(kLanes, count - first);
      transpose(vectors + first * dimension, lanes, dimension, columns.data());
      family_->codes(columns.data(), 0, functions, codes.data(), isa);
      for (int64_t table = 0; table < options_.tables; ++table) {
        const int32_t* code = codes.data() + table * options_.hashes * kLanes;
        for (int64_t lane = 0; lane < lanes; ++lane) {
          uint64_t key = 0;
          for (int64_t h = 0; h < options_.hashes; ++h) {
            key = key << family_->bits() | static_cast<uint64_t>(code[h * kLanes + lane]);
          }
          keys[table * count + first + lane] = fold(key);
        }
      }
    }
  });
  return keys;
}

void LshTables::build(const float* matrix, uint64_t generation, const Executor& executor) {
  const std::vector<uint32_t> all = keys(matrix, options_.rows, executor);
  tables_.resize(options_.tables);
  executor.run(options_.tables, [&](int64_t table) {
    const std::span<const uint32_t> own(all.data() + table * options_.rows, options_.rows);
    fill(tables_[table], own, generation * kMaxTables + table);
  });
}

void LshTables::fill(Table& table, std::span<const uint32_t> keys, uint64_t stream) const {
  const int64_t buckets = int64_t{1} << key_bits_;
  const uint32_t capacity = static_cast<uint32_t>(options_.bucket);
  std::vector<uint32_t> seen(buckets);
  for (uint32_t key : keys) ++seen[key];
  table.offsets.resize(buckets + 1);
  uint32_t total = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    table.offsets[b] = total;
    total += std::min(seen[b], capacity);
    seen[b] = 0;
  }
  table.offsets[buckets] = total;
  table.rows.resize(total);
  const uint64_t seed = options_.seed ^ kReservoirSeed;
  for (uint32_t row = 0; row < keys.size(); ++row) {
    const uint32_t key = keys[row];
    const uint32_t before = seen[key]++;
    uint64_t place = before;
    if (before >= capacity) {
      // Item number n = before + 1 enters a reservoir with probability capacity / n (Vitter, 1985).
      place = options_.policy == Policy::kFifo
                  ? before % capacity
                  : below(random_bits(seed, stream, row), uint64_t{before} + 1);
    }
    if (place < capacity) table.rows[table.offsets[key] + place] = row;
  }
}

}  // namespace qcompile
