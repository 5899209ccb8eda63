#pragma once

#include <memory>

#include "index/cells.h"
#include "ort/head_kernel.h"

namespace qcompile::ort {

class LinearTopK : public HeadKernel {
 public:
  static const Signature signature;
  explicit LinearTopK(const NodeInfo& info);
  void compute(OrtKernelContext* context) const;
  static void infer(const ShapeContext& context);

 private:
  void read_cells(const NodeInfo& info);

  CellSearch search_;
  std::unique_ptr<const CellIndex> cells_;  // in mode cells, if all inputs are constant
};

}  // namespace qcompile::ort
