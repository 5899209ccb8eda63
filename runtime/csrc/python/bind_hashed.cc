#include <nanobind/stl/string.h>

#include <memory>

#include "index/hashed_rows.h"
#include "python/layer.h"
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

// A layer with hash tables, in Python: keeps its arrays alive.
class PyHashed {
 public:
  PyHashed(LayerRows weight, ArrayIn<float> bias, ArrayIn<uint8_t> packed, ArrayIn<float> scale,
           ArrayIn<float> error, ArrayIn<uint32_t> offsets, ArrayIn<int32_t> row_ids,
           const std::string& family, int64_t tables, int64_t hashes, uint64_t seed)
      : weight_(weight),
        floats_{bias, scale, error},
        packed_(packed),
        offsets_(offsets),
        row_ids_(row_ids) {
    const Dense dense = layer_from(weight, bias);
    const Packed rows = packed_from(dense, packed, scale, error);
    require_shape("offsets", offsets, {-1});
    require_shape("row_ids", row_ids, {-1});
    without_gil([&] {
      head_ = std::make_unique<const Head>(dense, rows, OpenMPExecutor());
      index_ = std::make_unique<const HashedRows>(
          *head_,
          HashedArrays{.family = parse_family(family),
                       .tables = tables,
                       .hashes = hashes,
                       .seed = seed,
                       .offsets = offsets.data(),
                       .offset_count = static_cast<int64_t>(offsets.size()),
                       .row_ids = row_ids.data(),
                       .row_id_count = static_cast<int64_t>(row_ids.size())},
          OpenMPExecutor());
    });
  }

  nb::tuple top_k(ArrayIn<float> hidden, int64_t k, int64_t probes, int64_t rescore,
                  const std::string& isa, int threads) const {
    require_shape("hidden", hidden, {-1, head_->depth()});
    if (k < 1 || k > head_->rows()) {
      raise_data_error("k is " + std::to_string(k) + ", expected 1 to " +
                       std::to_string(head_->rows()));
    }
    const size_t count = hidden.shape(0), width = static_cast<size_t>(k);
    std::vector<float> scores(count * width);
    std::vector<int64_t> ids(count * width);
    without_gil([&] {
      hashed_top_k(*index_, {.k = k, .probes = probes, .rescore = rescore}, hidden.data(),
                   static_cast<int64_t>(count), scores.data(), ids.data(), OpenMPExecutor(threads),
                   choose(isa));
    });
    return nb::make_tuple(to_array(std::move(scores), {count, width}),
                          to_array(std::move(ids), {count, width}));
  }

 private:
  LayerRows weight_;
  ArrayIn<float> floats_[3];
  ArrayIn<uint8_t> packed_;
  ArrayIn<uint32_t> offsets_;
  ArrayIn<int32_t> row_ids_;
  std::unique_ptr<const Head> head_;
  std::unique_ptr<const HashedRows> index_;
};

}  // namespace

void bind_hashed(nb::module_& module) {
  nb::class_<PyHashed>(module, "Hashed", "An output layer with hash tables over its rows.")
      .def(nb::init<LayerRows, ArrayIn<float>, ArrayIn<uint8_t>, ArrayIn<float>, ArrayIn<float>,
                    ArrayIn<uint32_t>, ArrayIn<int32_t>, const std::string&, int64_t, int64_t,
                    uint64_t>(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert(),
           nb::arg("packed").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("error").noconvert(), nb::arg("offsets").noconvert(),
           nb::arg("row_ids").noconvert(), nb::arg("family"), nb::arg("tables"), nb::arg("hashes"),
           nb::arg("seed"))
      .def("top_k", &PyHashed::top_k, nb::arg("hidden").noconvert(), nb::arg("k"),
           nb::arg("probes") = 1, nb::arg("rescore") = 32, nb::arg("isa") = "auto",
           nb::arg("threads") = 0, "Scores and ids [B, k] of the best rows that collide.");
}

}  // namespace qcompile
