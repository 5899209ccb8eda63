#include "ort/linear_softmax.h"

#include "index/operators.h"

namespace qcompile::ort {
namespace {

constexpr int kOutputTypes[] = {kFloat};

}  // namespace

const Signature LinearSoftmax::signature{
    "LinearSoftmax", kHeadInputTypes,         kPackedInputs,          kPackedInputs,
    kOutputTypes,    std::size(kOutputTypes), std::size(kOutputTypes)};

LinearSoftmax::LinearSoftmax(const NodeInfo& info)
    : HeadKernel(info, signature.name, kPackedInputs) {}

void LinearSoftmax::compute(OrtKernelContext* context) const {
  run(context, [&](const Head& head, const float* hidden, const std::vector<int64_t>& shape,
                   int64_t count, const Executor& executor) {
    auto* probabilities = static_cast<float*>(output(context, 0, shape, head.rows()));
    linear_softmax(head, hidden, count, probabilities, executor);
  });
}

void LinearSoftmax::infer(const ShapeContext& context) {
  context.set_output(0, kFloat, context.extent(1, 0));
}

}  // namespace qcompile::ort
