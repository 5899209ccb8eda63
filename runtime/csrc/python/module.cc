#include "python/module.h"

NB_MODULE(_core, module) {
  module.doc() = "Compiled core of qcompile: hashing, sampling, sparse kernels, index building.";
  // A script's globals may outlive the module; that is no leak to report.
  nanobind::set_leak_warnings(false);
  qcompile::bind_cells(module);
  qcompile::bind_data(module);
  qcompile::bind_hashed(module);
  qcompile::bind_index(module);
  qcompile::bind_lsh(module);
  qcompile::bind_optim(module);  // before what takes its classes as arguments
  qcompile::bind_csr(module);
  qcompile::bind_quadratic(module);
  qcompile::bind_train(module);
  qcompile::bind_winograd(module);
}
