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
#include "train/storage.h"

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

// Calls it a few times from each of several threads at once.
template <typename F>
void call_from_many_threads(F&& call) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) call();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

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

// How the rows of a test's layer are kept.
enum class Kept { kFloat32, kBFloat16, kPacked };

// A random layer in exactly sized buffers, so that a sanitizer sees a read beyond any of them.
struct TestLayer {
  TestLayer(int64_t rows, int64_t depth, unsigned seed, Kept kept = Kept::kFloat32)
      : weight(normal_values(rows * depth, seed)),
        bias(normal_values(rows, seed + 1)),
        high(static_cast<size_t>(block_count(rows) * plane_bytes(depth))),
        low(kept == Kept::kBFloat16 ? 0 : high.size()),
        scale(static_cast<size_t>(rows)),
        error(static_cast<size_t>(rows)),
        dense{weight.data(), bias.data(), rows, depth} {
    if (kept == Kept::kBFloat16) {
      for (float& value : weight) {
        half.push_back(to_bfloat16(value));
        value = from_bfloat16(half.back());
      }
    }
    pack_planes(weight.data(), rows, depth, high.data(), low.empty() ? nullptr : low.data(),
                scale.data(), error.data(), SerialExecutor());
    Dense own = dense;
    if (kept != Kept::kFloat32) own.weight = nullptr;
    if (kept == Kept::kBFloat16) own.half = half.data();
    head = std::make_unique<Head>(own, packed(), SerialExecutor(), RoughRows::kAlways);
  }

  Packed packed() const {
    return {high.data(), low.empty() ? nullptr : low.data(), scale.data(), error.data()};
  }

  std::vector<float> weight, bias;
  std::vector<uint16_t> half;
  std::vector<uint8_t> high, low;
  std::vector<float> scale, error;
  Dense dense;
  std::unique_ptr<Head> head;
};

}  // namespace qcompile
