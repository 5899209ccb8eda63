#include "python/module.h"

namespace qcompile {

void bind_lsh(nanobind::module_&) {}

}  // namespace qcompile
