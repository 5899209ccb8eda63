#include "quadratic/block.h"

#include "quadratic/forward.h"
#include "quadratic/passes.h"

namespace qcompile {
namespace {

#define QC_BLOCK_KERNELS(name, attribute)                                                    \
  struct name {                                                                              \
    attribute static void forward(const Forward& problem, int64_t task) {                    \
      ForwardTask(problem, task).run();                                                      \
    }                                                                                        \
    template <typename S, typename T>                                                        \
    attribute static void backward(const Backward<S, T>& problem, bool sums, int64_t task) { \
      BackwardTask<S, T>(problem, task).run(sums);                                           \
    }                                                                                        \
  };

QC_BLOCK_KERNELS(Scalar, )
QC_BLOCK_KERNELS(Avx2, QC_AVX2)
QC_BLOCK_KERNELS(Avx512, QC_AVX512)
#undef QC_BLOCK_KERNELS

template <typename Kernel>
Kernel choose(Isa isa, Kernel scalar, Kernel avx2, Kernel avx512) {
  if (isa >= Isa::kAvx512) return avx512;
  return isa == Isa::kAvx2 ? avx2 : scalar;
}

void run(const Block& block, const Executor& executor, FunctionRef<void(int64_t)> task) {
  if (block.shape.count() > 0) executor.run(Walk::tasks(block.shape), task);
}

template <typename S, typename T>
void backward(const Backward<S, T>& problem, bool sums, const Executor& executor, Isa isa) {
  using Kernel = void (*)(const Backward<S, T>&, bool, int64_t);
  const Kernel kernel =
      choose<Kernel>(isa, Scalar::backward<S, T>, Avx2::backward<S, T>, Avx512::backward<S, T>);
  run(problem.block, executor, [&](int64_t task) { kernel(problem, sums, task); });
}

}  // namespace

bool Block::poolable(int64_t lines) const {
  const bool planes = shape.inner > 1;
  return lines > 0 && pool_width > 0 && lines % 2 == 0 && pool_width % 2 == 0 &&
         (planes ? shape.inner : shape.outer) % (lines * pool_width) == 0 &&
         (!planes || shape.inner == lines * pool_width) && activation <= Activation::kRelu &&
         pool_width <= kBlockElements && Walk::span_size(planes, pool_width) > 0;
}

void forward(const Forward& problem, const Executor& executor, Isa isa) {
  const auto kernel = choose(isa, Scalar::forward, Avx2::forward, Avx512::forward);
  run(problem.block, executor, [&](int64_t task) { kernel(problem, task); });
}

template <typename S, typename T>
void backward_sums(const Backward<S, T>& problem, const Executor& executor, Isa isa) {
  backward(problem, true, executor, isa);
}

template <typename S, typename T>
void backward_write(const Backward<S, T>& problem, const Executor& executor, Isa isa) {
  backward(problem, false, executor, isa);
}

template void backward_sums(const Backward<float, float>&, const Executor&, Isa);
template void backward_sums(const Backward<double, double>&, const Executor&, Isa);
template void backward_sums(const Backward<uint16_t, float>&, const Executor&, Isa);
template void backward_write(const Backward<float, float>&, const Executor&, Isa);
template void backward_write(const Backward<double, double>&, const Executor&, Isa);
template void backward_write(const Backward<uint16_t, float>&, const Executor&, Isa);

}  // namespace qcompile
