#include "python/module.h"

NB_MODULE(_core, module) {
  module.doc() = "Compiled core of qcompile: hashing, sampling, sparse kernels, index building.";
  qcompile::bind_index(module);
  qcompile::bind_lsh(module);
  qcompile::bind_train(module);
}
