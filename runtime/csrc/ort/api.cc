#include "ort/api.h"

namespace qcompile::ort {
namespace {

const char* type_name(int type) {
  switch (type) {
    case kFloat:
      return "float32";
    case kUInt8:
      return "uint8";
    case kInt8:
      return "int8";
    case kInt32:
      return "int32";
    case kUInt32:
      return "uint32";
    case kInt64:
      return "int64";
    case kBFloat16:
      return "bfloat16";
    default:
      return "another type";
  }
}

}  // namespace

void Api::fail(OrtStatus* status) const {
  std::string message = raw(kGetErrorMessage, status);
  raw(kReleaseStatus, status);
  throw std::runtime_error(message);
}

std::string describe(const Shape& shape) {
  std::string text = type_name(shape.type);
  text += " [";
  for (size_t i = 0; i < shape.dims.size(); ++i) {
    text += i ? ", " : "";
    text += shape.dims[i] < 0 ? "?" : std::to_string(shape.dims[i]);
  }
  return text + "]";
}

Shape read_shape(const Api& api, const Info* info) {
  Shape shape;
  size_t rank = 0;
  api.call(kGetTensorElementType, info, &shape.type);
  api.call(kGetDimensionsCount, info, &rank);
  shape.dims.resize(rank);
  api.call(kGetDimensions, info, shape.dims.data(), rank);
  return shape;
}

Tensor read_tensor(const Api& api, const OrtValue* value) {
  Info* raw = nullptr;
  api.call(kGetTensorTypeAndShape, value, &raw);
  const InfoPtr info(raw, InfoDeleter{api});
  Tensor tensor{read_shape(api, info.get()), nullptr};
  api.call(kGetTensorMutableData, const_cast<OrtValue*>(value), &tensor.data);
  return tensor;
}

}  // namespace qcompile::ort
