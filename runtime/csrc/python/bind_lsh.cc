#include <nanobind/stl/string.h>

#include "lsh/tables.h"
#include "python/arrays.h"
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

FamilyName family_from(const std::string& name) {
  if (name == "simhash") return FamilyName::kSimHash;
  if (name == "wta") return FamilyName::kWta;
  if (name == "dwta") return FamilyName::kDwta;
  if (name == "doph") return FamilyName::kDoph;
  throw std::invalid_argument("unknown hash family '" + name +
                              "'; known: simhash, wta, dwta, doph");
}

Policy policy_from(const std::string& name) {
  if (name == "fifo") return Policy::kFifo;
  if (name == "reservoir") return Policy::kReservoir;
  throw std::invalid_argument("unknown bucket policy '" + name + "'; known: fifo, reservoir");
}

LshTables make_tables(int64_t dimension, int64_t rows, const std::string& family, int64_t tables,
                      int64_t hashes, int64_t bucket, const std::string& policy, uint64_t seed) {
  return without_gil([&] {
    return LshTables({.family = family_from(family),
                      .dimension = dimension,
                      .rows = rows,
                      .tables = tables,
                      .hashes = hashes,
                      .bucket = bucket,
                      .policy = policy_from(policy),
                      .seed = seed});
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

void build(LshTables& tables, ArrayIn<float> matrix, uint64_t generation, int threads) {
  require_shape("matrix", matrix, {tables.options().rows, tables.options().dimension});
  without_gil([&] { tables.build(matrix.data(), generation, OpenMPExecutor(threads)); });
}

ArrayOut<uint32_t> bucket(const LshTables& tables, int64_t table, int64_t key) {
  if (!tables.built()) raise_data_error("the hash tables are empty: call build first");
  if (table < 0 || table >= tables.options().tables || key < 0 || key >> tables.key_bits()) {
    raise_data_error("table " + std::to_string(table) + " has no bucket " + std::to_string(key));
  }
  const auto rows = tables.bucket(table, static_cast<uint32_t>(key));
  return to_array(std::vector<uint32_t>(rows.begin(), rows.end()));
}

}  // namespace

void bind_lsh(nb::module_& module) {
  nb::class_<LshTables>(module, "LshTables", "L hash tables over the rows of a matrix.")
      .def(
          "__init__",
          [](LshTables* self, int64_t dimension, int64_t rows, const std::string& family,
             int64_t tables, int64_t hashes, int64_t bucket, const std::string& policy,
             uint64_t seed) {
            new (self) LshTables(
                make_tables(dimension, rows, family, tables, hashes, bucket, policy, seed));
          },
          nb::arg("dimension"), nb::arg("rows"), nb::arg("family"), nb::arg("tables"),
          nb::arg("hashes"), nb::arg("bucket"), nb::arg("policy"), nb::arg("seed"))
      .def_prop_ro("key_bits", &LshTables::key_bits, "Bits of a key after folding.")
      .def_prop_ro("built", &LshTables::built, "Whether build was called.")
      .def("keys", &keys, nb::arg("vectors").noconvert(), nb::arg("threads") = 0,
           nb::arg("isa") = "auto", "Keys uint32 [L, n] of float32 vectors [n, d].")
      .def("build", &build, nb::arg("matrix").noconvert(), nb::arg("generation") = 0,
           nb::arg("threads") = 0, "Fill the tables with the rows of float32 matrix [N, d].")
      .def("bucket", &bucket, nb::arg("table"), nb::arg("key"), "Rows in one bucket.");
}

}  // namespace qcompile
