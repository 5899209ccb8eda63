// One parallel loop for everything: OpenMP, a host's thread pool, or none.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace qcompile {

// A reference to a callable that outlives the call; never allocates.
template <typename Signature>
class FunctionRef;

template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& callable)  // NOLINT: implicit on purpose, as a lambda argument
      : object_(const_cast<void*>(static_cast<const void*>(&callable))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Runs tasks 0..count-1 in any order, perhaps at once, and returns when all are done. The first
// exception that a task throws is thrown again by run(), after every started task has ended.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int threads() const = 0;
  virtual void run(int64_t count, FunctionRef<void(int64_t)> task) const = 0;
};

class SerialExecutor final : public Executor {
 public:
  int threads() const override { return 1; }
  void run(int64_t count, FunctionRef<void(int64_t)> task) const override;
};

class OpenMPExecutor final : public Executor {
 public:
  // threads <= 0 means as many as OpenMP would start.
  explicit OpenMPExecutor(int threads = 0);
  int threads() const override { return threads_; }
  void run(int64_t count, FunctionRef<void(int64_t)> task) const override;

 private:
  int threads_;
};

// Splits [0, size) into contiguous ranges of at least `grain` items, at most a few per thread,
// and calls body(begin, end) for each.
void parallel_for(const Executor& executor, int64_t size, int64_t grain,
                  FunctionRef<void(int64_t, int64_t)> body);

}  // namespace qcompile
