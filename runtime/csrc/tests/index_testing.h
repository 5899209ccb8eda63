// What the tests of csrc/index share.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "index/head.h"

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace qcompile {

// Plain threads: race detectors understand them, unlike GCC's OpenMP.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t count, FunctionRef<void(int64_t)> task) const override {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < threads_; ++t) {
      threads.emplace_back([&] {
        for (int64_t i = next++; i < count; i = next++) task(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int threads_;
};

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (supported(isa)) isas.push_back(isa);
  }
  return isas;
}

inline std::vector<float> normal_values(int64_t count, unsigned seed, float size = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, size);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

// A random layer in exactly sized buffers, so that a sanitizer sees a read beyond any of them.
struct TestLayer {
  TestLayer(int64_t rows, int64_t depth, unsigned seed)
      : weight(normal_values(rows * depth, seed)),
        bias(normal_values(rows, seed + 1)),
        packed(static_cast<size_t>(block_count(rows) * step_count(depth) * kStepBytes)),
        scale(static_cast<size_t>(rows)),
        error(static_cast<size_t>(rows)),
        dense{weight.data(), bias.data(), rows, depth} {
    pack_rows(weight.data(), rows, depth, packed.data(), scale.data(), error.data(),
              SerialExecutor());
    head = std::make_unique<Head>(dense, Packed{packed.data(), scale.data(), error.data()},
                                  SerialExecutor(), RoughRows::kAlways);
  }

  std::vector<float> weight, bias;
  std::vector<int8_t> packed;
  std::vector<float> scale, error;
  Dense dense;
  std::unique_ptr<Head> head;
};

}  // namespace qcompile
