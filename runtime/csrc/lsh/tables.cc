#include "lsh/tables.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "core/lanes.h"
#include "core/random.h"

namespace qcompile {
namespace {

constexpr uint64_t kDrawSeed = 0x66756e6374696f6eu;
constexpr int64_t kRowGrain = 1024;
constexpr int64_t kQueryGrain = 2 * kLanes;
// Memory for keys in builds that keep none. Fewer, larger groups of tables read the rows less
// often.
constexpr int64_t kGroupBytes = int64_t{48} << 20;

void require(const char* name, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  throw std::invalid_argument(std::string(name) + " must be in [1, " + std::to_string(most) +
                              "], got " + std::to_string(value));
}

// Tables of one pass over the rows: as many as their keys have room, the same in every pass, and
// work for every thread.
int64_t group_size(int64_t tables, int64_t table_bytes, bool indivisible, int threads) {
  if (indivisible) return tables;
  const int64_t room = std::clamp<int64_t>(kGroupBytes / table_bytes, 1, tables);
  const int64_t passes = (tables + room - 1) / room;
  const int64_t even = (tables + passes - 1) / passes;
  return std::min(tables, (even + threads - 1) / threads * threads);
}

}  // namespace

LshTables::LshTables(const TableOptions& options)
    : options_(options), lookups_(std::make_unique<Lookups>()) {
  require("dimension", options.dimension, kMaxDimension);
  require("rows", options.rows, kMaxRows - 1);
  require("tables", options.tables, kMaxTables);
  require("bucket", options.bucket, kMaxRows);
  require("hashes", options.hashes, 63 / code_bits(options.family));
  front_.hasher = make_hasher(0);
}

uint64_t LshTables::seed_of(uint64_t draw) const {
  return draw == 0 ? options_.seed : random_bits(options_.seed ^ kDrawSeed, draw, 0);
}

std::shared_ptr<const RowHasher> LshTables::make_hasher(uint64_t draw) const {
  return std::make_shared<const RowHasher>(HashOptions{.family = options_.family,
                                                       .dimension = options_.dimension,
                                                       .rows = options_.rows,
                                                       .tables = options_.tables,
                                                       .hashes = options_.hashes},
                                           seed_of(draw));
}

std::vector<uint32_t> LshTables::keys(const float* vectors, int64_t count, const Executor& executor,
                                      Isa isa) const {
  const int64_t tables = options_.tables;
  const RowsView view = {vectors, Storage::kFloat32, options_.dimension};
  std::vector<uint32_t> keys(tables * count);
  parallel_for(executor, count, kQueryGrain, [&](int64_t begin, int64_t end) {
    RowHasher::Workspace workspace;
    std::vector<uint32_t> block(tables * kLanes);
    for (int64_t first = begin; first < end; first += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, end - first);
      int64_t ids[kLanes];
      for (int64_t lane = 0; lane < lanes; ++lane) ids[lane] = first + lane;
      front_.hasher->keys(view, ids, lanes, 0, tables, block.data(), workspace, isa);
      for (int64_t table = 0; table < tables; ++table) {
        const uint32_t* own = block.data() + table * kLanes;
        std::copy(own, own + lanes, keys.data() + table * count + first);
      }
    }
  });
  return keys;
}

void LshTables::build(const RowsView& rows, const BuildNumbers& numbers, const Executor& executor) {
  slices_ = 0;
  back_ = {};
  if (numbers.draw != front_.draw) {
    front_.hasher = make_hasher(numbers.draw);
    front_.draw = numbers.draw;
  }
  front_.tables.resize(options_.tables);
  if (!options_.incremental) {
    keys_.release();
    return build_in_groups(rows, numbers, executor);
  }
  keep_keys(numbers.draw);
  hashed_rows_ = hash(front_, rows, 0, options_.rows, executor);
  fingerprints_.complete();
  fill(front_, 0, options_.tables, keys_, 0, numbers, executor);
}

void LshTables::build_in_groups(const RowsView& rows, const BuildNumbers& numbers,
                                const Executor& executor) {
  const int64_t size =
      group_size(options_.tables, KeyMatrix::bytes_for(1, options_.rows, key_bits()),
                 front_.hasher->indivisible(), executor.threads());
  KeyMatrix keys;
  keys.allocate(size, options_.rows, key_bits());
  const Isa isa = best_isa();
  for (int64_t first = 0; first < options_.tables; first += size) {
    const int64_t count = std::min(size, options_.tables - first);
    parallel_for(executor, options_.rows, kRowGrain, [&](int64_t begin, int64_t end) {
      RowHasher::Workspace workspace;
      std::vector<uint32_t> block(size * kLanes);
      int64_t ids[kLanes];
      for (int64_t row = begin; row < end; row += kLanes) {
        const int64_t lanes = std::min<int64_t>(kLanes, end - row);
        for (int64_t lane = 0; lane < lanes; ++lane) ids[lane] = row + lane;
        front_.hasher->keys(rows, ids, lanes, first, first + count, block.data(), workspace, isa);
        keys.store(block.data(), count, ids, lanes);
      }
    });
    fill(front_, first, first + count, keys, first, numbers, executor);
  }
  hashed_rows_ = options_.rows;
}

void LshTables::keep_keys(uint64_t draw) {
  if (keys_.allocated() && draw == keys_draw_) return;
  if (!keys_.allocated()) keys_.allocate(options_.tables, options_.rows, key_bits());
  if (options_.incremental) fingerprints_.reset(options_.rows);
  keys_draw_ = draw;
}

int64_t LshTables::hash(const Set& set, const RowsView& rows, int64_t begin, int64_t end,
                        const Executor& executor) {
  const Isa isa = best_isa();
  const int64_t tables = options_.tables;
  std::atomic<int64_t> hashed{0};
  const auto hash_range = [&](int64_t from, int64_t to) {
    RowHasher::Workspace workspace;
    std::vector<uint32_t> block(tables * kLanes);
    int64_t ids[kLanes];
    int64_t waiting = 0, done = 0;
    const auto flush = [&] {
      if (waiting == 0) return;
      set.hasher->keys(rows, ids, waiting, 0, tables, block.data(), workspace, isa);
      keys_.store(block.data(), tables, ids, waiting);
      done += std::exchange(waiting, 0);
    };
    for (int64_t row = begin + from; row < begin + to; ++row) {
      if (options_.incremental && !fingerprints_.changed(rows, row, isa)) continue;
      ids[waiting++] = row;
      if (waiting == kLanes) flush();
    }
    flush();
    hashed += done;
  };
  try {
    parallel_for(executor, end - begin, kRowGrain, hash_range);
  } catch (...) {
    fingerprints_.forget();  // some rows were looked at, but their keys were not stored
    throw;
  }
  return hashed;
}

BucketRules LshTables::rules(const BuildNumbers& numbers, int64_t table) const {
  return {.capacity = options_.bucket,
          .policy = options_.policy,
          .seed = options_.seed,
          .stream = numbers.generation * kMaxTables + table};
}

void LshTables::fill(Set& set, int64_t begin, int64_t end, const KeyMatrix& keys, int64_t first_key,
                     const BuildNumbers& numbers, const Executor& executor) const {
  parallel_for(executor, end - begin, 1, [&](int64_t from, int64_t to) {
    BucketTable::Slots slots;
    for (int64_t table = begin + from; table < begin + to; ++table) {
      keys.fill(set.tables[table], table - first_key, rules(numbers, table), slots);
    }
  });
}

void LshTables::begin(const BuildNumbers& numbers, int64_t slices) {
  require("slices", slices, kMaxSlices);
  slices_ = slices;
  slice_ = 0;
  numbers_ = numbers;
  hashed_rows_ = 0;
  back_ = {.draw = numbers.draw,
           .hasher = numbers.draw == front_.draw ? front_.hasher : make_hasher(numbers.draw),
           .tables = std::vector<BucketTable>(options_.tables)};
  keep_keys(numbers.draw);
}

bool LshTables::advance(const RowsView& rows, const Executor& executor) {
  // Hashing all rows and filling all tables are half of the work each, or nearly so.
  const auto hashed = [&](int64_t slice) {
    return std::min(options_.rows, 2 * options_.rows * slice / slices_);
  };
  const auto filled = [&](int64_t slice) {
    return std::max<int64_t>(0, 2 * options_.tables * slice / slices_ - options_.tables);
  };
  const int64_t before = slice_++;
  hashed_rows_ += hash(back_, rows, hashed(before), hashed(slice_), executor);
  if (hashed(slice_) == options_.rows) fingerprints_.complete();
  fill(back_, filled(before), filled(slice_), keys_, 0, numbers_, executor);
  if (slice_ < slices_) return false;
  slices_ = 0;
  front_ = std::exchange(back_, {});
  if (!options_.incremental) keys_.release();
  return true;
}

Occupancy LshTables::occupancy() const {
  Occupancy occupancy;
  auto& counts = occupancy.buckets_by_rows;
  for (const Set* set : {&front_, &back_}) {
    for (const BucketTable& table : set->tables) occupancy.table_bytes += table.bytes();
  }
  occupancy.key_bytes = keys_.bytes() + fingerprints_.bytes();
  occupancy.lookup_bytes = lookups_->bytes();
  if (!built()) return occupancy;
  for (const BucketTable& table : front_.tables) {
    for (int64_t key = 0; key < table.buckets(); ++key) {
      const size_t rows = table.bucket(static_cast<uint32_t>(key)).size();
      if (rows >= counts.size()) counts.resize(rows + 1);
      ++counts[rows];
    }
    occupancy.dropped += options_.rows - table.rows();
  }
  return occupancy;
}

}  // namespace qcompile
