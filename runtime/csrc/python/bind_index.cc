#include "python/module.h"

namespace qcompile {

void bind_index(nanobind::module_&) {}

}  // namespace qcompile
