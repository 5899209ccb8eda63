#pragma once

#include "ort/head_kernel.h"

namespace qcompile::ort {

class LinearSoftmax : public HeadKernel {
 public:
  static const Signature signature;
  explicit LinearSoftmax(const NodeInfo& info);
  void compute(OrtKernelContext* context) const;
  static void infer(const ShapeContext& context);
};

}  // namespace qcompile::ort
