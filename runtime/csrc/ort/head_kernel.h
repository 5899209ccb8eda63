// What the operators of an output layer have in common: their inputs, checked, and their threads.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "index/head.h"
#include "ort/custom_op.h"
#include "ort/executor.h"

namespace qcompile::ort {

inline constexpr int kHeadInputTypes[] = {kFloat, kFloat, kFloat, kUInt8, kFloat, kFloat};
inline constexpr size_t kDenseInputs = 3;   // hidden, weight, bias
inline constexpr size_t kPackedInputs = 6;  // and packed, scale, error
// Ids of rows, those of the last block's padding among them, fit int32.
inline constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() - kBlockRows;

// The layer of one node. Constant inputs are used where they lie and checked once; others are
// checked at every call, which then computes all scores in fp32.
class HeadKernel {
 public:
  // inputs: kDenseInputs or kPackedInputs. rows: the forms of the layer's rows that the operator
  // can do with. Throws std::invalid_argument, naming node and input, if constant inputs do not fit
  // together.
  enum class Rows { kFloat32, kAny };
  HeadKernel(const NodeInfo& info, const char* op, size_t inputs, Rows rows = Rows::kFloat32,
             RoughRows rough = RoughRows::kNever);

  const Api& api() const { return api_; }

  // Calls body(head, hidden, count, executor) with `count` rows of hidden, and `shape` set to the
  // dimensions of hidden without the last.
  void run(OrtKernelContext* context,
           FunctionRef<void(const Head&, const float* hidden, const std::vector<int64_t>& shape,
                            int64_t count, const Executor&)>
               body) const;

  // Allocates an output of dimensions [shape..., last].
  void* output(OrtKernelContext* context, size_t index, std::vector<int64_t> shape,
               int64_t last) const;

  // Throws std::invalid_argument for this node.
  [[noreturn]] void reject(const std::string& message) const;

 protected:
  // None if an input is not constant.
  const Head* head() const { return head_.get(); }
  void require(const char* input, const Tensor& tensor, int type,
               const std::vector<int64_t>& dims) const;

 private:
  // empty: whether there may be no weight, as packed rows stand for it.
  Dense read_dense(const Tensor& weight, const Tensor& bias, bool empty) const;
  Packed read_packed(const Dense& dense, const Tensor* tensors) const;

  Api api_;
  std::string where_;
  Rows rows_;
  Parallelism parallelism_;
  std::unique_ptr<const Head> head_;
};

}  // namespace qcompile::ort
