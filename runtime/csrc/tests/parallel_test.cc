// Executors run every task once, pass exceptions on, and survive a fork.
#include "core/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>

#include "tests/index_testing.h"

namespace qcompile {
namespace {

void test_every_task_runs_once(const Executor& executor) {
  for (int64_t count : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
    executor.run(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
    for (const auto& run : runs) EXPECT(run == 1);
  }
}

void test_ranges_cover_everything(const Executor& executor) {
  for (int64_t size : {0, 1, 7, 1000}) {
    for (int64_t grain : {0, 1, 3, 5000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(size));
      parallel_for(executor, size, grain, [&](int64_t begin, int64_t end) {
        EXPECT(begin < end);
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& count : seen) EXPECT(count == 1);
    }
  }
}

void test_exceptions_reach_the_caller(const Executor& executor) {
  bool caught = false;
  try {
    executor.run(100, [](int64_t i) {
      if (i == 37) throw std::runtime_error("thirty-seven");
    });
  } catch (const std::runtime_error& error) {
    caught = std::string(error.what()) == "thirty-seven";
  }
  EXPECT(caught);
}

[[maybe_unused]] void test_a_forked_child_finishes(const Executor& executor) {
  test_every_task_runs_once(executor);  // the parent's threads exist now
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    test_every_task_runs_once(executor);
    _exit(0);
  }
  int status = 1;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace qcompile

int main() {
  using namespace qcompile;
  const SerialExecutor serial;
  test_every_task_runs_once(serial);
  test_ranges_cover_everything(serial);
  test_exceptions_reach_the_caller(serial);
#ifndef __SANITIZE_THREAD__  // GCC's OpenMP hides its barriers from the race detector
  const OpenMPExecutor openmp(3);
  test_every_task_runs_once(openmp);
  test_ranges_cover_everything(openmp);
  test_exceptions_reach_the_caller(openmp);
  test_a_forked_child_finishes(openmp);
#endif
}
