#pragma once

#include <cstdint>

#include "train/storage.h"

namespace qcompile {

// The output layer, row-major: weight [N, depth], bias [N, 1] or without data.
struct OutputLayer {
  RowsView weight;
  RowsView bias;

  int64_t depth() const { return weight.depth; }
  float bias_of(int64_t neuron) const {
    float value = 0;
    if (bias.data != nullptr) load_row(bias, neuron, &value);
    return value;
  }
  const char* row_bytes(int64_t neuron) const {
    return static_cast<const char*>(weight.data) + neuron * row_size();
  }
  int64_t row_size() const {
    return depth() * (weight.storage == Storage::kFloat32 ? sizeof(float) : sizeof(uint16_t));
  }
  // Asks for a row, so that reading it a little later need not wait for memory.
  void prefetch(int64_t neuron) const {
    const char* row = row_bytes(neuron);
    for (int64_t at = 0; at < row_size(); at += 64) __builtin_prefetch(row + at);
  }
};

}  // namespace qcompile
