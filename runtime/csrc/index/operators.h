// The operators of an output layer, as the onnxruntime plugin and the Python module call them.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/head.h"

namespace qcompile {

// The k largest scores of each of `count` hidden vectors [count, depth], descending, into scores
// and ids [count, k]. Of equal scores the smaller id comes first; NaN ranks above everything. The
// result does not depend on the instruction set or on the number of threads. Throws
// std::invalid_argument unless 1 <= k <= rows.
void linear_top_k(const Head& head, const float* hidden, int64_t count, int64_t k, float* scores,
                  int64_t* ids, const Executor& executor, Isa isa = best_matrix_isa());

// softmax over all rows into probabilities [count, rows]. Rows that the error bound proves less
// probable than 1e-7 of the most probable row keep their int8 score, if the bound also proves that
// this changes the normaliser by less than 1e-5 of itself, about what fp32 scores are worth. So a
// probability is off by at most 1e-7 or, relatively, by 1e-5 and fp32's rounding. A query whose
// distribution is too flat for that is computed wholly in fp32.
void linear_softmax(const Head& head, const float* hidden, int64_t count, float* probabilities,
                    const Executor& executor, Isa isa = best_matrix_isa());

// All scores, in fp32, into scores [count, rows].
void linear(const Dense& dense, const float* hidden, int64_t count, float* scores,
            const Executor& executor, Isa isa = best_matrix_isa());

}  // namespace qcompile
