// The rows of a scan that the error bound cannot exclude from the k best.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace qcompile {

struct Candidate {
  float lower;  // its score is at least this
  float upper;  // and at most this
  int32_t row;
};

// A lower bound of the k-th best score, shared by the threads that scan for one query.
class Threshold {
 public:
  float get() const { return value_.load(std::memory_order_relaxed); }
  void reset() { value_.store(-std::numeric_limits<float>::infinity(), std::memory_order_relaxed); }
  void raise(float value) {
    float seen = get();
    while (seen < value && !value_.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }

 private:
  std::atomic<float> value_{-std::numeric_limits<float>::infinity()};
};

// What one thread found for one query.
class Collector {
 public:
  void start(int64_t k, Threshold* threshold);
  // Between tiles: drops what has been excluded meanwhile, if enough has come together.
  void tidy();
  void add(float lower, float upper, int32_t row);
  // A lower bound of the k-th best score; whether it is still minus infinity.
  float threshold() const { return threshold_->get(); }
  bool unset() const { return threshold() == -std::numeric_limits<float>::infinity(); }
  // Raises the threshold by lower bounds of the scores of `count` different rows; reorders them.
  void seed(float* lower, int64_t count);
  // Whether so many rows are close to the k-th that computing all scores is cheaper.
  bool overflowed() const { return overflowed_; }
  std::span<const Candidate> candidates() const { return found_; }

 private:
  int64_t k_ = 0;
  size_t limit_ = 0;
  bool overflowed_ = false;
  Threshold* threshold_ = nullptr;
  std::vector<Candidate> found_;
};

// Drops candidates that cannot be among the k best of all of them; returns a lower bound of the
// k-th best score, or minus infinity for fewer than k.
float prune(std::vector<Candidate>& found, int64_t k);

}  // namespace qcompile
