#include "ort/linear.h"

#include "index/operators.h"

namespace qcompile::ort {
namespace {

constexpr int kOutputTypes[] = {kFloat};

}  // namespace

const Signature Linear::signature{
    "Linear",     kHeadInputTypes,         kDenseInputs,           kDenseInputs,
    kOutputTypes, std::size(kOutputTypes), std::size(kOutputTypes)};

Linear::Linear(const NodeInfo& info) : HeadKernel(info, signature.name, kDenseInputs) {}

void Linear::compute(OrtKernelContext* context) const {
  run(context, [&](const Head& head, const float* hidden, const std::vector<int64_t>& shape,
                   int64_t count, const Executor& executor) {
    auto* scores = static_cast<float*>(output(context, 0, shape, head.rows()));
    qcompile::linear(head.dense(), hidden, count, scores, executor);
  });
}

void Linear::infer(const ShapeContext& context) {
  context.set_output(0, kFloat, context.extent(1, 0));
}

}  // namespace qcompile::ort
