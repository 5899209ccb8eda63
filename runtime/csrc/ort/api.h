// onnxruntime's functions as C++: failures are exceptions, tensors are views.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort/ort_abi.h"

namespace qcompile::ort {

class Api {
 public:
  explicit Api(const OrtApi* table) : table_(reinterpret_cast<void* const*>(table)) {}

  // Calls a function of the table, whatever it returns.
  template <typename R, typename... Args>
  R raw(Slot<R(Args...)> slot, std::type_identity_t<Args>... args) const {
    return reinterpret_cast<R (*)(Args...)>(table_[slot.index])(args...);
  }

  // Calls a function that returns a status; throws std::runtime_error unless it succeeds.
  template <typename... Args>
  void call(Slot<OrtStatus*(Args...)> slot, std::type_identity_t<Args>... args) const {
    if (OrtStatus* status = raw(slot, args...)) fail(status);
  }

  // The same, but returns whether it succeeded.
  template <typename... Args>
  bool attempt(Slot<OrtStatus*(Args...)> slot, std::type_identity_t<Args>... args) const {
    OrtStatus* status = raw(slot, args...);
    if (status) raw(kReleaseStatus, status);
    return status == nullptr;
  }

  // Runs body and returns its failure, if any, as a status: no exception leaves the library.
  template <typename F>
  OrtStatus* guard(F&& body) const noexcept {
    try {
      body();
      return nullptr;
    } catch (const std::invalid_argument& error) {
      return raw(kCreateStatus, kInvalidArgument, error.what());
    } catch (const std::exception& error) {
      return raw(kCreateStatus, kFail, error.what());
    } catch (...) {
      return raw(kCreateStatus, kFail, "qcompile: unknown failure");
    }
  }

 private:
  [[noreturn]] void fail(OrtStatus* status) const;

  void* const* table_;
};

// Type and dimensions of a tensor; a dimension that is not known yet is -1.
struct Shape {
  int type = kUndefined;
  std::vector<int64_t> dims;
};

// As in "float32 [2, ?, 128]".
std::string describe(const Shape& shape);

struct InfoDeleter {
  Api api;
  void operator()(Info* info) const { api.raw(kReleaseTensorTypeAndShapeInfo, info); }
};
using InfoPtr = std::unique_ptr<Info, InfoDeleter>;

Shape read_shape(const Api& api, const Info* info);

// A tensor of onnxruntime's, which outlives it.
struct Tensor {
  Shape shape;
  void* data = nullptr;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

Tensor read_tensor(const Api& api, const OrtValue* value);

}  // namespace qcompile::ort
