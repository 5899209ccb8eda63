#include "ort/executor.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <string_view>

namespace qcompile::ort {
namespace {

// Processors that this process may use.
int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

// A loop that onnxruntime runs; keeps the first exception for the caller.
struct Loop {
  explicit Loop(FunctionRef<void(int64_t)> body) : task(body) {}

  FunctionRef<void(int64_t)> task;
  std::atomic<bool> failed{false};
  std::exception_ptr failure;

  static void step(void* self, size_t index) noexcept {
    auto& loop = *static_cast<Loop*>(self);
    if (loop.failed.load(std::memory_order_relaxed)) return;
    try {
      loop.task(static_cast<int64_t>(index));
    } catch (...) {
      if (!loop.failed.exchange(true)) loop.failure = std::current_exception();
    }
  }
};

}  // namespace

void PoolExecutor::run(int64_t count, FunctionRef<void(int64_t)> task) const {
  if (count <= 1) return SerialExecutor().run(count, task);
  Loop loop(task);
  api_.call(kParallelFor, context_, Loop::step, static_cast<size_t>(count), 0, &loop);
  if (loop.failure) std::rethrow_exception(loop.failure);
}

Parallelism::Parallelism() : threads_(processors()) {
  const char* value = std::getenv("QCOMPILE_PARALLEL");
  const std::string_view name = value && *value ? value : "onnxruntime";
  if (name == "onnxruntime") return;
  if (name == "openmp") {
    fixed_ = std::make_shared<OpenMPExecutor>();
  } else if (name == "serial") {
    fixed_ = std::make_shared<SerialExecutor>();
  } else {
    throw std::invalid_argument("QCOMPILE_PARALLEL is '" + std::string(name) +
                                "', expected onnxruntime, openmp or serial");
  }
}

}  // namespace qcompile::ort
