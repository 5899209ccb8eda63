// One function per topic binds that topic's classes and functions into the module.
#pragma once

#include <nanobind/nanobind.h>

namespace qcompile {

void bind_cells(nanobind::module_& module);      // layers in learned cells
void bind_csr(nanobind::module_& module);        // products of sparse batches
void bind_data(nanobind::module_& module);       // parsing text
void bind_hashed(nanobind::module_& module);     // layers with hash tables
void bind_index(nanobind::module_& module);      // packing and exact scan
void bind_lsh(nanobind::module_& module);        // hash families, tables, sampling
void bind_optim(nanobind::module_& module);      // row-wise optimisers
void bind_quadratic(nanobind::module_& module);  // blocks of quadratic layers
void bind_train(nanobind::module_& module);      // sparse softmax
void bind_winograd(nanobind::module_& module);   // convolutions of 3x3

}  // namespace qcompile
