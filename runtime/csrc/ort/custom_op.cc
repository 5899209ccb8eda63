#include "ort/custom_op.h"

namespace qcompile::ort {

std::string NodeInfo::name() const {
  size_t size = 0;
  api_.attempt(kInfoGetNodeName, info_, nullptr, &size);
  std::string name(size, '\0');
  if (size == 0 || !api_.attempt(kInfoGetNodeName, info_, name.data(), &size)) return "";
  name.resize(size - 1);  // without its zero
  return name;
}

int64_t NodeInfo::attribute(const char* name, int64_t fallback) const {
  int64_t value = 0;
  return api_.attempt(kInfoGetInt64, info_, name, &value) ? value : fallback;
}

float NodeInfo::float_attribute(const char* name, float fallback) const {
  float value = 0;
  return api_.attempt(kInfoGetFloat, info_, name, &value) ? value : fallback;
}

std::string NodeInfo::string_attribute(const char* name, const std::string& fallback) const {
  size_t size = 0;
  api_.attempt(kInfoGetString, info_, name, nullptr, &size);
  std::string value(size, '\0');
  if (size == 0 || !api_.attempt(kInfoGetString, info_, name, value.data(), &size)) return fallback;
  value.resize(size - 1);  // without its zero
  return value;
}

size_t NodeInfo::inputs() const {
  size_t count = 0;
  api_.call(kInfoGetInputCount, info_, &count);
  return count;
}

bool NodeInfo::has_output(size_t index) const {
  size_t count = 0, size = 0;
  api_.call(kInfoGetOutputCount, info_, &count);
  if (index >= count) return false;
  api_.attempt(kInfoGetOutputName, info_, index, nullptr, &size);
  return size > 1;  // with its zero
}

bool NodeInfo::constant(size_t index, Tensor& tensor) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  api_.call(kInfoGetConstantInput, info_, index, &is_constant, &value);
  if (!is_constant || value == nullptr) return false;
  tensor = read_tensor(api_, value);
  return true;
}

int64_t ShapeContext::attribute(const char* name, int64_t fallback) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = 0;
  size_t size = 0;
  if (!api_.attempt(kInferGetAttribute, context_, name, &attribute) || attribute == nullptr ||
      !api_.attempt(kReadOpAttr, attribute, kInt, &value, sizeof value, &size)) {
    return fallback;
  }
  return value;
}

const Info* ShapeContext::input(size_t index) const {
  Info* info = nullptr;
  api_.call(kInferGetInput, context_, index, &info);
  return info;
}

int64_t ShapeContext::extent(size_t index, size_t axis) const {
  const Shape shape = read_shape(api_, input(index));
  return axis < shape.dims.size() ? shape.dims[axis] : -1;
}

void ShapeContext::set_output(size_t index, int type, int64_t last) const {
  const Info* info = input(0);
  std::vector<int64_t> dims = read_shape(api_, info).dims;
  if (dims.empty() || last < 0) return;  // an unknown rank reads as zero
  std::vector<const char*> names(dims.size());
  api_.call(kGetSymbolicDimensions, info, names.data(), names.size());
  dims.back() = last;
  names.back() = "";
  for (size_t i = 0; i < dims.size(); ++i) {
    // onnxruntime would take an extent of -1 literally.
    if (dims[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return;
    if (names[i] == nullptr) names[i] = "";
  }
  Info* raw = nullptr;
  api_.call(kCreateTensorTypeAndShapeInfo, &raw);
  const InfoPtr output(raw, InfoDeleter{api_});
  api_.call(kSetTensorElementType, output.get(), type);
  api_.call(kSetDimensions, output.get(), dims.data(), dims.size());
  api_.call(kSetSymbolicDimensions, output.get(), names.data(), names.size());
  api_.call(kInferSetOutput, context_, index, output.get());
}

}  // namespace qcompile::ort
