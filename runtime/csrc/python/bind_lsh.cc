#include <nanobind/stl/string.h>

#include <array>
#include <utility>

#include "index/hashed_rows.h"
#include "lsh/tables.h"
#include "python/arrays.h"
#include "python/module.h"
#include "python/rows.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

template <typename T, size_t kCount>
T choice(const char* what, const std::string& name,
         const std::array<std::pair<const char*, T>, kCount>& known) {
  std::string names;
  for (const auto& [text, value] : known) {
    if (name == text) return value;
    names += (names.empty() ? "" : ", ") + std::string(text);
  }
  throw std::invalid_argument("unknown " + std::string(what) + " '" + name + "'; known: " + names);
}

Policy policy_from(const std::string& name) {
  return choice<Policy, 2>("bucket policy", name,
                           {{{"fifo", Policy::kFifo}, {"reservoir", Policy::kReservoir}}});
}

LshTables make_tables(int64_t dimension, int64_t rows, const std::string& family, int64_t tables,
                      int64_t hashes, int64_t bucket, const std::string& policy, uint64_t seed,
                      bool incremental) {
  return without_gil([&] {
    return LshTables({.family = parse_family(family),
                      .dimension = dimension,
                      .rows = rows,
                      .tables = tables,
                      .hashes = hashes,
                      .bucket = bucket,
                      .policy = policy_from(policy),
                      .seed = seed,
                      .incremental = incremental});
  });
}

ArrayOut<uint32_t> keys(const LshTables& tables, ArrayIn<float> vectors, int threads,
                        const std::string& isa) {
  require_shape("vectors", vectors, {-1, tables.options().dimension});
  std::vector<uint32_t> result = without_gil([&] {
    return tables.keys(vectors.data(), static_cast<int64_t>(vectors.shape(0)),
                       OpenMPExecutor(threads), parse_isa(isa));
  });
  return to_array(std::move(result),
                  {static_cast<size_t>(tables.options().tables), vectors.shape(0)});
}

RowsView matrix_of(const LshTables& tables, const RowsIn& matrix) {
  require_shape("matrix", matrix, {tables.options().rows, tables.options().dimension});
  return rows_view("matrix", matrix, tables.options().rows);
}

void build(LshTables& tables, RowsIn matrix, uint64_t generation, int threads, uint64_t draw) {
  const RowsView rows = matrix_of(tables, matrix);
  without_gil([&] { tables.build(rows, {generation, draw}, OpenMPExecutor(threads)); });
}

void begin(LshTables& tables, int64_t slices, uint64_t generation, uint64_t draw) {
  without_gil([&] { tables.begin({generation, draw}, slices); });
}

bool advance(LshTables& tables, RowsIn matrix, int threads) {
  if (!tables.building()) raise_data_error("no build of the hash tables was begun: call begin");
  const RowsView rows = matrix_of(tables, matrix);
  return without_gil([&] { return tables.advance(rows, OpenMPExecutor(threads)); });
}

ArrayOut<uint32_t> bucket(const LshTables& tables, int64_t table, int64_t key) {
  if (!tables.built()) raise_data_error("the hash tables are empty: call build first");
  if (table < 0 || table >= tables.options().tables || key < 0 || key >> tables.key_bits()) {
    raise_data_error("table " + std::to_string(table) + " has no bucket " + std::to_string(key));
  }
  const auto rows = tables.bucket(table, static_cast<uint32_t>(key));
  return to_array(std::vector<uint32_t>(rows.begin(), rows.end()));
}

nb::tuple arrays(const LshTables& tables) {
  if (!tables.built()) raise_data_error("the hash tables are empty: call build first");
  TableArrays found = without_gil([&] { return to_arrays(tables); });
  return nb::make_tuple(to_array(std::move(found.offsets)), to_array(std::move(found.row_ids)));
}

nb::dict occupancy(const LshTables& tables) {
  Occupancy found = without_gil([&] { return tables.occupancy(); });
  nb::dict result;
  result["buckets_by_rows"] = to_array(std::move(found.buckets_by_rows)).cast();
  result["dropped"] = found.dropped;
  result["table_bytes"] = found.table_bytes;
  result["key_bytes"] = found.key_bytes;
  result["lookup_bytes"] = found.lookup_bytes;
  return result;
}

nb::dict last_lookup(const LshTables& tables) {
  const LookupStatistics last = tables.lookups().last();
  nb::dict result;
  result["examples"] = last.examples;
  result["collisions"] = last.collisions;
  result["candidates"] = last.candidates;
  result["active"] = last.active;
  result["least"] = last.least;
  result["most"] = last.most;
  return result;
}

}  // namespace

void bind_lsh(nb::module_& module) {
  nb::class_<LshTables>(module, "LshTables", "L hash tables over the rows of a matrix.")
      .def(
          "__init__",
          [](LshTables* self, int64_t dimension, int64_t rows, const std::string& family,
             int64_t tables, int64_t hashes, int64_t bucket, const std::string& policy,
             uint64_t seed, bool incremental) {
            new (self) LshTables(make_tables(dimension, rows, family, tables, hashes, bucket,
                                             policy, seed, incremental));
          },
          nb::arg("dimension"), nb::arg("rows"), nb::arg("family"), nb::arg("tables"),
          nb::arg("hashes"), nb::arg("bucket"), nb::arg("policy"), nb::arg("seed"),
          nb::arg("incremental") = false)
      .def_prop_ro("key_bits", &LshTables::key_bits, "Bits of a key after folding.")
      .def_prop_ro("hash_seed", &LshTables::hash_seed, "Seed of the present hash functions.")
      .def_prop_ro("built", &LshTables::built, "Whether the tables can be looked up.")
      .def_prop_ro("building", &LshTables::building, "Whether a build in slices is under way.")
      .def_prop_ro("hashed_rows", &LshTables::hashed_rows,
                   "Rows whose keys the latest build computed.")
      .def("keys", &keys, nb::arg("vectors").noconvert(), nb::arg("threads") = 0,
           nb::arg("isa") = "auto", "Keys uint32 [L, n] of float32 vectors [n, d].")
      .def("build", &build, nb::arg("matrix").noconvert(), nb::arg("generation") = 0,
           nb::arg("threads") = 0, nb::arg("draw") = 0,
           "Fill the tables with the rows of matrix [N, d], float32 or bfloat16.")
      .def("begin", &begin, nb::arg("slices"), nb::arg("generation") = 0, nb::arg("draw") = 0,
           "Begin to build other tables, which replace these after `slices` times advance.")
      .def("advance", &advance, nb::arg("matrix").noconvert(), nb::arg("threads") = 0,
           "Do one slice of the work; True if it was the last.")
      .def("arrays", &arrays,
           "All buckets: where each begins uint32 [L * 2^key_bits + 1], and their rows int32.")
      .def("bucket", &bucket, nb::arg("table"), nb::arg("key"), "Rows in one bucket.")
      .def("occupancy", &occupancy, "How full the buckets are, and the memory that is held.")
      .def("last_lookup", &last_lookup, "What the latest lookup of candidates found.");
}

}  // namespace qcompile
