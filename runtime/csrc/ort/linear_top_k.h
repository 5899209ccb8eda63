#pragma once

#include <memory>

#include "index/cells.h"
#include "index/hashed_rows.h"
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
  void read_tables(const NodeInfo& info);

  CellSearch search_;
  bool log_sum_;  // whether the node has the output of that name
  // In the mode of the name, if all inputs are constant.
  std::unique_ptr<const CellIndex> cells_;
  std::unique_ptr<const HashedRows> hashed_;
};

}  // namespace qcompile::ort
