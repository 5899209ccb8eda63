// Memory of a training step that the next one uses again.
#pragma once

#include <memory>

#include "core/buffer.h"
#include "train/racing_sums.h"

namespace qcompile {

// What one batch works in, from its forward to its backward; the names are those of the members
// of SharedPart and OwnPart.
struct Workspace {
  Buffer<float> shared_logits;
  Buffer<float> shared_bias;
  Buffer<float> chunk_top;
  Buffer<double> chunk_total;
  Buffer<float> chunk_sums;
  Buffer<float> own_logits;
  Buffer<float> own_gradients;
  Buffer<uint32_t> slots;
  RacingSums racing;
  Buffer<float> normaliser;
  Buffer<float> factor;
  Buffer<float> bias_gradients;
};

// Gives a workspace back for the next batch instead of freeing it; a few are kept.
struct ReturnWorkspace {
  void operator()(Workspace* workspace) const noexcept;
};
using WorkspaceLease = std::unique_ptr<Workspace, ReturnWorkspace>;

// Safe to call from several threads.
WorkspaceLease lease_workspace();

}  // namespace qcompile
