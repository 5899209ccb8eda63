#pragma once

#include "ort/head_kernel.h"

namespace qcompile::ort {

class LinearTopK : public HeadKernel {
 public:
  static const Signature signature;
  explicit LinearTopK(const NodeInfo& info);
  void compute(OrtKernelContext* context) const;
  static void infer(const ShapeContext& context);

 private:
  int64_t k_;
};

}  // namespace qcompile::ort
