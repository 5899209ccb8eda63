#pragma once

#include "ort/head_kernel.h"

namespace qcompile::ort {

class Linear : public HeadKernel {
 public:
  static const Signature signature;
  explicit Linear(const NodeInfo& info);
  void compute(OrtKernelContext* context) const;
  static void infer(const ShapeContext& context);
};

}  // namespace qcompile::ort
