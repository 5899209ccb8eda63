#include "ort/linear_top_k.h"

#include "index/operators.h"

namespace qcompile::ort {
namespace {

constexpr int kOutputTypes[] = {kFloat, kInt64};

}  // namespace

const Signature LinearTopK::signature{"LinearTopK", kHeadInputTypes, kPackedInputs, kOutputTypes,
                                      std::size(kOutputTypes)};

LinearTopK::LinearTopK(const NodeInfo& info)
    : HeadKernel(info, signature.name, kPackedInputs), k_(info.attribute("k", 1)) {
  if (k_ < 1) reject("attribute k is " + std::to_string(k_) + ", expected at least 1");
}

void LinearTopK::compute(OrtKernelContext* context) const {
  run(context, [&](const Head& head, const float* hidden, const std::vector<int64_t>& shape,
                   int64_t count, const Executor& executor) {
    if (k_ > head.rows()) {
      reject("attribute k is " + std::to_string(k_) + ", expected at most the " +
             std::to_string(head.rows()) + " rows of input 'weight'");
    }
    auto* scores = static_cast<float*>(output(context, 0, shape, k_));
    auto* ids = static_cast<int64_t*>(output(context, 1, shape, k_));
    linear_top_k(head, hidden, count, k_, scores, ids, executor);
  });
}

void LinearTopK::infer(const ShapeContext& context) {
  const int64_t k = context.attribute("k", 1);
  context.set_output(0, kFloat, k);
  context.set_output(1, kInt64, k);
}

}  // namespace qcompile::ort
