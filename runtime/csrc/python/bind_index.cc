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
#include "python/module.h"

namespace nb = nanobind;

namespace qcompile {
namespace {

template <typename T>
using Input = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output = nb::ndarray<nb::numpy, T, nb::c_contig>;

[[noreturn]] void raise_data_error(const std::string& message) {
  const nb::object type = nb::module_::import_("qcompile.errors").attr("DataError");
  PyErr_SetString(type.ptr(), message.c_str());
  throw nb::python_error();
}

// Runs without the GIL; a bad argument becomes a DataError.
template <typename F>
void compute(F&& body) {
  std::string message;
  {
    nb::gil_scoped_release release;
    try {
      body();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
  }
  if (!message.empty()) raise_data_error(message);
}

Isa choose(const std::string& isa) { return isa == "auto" ? best_matrix_isa() : parse_isa(isa); }

template <typename T>
Output<T> make(std::initializer_list<size_t> shape) {
  size_t size = 1;
  for (size_t extent : shape) size *= extent;
  auto data = std::make_unique<T[]>(size);
  nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Output<T>(data.release(), shape, owner);
}

void require(bool condition, const std::string& message) {
  if (!condition) raise_data_error(message);
}

template <typename T>
void require_shape(const char* name, const Input<T>& array, std::initializer_list<int64_t> shape) {
  bool same = array.ndim() == shape.size();
  std::string expected;
  size_t axis = 0;
  for (int64_t extent : shape) {
    same = same && static_cast<int64_t>(array.shape(axis)) == extent;
    expected += (axis++ ? ", " : "") + std::to_string(extent);
  }
  require(same, std::string(name) + ": expected the shape [" + expected + "]");
}

Dense dense_from(const Input<float>& weight, const Input<float>& bias) {
  require(weight.ndim() == 2 && weight.size() > 0, "weight: expected a non-empty matrix [N, d]");
  const auto rows = static_cast<int64_t>(weight.shape(0));
  require_shape("bias", bias, {rows});
  return {weight.data(), bias.data(), rows, static_cast<int64_t>(weight.shape(1))};
}

int64_t count_of(const Input<float>& hidden, const Dense& dense) {
  require(hidden.ndim() == 2 && static_cast<int64_t>(hidden.shape(1)) == dense.depth,
          "hidden: expected a matrix [B, " + std::to_string(dense.depth) + "]");
  return static_cast<int64_t>(hidden.shape(0));
}

RoughRows rough_rows(const std::string& when) {
  if (when == "never") return RoughRows::kNever;
  if (when == "always") return RoughRows::kAlways;
  require(when == "if large", "rough is '" + when + "', expected never, always or if large");
  return RoughRows::kIfLarge;
}

// An output layer in Python: keeps its arrays alive.
class PyHead {
 public:
  PyHead(Input<float> weight, Input<float> bias, Input<int8_t> packed, Input<float> scale,
         Input<float> error, const std::string& rough)
      : arrays_{weight, bias, scale, error}, packed_(packed) {
    const Dense dense = dense_from(weight, bias);
    require_shape("packed", packed,
                  {block_count(dense.rows), step_count(dense.depth), kBlockRows, kBlockDepth});
    require_shape("scale", scale, {dense.rows});
    require_shape("error", error, {dense.rows});
    compute([&] {
      head_ = std::make_unique<Head>(dense, Packed{packed.data(), scale.data(), error.data()},
                                     OpenMPExecutor(), rough_rows(rough));
    });
  }

  nb::tuple top_k(Input<float> hidden, int64_t k, const std::string& isa, int threads) const {
    const int64_t count = count_of(hidden, head_->dense());
    require(k >= 1 && k <= head_->rows(),
            "k is " + std::to_string(k) + ", expected 1 to " + std::to_string(head_->rows()));
    const auto size = static_cast<size_t>(count), width = static_cast<size_t>(k);
    auto scores = make<float>({size, width});
    auto ids = make<int64_t>({size, width});
    compute([&] {
      linear_top_k(*head_, hidden.data(), count, k, scores.data(), ids.data(),
                   OpenMPExecutor(threads), choose(isa));
    });
    return nb::make_tuple(scores, ids);
  }

  nb::tuple top_k_log_sum(Input<float> hidden, int64_t k, const std::string& isa,
                          int threads) const {
    const int64_t count = count_of(hidden, head_->dense());
    require(k >= 1 && k <= head_->rows(),
            "k is " + std::to_string(k) + ", expected 1 to " + std::to_string(head_->rows()));
    const auto size = static_cast<size_t>(count), width = static_cast<size_t>(k);
    auto scores = make<float>({size, width});
    auto ids = make<int64_t>({size, width});
    auto log_sums = make<float>({size, 1});
    compute([&] {
      linear_top_k_log_sum(*head_, hidden.data(), count, k, scores.data(), ids.data(),
                           log_sums.data(), OpenMPExecutor(threads), choose(isa));
    });
    return nb::make_tuple(scores, ids, log_sums);
  }

  Output<float> softmax(Input<float> hidden, const std::string& isa, int threads) const {
    const int64_t count = count_of(hidden, head_->dense());
    auto out = make<float>({static_cast<size_t>(count), static_cast<size_t>(head_->rows())});
    compute([&] {
      linear_softmax(*head_, hidden.data(), count, out.data(), OpenMPExecutor(threads),
                     choose(isa));
    });
    return out;
  }

 private:
  Input<float> arrays_[4];
  Input<int8_t> packed_;
  std::unique_ptr<Head> head_;
};

nb::tuple pack(Input<float> weight) {
  require(weight.ndim() == 2 && weight.size() > 0,
          "pack_rows: expected a non-empty float32 matrix [N, d]");
  const auto rows = static_cast<int64_t>(weight.shape(0));
  const auto depth = static_cast<int64_t>(weight.shape(1));
  const auto count = static_cast<size_t>(rows);
  auto packed = make<int8_t>({static_cast<size_t>(block_count(rows)),
                              static_cast<size_t>(step_count(depth)), kBlockRows, kBlockDepth});
  auto scale = make<float>({count});
  auto error = make<float>({count});
  compute([&] {
    pack_rows(weight.data(), rows, depth, packed.data(), scale.data(), error.data(),
              OpenMPExecutor());
  });
  return nb::make_tuple(packed, scale, error);
}

Output<float> linear_scores(Input<float> hidden, Input<float> weight, Input<float> bias,
                            const std::string& isa, int threads) {
  const Dense dense = dense_from(weight, bias);
  const int64_t count = count_of(hidden, dense);
  auto out = make<float>({static_cast<size_t>(count), static_cast<size_t>(dense.rows)});
  compute([&] {
    linear(dense, hidden.data(), count, out.data(), OpenMPExecutor(threads), choose(isa));
  });
  return out;
}

nb::tuple exp_and_sum(Input<float> values, float shift, const std::string& isa) {
  auto out = make<float>({values.size()});
  std::copy_n(values.data(), values.size(), out.data());
  double sum = 0;
  compute([&] {
    sum = exponentials(out.data(), static_cast<int64_t>(values.size()), shift, choose(isa));
  });
  return nb::make_tuple(out, sum);
}

}  // namespace

void bind_index(nb::module_& module) {
  module.def("pack_rows", &pack, nb::arg("weight").noconvert(),
             "Quantise and pack weight [N, d]; see qcompile.runtime.reference.index.pack.");
  nb::class_<PyHead>(module, "Head", "An output layer with packed rows.")
      .def(nb::init<Input<float>, Input<float>, Input<int8_t>, Input<float>, Input<float>,
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
