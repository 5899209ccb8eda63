#include "index/query.h"

#include <cmath>

#include "index/layout.h"

namespace qcompile {

Query encode(const float* x, int64_t depth, uint8_t* values, Isa isa) {
  Query query;
  double squares = 0;
  for (int64_t j = 0; j < depth; ++j) squares += static_cast<double>(x[j]) * x[j];
  query.finite = std::isfinite(squares);  // squares of finite floats cannot overflow a double
  if (!query.finite) return query;
  auto* quantised = reinterpret_cast<int8_t*>(values);
  const double norm = std::sqrt(squares) * (1 + static_cast<double>(depth + 4) * 0x1p-52);
  const double residual = quantise(x, depth, &query.scale, quantised, isa);
  query.norm = round_up(norm);
  query.error = round_up(residual + norm * 0x1p-20);
  for (int64_t j = 0; j < depth; ++j) query.sum += quantised[j];
  for (int64_t j = 0; j < depth; ++j) values[j] ^= 0x80;
  for (int64_t j = depth; j < step_count(depth) * kBlockDepth; ++j) values[j] = 0x80;
  return query;
}

}  // namespace qcompile
