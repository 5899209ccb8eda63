#include "ort/head_kernel.h"

namespace qcompile::ort {
namespace {

constexpr const char* kNames[] = {"hidden", "weight", "bias", "packed", "scale", "error"};

Tensor input(const Api& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  api.call(kGetInput, context, index, &value);
  if (value == nullptr) throw std::invalid_argument(std::string(kNames[index]) + " is missing");
  return read_tensor(api, value);
}

}  // namespace

HeadKernel::HeadKernel(const NodeInfo& info, const char* op, size_t inputs, Rows rows,
                       RoughRows rough)
    : api_(info.api()),
      where_(std::string("qcompile ") + op + " '" + info.name() + "'"),
      rows_(rows) {
  Tensor tensors[kPackedInputs];
  bool constant = true;
  for (size_t i = 1; i < inputs; ++i) constant = info.constant(i, tensors[i]) && constant;
  if (!constant) return;
  const Dense dense = read_dense(tensors[1], tensors[2], inputs == kPackedInputs);
  if (inputs == kDenseInputs) {
    head_ = std::make_unique<Head>(dense);
    return;
  }
  const Packed packed = read_packed(dense, tensors);
  try {
    head_ = std::make_unique<Head>(dense, packed, SerialExecutor(), rough);
  } catch (const std::invalid_argument& error) {
    reject(error.what());
  }
}

void HeadKernel::run(OrtKernelContext* context,
                     FunctionRef<void(const Head&, const float*, const std::vector<int64_t>&,
                                      int64_t, const Executor&)>
                         body) const {
  std::unique_ptr<const Head> made;
  if (!head_) {
    made =
        std::make_unique<Head>(read_dense(input(api_, context, 1), input(api_, context, 2), false));
  }
  const Head& head = head_ ? *head_ : *made;
  const Tensor hidden = input(api_, context, 0);
  std::vector<int64_t> shape = hidden.shape.dims;
  if (hidden.shape.type != kFloat || shape.empty() || shape.back() != head.depth()) {
    reject("input 'hidden': expected float32 [..., " + std::to_string(head.depth()) + "], found " +
           describe(hidden.shape));
  }
  shape.pop_back();
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  parallelism_.with(api_, context, [&](const Executor& executor) {
    body(head, hidden.as<float>(), shape, count, executor);
  });
}

void* HeadKernel::output(OrtKernelContext* context, size_t index, std::vector<int64_t> shape,
                         int64_t last) const {
  shape.push_back(last);
  OrtValue* value = nullptr;
  void* data = nullptr;
  api_.call(kGetOutput, context, index, shape.data(), shape.size(), &value);
  api_.call(kGetTensorMutableData, value, &data);
  return data;
}

void HeadKernel::reject(const std::string& message) const {
  throw std::invalid_argument(where_ + ": " + message);
}

Dense HeadKernel::read_dense(const Tensor& weight, const Tensor& bias, bool empty) const {
  const std::vector<int64_t>& dims = weight.shape.dims;
  const int type = weight.shape.type;
  const bool any = rows_ == Rows::kAny;
  const int64_t least = any && empty && type == kFloat ? 0 : 1;
  if ((type != kFloat && !(any && type == kBFloat16)) || dims.size() != 2 || dims[0] < least ||
      dims[1] < 1 || dims[0] > kMostRows) {
    reject("input 'weight': expected a non-empty float32 matrix [N, d], found " +
           describe(weight.shape));
  }
  if (dims[0] > 0) {
    require("bias", bias, kFloat, {dims[0]});
    if (type == kFloat) return {weight.as<float>(), bias.as<float>(), dims[0], dims[1]};
    return {nullptr, bias.as<float>(), dims[0], dims[1], weight.as<uint16_t>()};
  }
  const std::vector<int64_t>& rows = bias.shape.dims;
  if (bias.shape.type != kFloat || rows.size() != 1 || rows[0] < 1 || rows[0] > kMostRows) {
    reject("input 'bias': expected float32 [1 or more], found " + describe(bias.shape));
  }
  return {nullptr, bias.as<float>(), rows[0], dims[1]};
}

Packed HeadKernel::read_packed(const Dense& dense, const Tensor* tensors) const {
  const std::vector<int64_t>& dims = tensors[3].shape.dims;
  const int64_t blocks = block_count(dense.rows), pairs = pair_count(step_count(dense.depth));
  const bool alone = dense.weight == nullptr && dense.half == nullptr;
  // Rough rows, of one plane, can do for a scan but not for the layer's own.
  const int64_t planes = !alone && !dims.empty() && dims[0] == 1 ? 1 : 2;
  require("packed", tensors[3], kUInt8, {planes, blocks, pairs, kBlockRows, kBlockDepth});
  require("scale", tensors[4], kFloat, {dense.rows});
  require("error", tensors[5], kFloat, {dense.rows});
  const auto* high = tensors[3].as<uint8_t>();
  const uint8_t* low = planes == 2 ? high + blocks * plane_bytes(dense.depth) : nullptr;
  return {high, low, tensors[4].as<float>(), tensors[5].as<float>()};
}

void HeadKernel::require(const char* input, const Tensor& tensor, int type,
                         const std::vector<int64_t>& dims) const {
  if (tensor.shape.type == type && tensor.shape.dims == dims) return;
  reject("input '" + std::string(input) + "': expected " + describe({type, dims}) + ", found " +
         describe(tensor.shape));
}

}  // namespace qcompile::ort
