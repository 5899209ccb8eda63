#include "python/module.h"

namespace qcompile {

void bind_train(nanobind::module_&) {}

}  // namespace qcompile
