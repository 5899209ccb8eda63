#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/exponential.h"
#include "index/log_sum.h"
#include "index/operators.h"
#include "python/layer.h"
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

// Not filled: for large results.
template <typename T>
ArrayOut<T> make(std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  std::unique_ptr<T[]> data(new T[size]);
  nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return ArrayOut<T>(data.release(), shape, owner);
}

int64_t count_of(const ArrayIn<float>& hidden, const Dense& dense) {
  require_shape("hidden", hidden, {-1, dense.depth});
  return static_cast<int64_t>(hidden.shape(0));
}

RoughRows rough_rows(const std::string& when) {
  if (when == "never") return RoughRows::kNever;
  if (when == "always") return RoughRows::kAlways;
  if (when == "if large") return RoughRows::kIfLarge;
  raise_data_error("rough is '" + when + "', expected never, always or if large");
}

// An output layer in Python: keeps its arrays alive.
class PyHead {
 public:
  PyHead(LayerRows weight, ArrayIn<float> bias, ArrayIn<uint8_t> packed, ArrayIn<float> scale,
         ArrayIn<float> error, const std::string& rough)
      : weight_(weight), floats_{bias, scale, error}, packed_(packed) {
    const Dense dense = layer_from(weight, bias);
    const Packed rows = packed_from(dense, packed, scale, error);
    without_gil(
        [&] { head_ = std::make_unique<Head>(dense, rows, OpenMPExecutor(), rough_rows(rough)); });
  }

  nb::tuple top_k(ArrayIn<float> hidden, int64_t k, const std::string& isa, int threads) const {
    const int64_t count = count_of(hidden, head_->dense());
    if (k < 1 || k > head_->rows()) {
      raise_data_error("k is " + std::to_string(k) + ", expected 1 to " +
                       std::to_string(head_->rows()));
    }
    const auto size = static_cast<size_t>(count), width = static_cast<size_t>(k);
    auto scores = make<float>({size, width});
    auto ids = make<int64_t>({size, width});
    without_gil([&] {
      linear_top_k(*head_, hidden.data(), count, k, scores.data(), ids.data(),
                   OpenMPExecutor(threads), choose(isa));
    });
    return nb::make_tuple(scores, ids);
  }

  nb::tuple top_k_log_sum(ArrayIn<float> hidden, int64_t k, const std::string& isa,
                          int threads) const {
    if (head_->dense().weight == nullptr) raise_data_error("log_sum: expected a float32 weight");
    const int64_t count = count_of(hidden, head_->dense());
    if (k < 1 || k > head_->rows()) {
      raise_data_error("k is " + std::to_string(k) + ", expected 1 to " +
                       std::to_string(head_->rows()));
    }
    const auto size = static_cast<size_t>(count), width = static_cast<size_t>(k);
    auto scores = make<float>({size, width});
    auto ids = make<int64_t>({size, width});
    auto log_sums = make<float>({size, 1});
    without_gil([&] {
      linear_top_k_log_sum(*head_, hidden.data(), count, k, scores.data(), ids.data(),
                           log_sums.data(), OpenMPExecutor(threads), choose(isa));
    });
    return nb::make_tuple(scores, ids, log_sums);
  }

  ArrayOut<float> softmax(ArrayIn<float> hidden, const std::string& isa, int threads) const {
    if (head_->dense().weight == nullptr) raise_data_error("softmax: expected a float32 weight");
    const int64_t count = count_of(hidden, head_->dense());
    auto out = make<float>({static_cast<size_t>(count), static_cast<size_t>(head_->rows())});
    without_gil([&] {
      linear_softmax(*head_, hidden.data(), count, out.data(), OpenMPExecutor(threads),
                     choose(isa));
    });
    return out;
  }

 private:
  LayerRows weight_;
  ArrayIn<float> floats_[3];
  ArrayIn<uint8_t> packed_;
  std::unique_ptr<Head> head_;
};

nb::tuple pack(ArrayIn<float> weight, int planes) {
  if (weight.ndim() != 2 || weight.size() == 0) {
    raise_data_error("pack_rows: expected a non-empty float32 matrix [N, d]");
  }
  if (planes != 1 && planes != 2) raise_data_error("pack_rows: expected 1 or 2 planes");
  const size_t rows = weight.shape(0), depth = weight.shape(1);
  const auto blocks = static_cast<size_t>(block_count(static_cast<int64_t>(rows)));
  const auto bytes = static_cast<size_t>(plane_bytes(static_cast<int64_t>(depth)));
  std::vector<uint8_t> packed(static_cast<size_t>(planes) * blocks * bytes);
  std::vector<float> scale(rows), error(rows);
  without_gil([&] {
    pack_planes(weight.data(), static_cast<int64_t>(rows), static_cast<int64_t>(depth),
                packed.data(), planes == 2 ? packed.data() + blocks * bytes : nullptr, scale.data(),
                error.data(), OpenMPExecutor());
  });
  return nb::make_tuple(
      to_array(std::move(packed), {static_cast<size_t>(planes), blocks, bytes / kStepBytes,
                                   size_t{kBlockRows}, size_t{kBlockDepth}}),
      to_array(std::move(scale), {rows}), to_array(std::move(error), {rows}));
}

ArrayOut<float> linear_scores(ArrayIn<float> hidden, ArrayIn<float> weight, ArrayIn<float> bias,
                              const std::string& isa, int threads) {
  const Dense dense = dense_from(weight, bias);
  const int64_t count = count_of(hidden, dense);
  auto out = make<float>({static_cast<size_t>(count), static_cast<size_t>(dense.rows)});
  without_gil([&] {
    linear(dense, hidden.data(), count, out.data(), OpenMPExecutor(threads), choose(isa));
  });
  return out;
}

nb::tuple exp_and_sum(ArrayIn<float> values, float shift, const std::string& isa) {
  auto out = make<float>({values.size()});
  std::copy_n(values.data(), values.size(), out.data());
  double sum = 0;
  without_gil([&] {
    sum = exponentials(out.data(), static_cast<int64_t>(values.size()), shift, choose(isa));
  });
  return nb::make_tuple(out, sum);
}

}  // namespace

void bind_index(nb::module_& module) {
  module.def("pack_rows", &pack, nb::arg("weight").noconvert(), nb::arg("planes") = 2,
             "Quantise and pack weight [N, d]; see qcompile.runtime.reference.index.pack.");
  nb::class_<PyHead>(module, "Head", "An output layer with packed rows.")
      .def(nb::init<LayerRows, ArrayIn<float>, ArrayIn<uint8_t>, ArrayIn<float>, ArrayIn<float>,
                    const std::string&>(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert(),
           nb::arg("packed").noconvert(), nb::arg("scale").noconvert(),
           nb::arg("error").noconvert(), nb::arg("rough") = "never")
      .def("top_k", &PyHead::top_k, nb::arg("hidden").noconvert(), nb::arg("k"),
           nb::arg("isa") = "auto", nb::arg("threads") = 1,
           "The k largest scores and their ids, [B, k], of hidden [B, d].")
      .def("top_k_log_sum", &PyHead::top_k_log_sum, nb::arg("hidden").noconvert(), nb::arg("k"),
           nb::arg("isa") = "auto", nb::arg("threads") = 1,
           "The same, and the logarithm of the sum of the exponentials of all scores [B, 1].")
      .def("softmax", &PyHead::softmax, nb::arg("hidden").noconvert(), nb::arg("isa") = "auto",
           nb::arg("threads") = 1, "Probabilities [B, N] of hidden [B, d].");
  module.def("linear", &linear_scores, nb::arg("hidden").noconvert(), nb::arg("weight").noconvert(),
             nb::arg("bias").noconvert(), nb::arg("isa") = "auto", nb::arg("threads") = 1,
             "Scores [B, N] of hidden [B, d].");
  module.def("exponentials", &exp_and_sum, nb::arg("values").noconvert(), nb::arg("shift"),
             nb::arg("isa") = "auto", "exp(values - shift) and their sum.");
  module.def(
      "supported_isas",
      [] {
        nb::list names;
        for (auto [name, isa] : {std::pair{"scalar", Isa::kScalar}, std::pair{"avx2", Isa::kAvx2},
                                 std::pair{"avx512", Isa::kAvx512}, std::pair{"amx", Isa::kAmx}}) {
          if (supported(isa)) names.append(name);
        }
        return names;
      },
      "Names of the instruction sets that this processor runs, narrowest first.");
}

}  // namespace qcompile
