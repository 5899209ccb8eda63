// Threads for a kernel: the session's own pool, OpenMP, or none.
#pragma once

#include <memory>

#include "core/parallel.h"
#include "ort/api.h"

namespace qcompile::ort {

// onnxruntime's intra-op pool, as large as the session's options made it.
class PoolExecutor final : public Executor {
 public:
  // threads: how many the pool may have at most; more only costs buffers.
  PoolExecutor(const Api& api, const OrtKernelContext* context, int threads)
      : api_(api), context_(context), threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t count, FunctionRef<void(int64_t)> task) const override;

 private:
  Api api_;
  const OrtKernelContext* context_;
  int threads_;
};

// Which threads kernels use, read from the environment variable QCOMPILE_PARALLEL: `onnxruntime`
// (also if it is not set), `openmp` or `serial`. Throws std::invalid_argument for another value.
class Parallelism {
 public:
  Parallelism();

  // Calls body(executor) with the executor of this call.
  template <typename F>
  void with(const Api& api, const OrtKernelContext* context, F&& body) const {
    if (fixed_) return body(*fixed_);
    body(PoolExecutor(api, context, threads_));
  }

 private:
  std::shared_ptr<const Executor> fixed_;  // none for onnxruntime's pool, which comes with a call
  int threads_;
};

}  // namespace qcompile::ort
