#include <nanobind/stl/function.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <memory>
#include <variant>

#include "index/build_cells.h"
#include "index/cells.h"
#include "index/codes.h"
#include "python/layer.h"
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

nb::dict build(ArrayIn<float> weight, ArrayIn<float> bias, int64_t cells, uint64_t seed,
               int threads, const nb::object& progress, const std::string& isa) {
  const Dense dense = dense_from(weight, bias);
  if (cells < 1) raise_data_error("cells is " + std::to_string(cells) + ", expected at least 1");
  const auto tell = [&](double part) {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress.is_none()) progress(part);
  };
  BuiltCells built = without_gil([&] {
    return build_cells(dense, {.clusters = cells, .seed = seed}, OpenMPExecutor(threads), tell,
                       choose(isa));
  });
  const auto steps = static_cast<size_t>(step_count(dense.depth));
  nb::dict result;
  result["packed"] = to_array(std::move(built.packed), {static_cast<size_t>(built.blocks), steps,
                                                        size_t{kBlockRows}, size_t{kBlockDepth}})
                         .cast();
  result["scale"] = to_array(std::move(built.scale)).cast();
  result["error"] = to_array(std::move(built.error)).cast();
  result["offsets"] = to_array(std::move(built.offsets)).cast();
  result["row_ids"] = to_array(std::move(built.row_ids)).cast();
  const auto blocks = static_cast<size_t>(block_count(built.cells));
  result["centroids"] =
      to_array(std::move(built.centroids), {blocks, steps, size_t{kBlockRows}, size_t{kBlockDepth}})
          .cast();
  result["centroid_scale"] = to_array(std::move(built.centroid_scale)).cast();
  result["cell_bias"] = to_array(std::move(built.cell_bias)).cast();
  result["cell_spread"] = to_array(std::move(built.cell_spread)).cast();
  const auto group_blocks = static_cast<size_t>(block_count(std::ssize(built.group_bias)));
  result["group_offsets"] = to_array(std::move(built.group_offsets)).cast();
  result["group_centroids"] =
      to_array(std::move(built.group_centroids),
               {group_blocks, steps, size_t{kBlockRows}, size_t{kBlockDepth}})
          .cast();
  result["group_scale"] = to_array(std::move(built.group_scale)).cast();
  result["group_bias"] = to_array(std::move(built.group_bias)).cast();
  result["group_spread"] = to_array(std::move(built.group_spread)).cast();
  return result;
}

nb::tuple code(ArrayIn<float> weight, ArrayIn<uint32_t> offsets, ArrayIn<int32_t> row_ids,
               ArrayIn<int8_t> centroids, ArrayIn<float> centroid_scale, int64_t bits,
               int threads) {
  require_shape("weight", weight, {-1, -1});
  const Dense dense{.weight = weight.data(),
                    .rows = static_cast<int64_t>(weight.shape(0)),
                    .depth = static_cast<int64_t>(weight.shape(1))};
  require_shape("centroid_scale", centroid_scale, {-1});
  const auto cells = static_cast<int64_t>(centroid_scale.shape(0));
  require_shape("offsets", offsets, {cells + 1});
  require_shape("row_ids", row_ids, {-1});
  require_shape("centroids", centroids,
                {block_count(cells), step_count(dense.depth), kBlockRows, kBlockDepth});
  const auto blocks = static_cast<int64_t>(row_ids.shape(0)) / kBlockRows;
  if (cells < 1 || dense.rows < 1 || dense.depth < 1) raise_data_error("weight: no rows or cells");
  CodedRows rows = without_gil([&] {
    return code_rows(
        dense,
        {blocks, cells, offsets.data(), row_ids.data(), centroids.data(), centroid_scale.data()},
        bits, OpenMPExecutor(threads));
  });
  const auto steps = static_cast<size_t>(code_step_count(dense.depth, bits));
  return nb::make_tuple(to_array(std::move(rows.codes), {static_cast<size_t>(blocks), steps,
                                                         size_t{kBlockRows}, size_t{kBlockDepth}}),
                        to_array(std::move(rows.scale)), to_array(std::move(rows.error)));
}

// A layer in cells, in Python: keeps its arrays alive.
class PyCells {
 public:
  PyCells(ArrayIn<float> weight, ArrayIn<float> bias,
          std::variant<ArrayIn<int8_t>, ArrayIn<uint8_t>> packed, ArrayIn<float> scale,
          ArrayIn<float> error, ArrayIn<uint32_t> offsets, ArrayIn<int32_t> row_ids,
          ArrayIn<int8_t> centroids, ArrayIn<float> centroid_scale, ArrayIn<float> cell_bias,
          ArrayIn<float> cell_spread, ArrayIn<uint32_t> group_offsets,
          ArrayIn<int8_t> group_centroids, ArrayIn<float> group_scale, ArrayIn<float> group_bias,
          ArrayIn<float> group_spread, int64_t bits)
      : floats_{weight,    bias,        scale,       error,      centroid_scale,
                cell_bias, cell_spread, group_scale, group_bias, group_spread},
        packed_(packed),
        bytes_{centroids, group_centroids},
        offsets_{offsets, group_offsets},
        row_ids_(row_ids) {
    const Dense dense = dense_from(weight, bias);
    const int64_t steps = step_count(dense.depth);
    const auto* values = std::get_if<ArrayIn<int8_t>>(&packed_);
    const auto* codes = std::get_if<ArrayIn<uint8_t>>(&packed_);
    if (bits != 8 && !codable(bits)) {
      raise_data_error("bits is " + std::to_string(bits) + ", expected 2, 4 or 8");
    }
    if ((bits == 8) != (values != nullptr)) {
      raise_data_error("packed: expected int8 of 8 bits, uint8 of fewer");
    }
    const int64_t row_steps = values ? steps : code_step_count(dense.depth, bits);
    std::visit(
        [&](const auto& array) {
          require_shape("packed", array, {-1, row_steps, kBlockRows, kBlockDepth});
        },
        packed_);
    const auto blocks = static_cast<int64_t>(values ? values->shape(0) : codes->shape(0));
    require_shape("offsets", offsets, {-1});
    const int64_t cells = static_cast<int64_t>(offsets.shape(0)) - 1;
    if (blocks < 1 || cells < 1) raise_data_error("offsets: expected at least one cell");
    const int64_t places = blocks * kBlockRows;
    require_shape("scale", scale, {places});
    require_shape("error", error, {places});
    require_shape("row_ids", row_ids, {places});
    require_shape("centroids", centroids, {block_count(cells), steps, kBlockRows, kBlockDepth});
    require_shape("centroid_scale", centroid_scale, {cells});
    require_shape("cell_bias", cell_bias, {cells});
    require_shape("cell_spread", cell_spread, {cells});
    require_shape("group_offsets", group_offsets, {-1});
    const int64_t groups = static_cast<int64_t>(group_offsets.shape(0)) - 1;
    if (groups < 1) raise_data_error("group_offsets: expected at least one group");
    require_shape("group_centroids", group_centroids,
                  {block_count(groups), steps, kBlockRows, kBlockDepth});
    require_shape("group_scale", group_scale, {groups});
    require_shape("group_bias", group_bias, {groups});
    require_shape("group_spread", group_spread, {groups});
    index_ = without_gil([&] {
      return std::make_unique<const CellIndex>(
          dense,
          CellArrays{blocks, cells, values ? values->data() : nullptr, scale.data(), error.data(),
                     offsets.data(), row_ids.data(), centroids.data(), centroid_scale.data(),
                     cell_bias.data(), cell_spread.data(), groups, group_offsets.data(),
                     group_centroids.data(), group_scale.data(), group_bias.data(),
                     group_spread.data(), bits, codes ? codes->data() : nullptr},
          OpenMPExecutor());
    });
  }

  nb::tuple top_k(ArrayIn<float> hidden, int64_t k, int64_t probes, int64_t rescore, float spread,
                  float guard, int64_t groups, bool log_sum, float variance, const std::string& isa,
                  int threads) const {
    require_shape("hidden", hidden, {-1, index_->dense().depth});
    const int64_t rows = index_->dense().rows;
    if (k < 1 || k > rows) {
      raise_data_error("k is " + std::to_string(k) + ", expected 1 to " + std::to_string(rows));
    }
    const size_t count = hidden.shape(0), width = static_cast<size_t>(k);
    std::vector<float> scores(count * width);
    std::vector<int64_t> ids(count * width);
    std::vector<float> log_sums(log_sum ? count : 0);
    without_gil([&] {
      cells_top_k(*index_,
                  {.k = k,
                   .probes = probes,
                   .groups = groups,
                   .rescore = rescore,
                   .spread = spread,
                   .guard = guard,
                   .sum = log_sum,
                   .variance = variance},
                  hidden.data(), static_cast<int64_t>(count), scores.data(), ids.data(),
                  log_sums.data(), OpenMPExecutor(threads), choose(isa));
    });
    if (log_sum) {
      return nb::make_tuple(to_array(std::move(scores), {count, width}),
                            to_array(std::move(ids), {count, width}),
                            to_array(std::move(log_sums), {count, size_t{1}}));
    }
    return nb::make_tuple(to_array(std::move(scores), {count, width}),
                          to_array(std::move(ids), {count, width}));
  }

 private:
  ArrayIn<float> floats_[10];
  std::variant<ArrayIn<int8_t>, ArrayIn<uint8_t>> packed_;
  ArrayIn<int8_t> bytes_[2];
  ArrayIn<uint32_t> offsets_[2];
  ArrayIn<int32_t> row_ids_;
  std::unique_ptr<const CellIndex> index_;
};

}  // namespace

void bind_cells(nb::module_& module) {
  module.def("build_cells", &build, nb::arg("weight").noconvert(), nb::arg("bias").noconvert(),
             nb::arg("cells"), nb::arg("seed") = 0, nb::arg("threads") = 0,
             nb::arg("progress") = nb::none(), nb::arg("isa") = "auto",
             "Arrays of LinearTopK's mode cells, by their names; see qcompile.runtime.index.");
  module.def("code_cells", &code, nb::arg("weight").noconvert(), nb::arg("offsets").noconvert(),
             nb::arg("row_ids").noconvert(), nb::arg("centroids").noconvert(),
             nb::arg("centroid_scale").noconvert(), nb::arg("bits"), nb::arg("threads") = 0,
             "Codes of the rows of cells, their scales and errors; see qcompile.runtime.index.");
  nb::class_<PyCells>(module, "Cells", "An output layer in learned cells.")
      .def(nb::init<ArrayIn<float>, ArrayIn<float>, std::variant<ArrayIn<int8_t>, ArrayIn<uint8_t>>,
                    ArrayIn<float>, ArrayIn<float>, ArrayIn<uint32_t>, ArrayIn<int32_t>,
                    ArrayIn<int8_t>, ArrayIn<float>, ArrayIn<float>, ArrayIn<float>,
                    ArrayIn<uint32_t>, ArrayIn<int8_t>, ArrayIn<float>, ArrayIn<float>,
                    ArrayIn<float>, int64_t>(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert(),
           nb::arg("packed").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("error").noconvert(), nb::arg("offsets").noconvert(),
           nb::arg("row_ids").noconvert(), nb::arg("centroids").noconvert(),
           nb::arg("centroid_scale").noconvert(), nb::arg("cell_bias").noconvert(),
           nb::arg("cell_spread").noconvert(), nb::arg("group_offsets").noconvert(),
           nb::arg("group_centroids").noconvert(), nb::arg("group_scale").noconvert(),
           nb::arg("group_bias").noconvert(), nb::arg("group_spread").noconvert(),
           nb::arg("bits") = 8)
      .def("top_k", &PyCells::top_k, nb::arg("hidden").noconvert(), nb::arg("k"), nb::kw_only(),
           nb::arg("probes"), nb::arg("rescore") = 32, nb::arg("spread") = 0.0f,
           nb::arg("guard") = 0.0f, nb::arg("groups") = 16, nb::arg("log_sum") = false,
           nb::arg("variance") = 1.0f, nb::arg("isa") = "auto", nb::arg("threads") = 1,
           "The k best scores found, and their ids, [B, k], of hidden [B, d]; with log_sum the "
           "logarithm of the partition function, too, [B, 1].");
}

}  // namespace qcompile
