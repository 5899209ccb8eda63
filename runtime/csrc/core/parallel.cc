#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <exception>

namespace qcompile {
namespace {

// A forked child has none of its parent's OpenMP threads, but libgomp waits for them if anything
// in the parent, torch for one, had started them. So a child of a fork works alone.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

void SerialExecutor::run(int64_t count, FunctionRef<void(int64_t)> task) const {
  for (int64_t i = 0; i < count; ++i) task(i);
}

OpenMPExecutor::OpenMPExecutor(int threads)
    : threads_(threads > 0 ? threads : omp_get_max_threads()) {}

void OpenMPExecutor::run(int64_t count, FunctionRef<void(int64_t)> task) const {
  if (count <= 1 || threads_ == 1 || forked.load(std::memory_order_relaxed) || registered != 0) {
    return SerialExecutor().run(count, task);
  }
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
  for (int64_t i = 0; i < count; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      task(i);
    } catch (...) {
      // An exception must not leave the region; the first one is kept for the caller.
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void parallel_for(const Executor& executor, int64_t size, int64_t grain,
                  FunctionRef<void(int64_t, int64_t)> body) {
  if (size <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(executor.threads()) * 4);
  const int64_t ranges = std::clamp<int64_t>((size + grain - 1) / grain, 1, most);
  if (ranges == 1) return body(0, size);
  executor.run(ranges, [&](int64_t i) { body(size * i / ranges, size * (i + 1) / ranges); });
}

}  // namespace qcompile
