// A C++ class as an onnxruntime operator.
#pragma once

#include <string>

#include "ort/api.h"

namespace qcompile::ort {

// VERSION of qcompile/ops.py.
inline constexpr int kOperatorVersion = 3;

// What a kernel's constructor may ask about its node.
class NodeInfo {
 public:
  NodeInfo(const Api& api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  const Api& api() const { return api_; }
  std::string name() const;
  int64_t attribute(const char* name, int64_t fallback) const;
  float float_attribute(const char* name, float fallback) const;
  std::string string_attribute(const char* name, const std::string& fallback) const;
  // How many inputs the node names.
  size_t inputs() const;
  // Whether the node has an output at this place: one that is left out has no name.
  bool has_output(size_t index) const;
  // Whether the input is an initializer; sets `tensor` if so.
  bool constant(size_t index, Tensor& tensor) const;

 private:
  Api api_;
  const OrtKernelInfo* info_;
};

// What shape inference may ask and say.
class ShapeContext {
 public:
  ShapeContext(const Api& api, OrtShapeInferContext* context) : api_(api), context_(context) {}
  int64_t attribute(const char* name, int64_t fallback) const;
  // Extent of an input's axis; -1 if it is not known.
  int64_t extent(size_t input, size_t axis) const;
  // Gives an output the shape of input 0 with another last axis; nothing if either is not known.
  void set_output(size_t index, int type, int64_t last) const;

 private:
  const Info* input(size_t index) const;  // the context's own

  Api api_;
  OrtShapeInferContext* context_;
};

// Signature of an operator. A node may leave out inputs from `required` on and outputs from
// `required_outputs` on, but none in between.
struct Signature {
  const char* name;
  const int* input_types;
  size_t inputs;
  size_t required;
  const int* output_types;
  size_t outputs;
  size_t required_outputs;
};

// Kernel has `static const Signature signature`, `Kernel(const NodeInfo&)`, `void compute(
// OrtKernelContext*) const`, `const Api& api() const` and `static void infer(const ShapeContext&)`.
template <typename Kernel>
class CustomOp : public OrtCustomOp {
 public:
  explicit CustomOp(const Api& api) : OrtCustomOp{}, api_(api) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::signature.name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const OrtCustomOp*, size_t i) { return Kernel::signature.input_types[i]; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::signature.inputs; };
    GetOutputType = [](const OrtCustomOp*, size_t i) { return Kernel::signature.output_types[i]; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::signature.outputs; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
      return i < Kernel::signature.required ? kRequired : kOptional;
    };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
      return i < Kernel::signature.required_outputs ? kRequired : kOptional;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return kDefaultMemory; };
    GetVariadicInputMinArity = GetVariadicInputHomogeneity = GetVariadicOutputMinArity =
        GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = GetEndVersion = [](const OrtCustomOp*) { return kOperatorVersion; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info,
                        void** kernel) {
      const Api api(table);
      return api.guard([&] { *kernel = new Kernel(NodeInfo(api, info)); });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const auto& self = *static_cast<const Kernel*>(kernel);
      return self.api().guard([&] { self.compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const Api& api = static_cast<const CustomOp*>(op)->api_;
      return api.guard([&] { Kernel::infer(ShapeContext(api, context)); });
    };
  }

 private:
  Api api_;
};

}  // namespace qcompile::ort
