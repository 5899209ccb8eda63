#include "index/collector.h"

#include <algorithm>
#include <functional>

#include "index/query.h"

namespace qcompile {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kRoom = 64;       // candidates that are cheap to carry along
constexpr size_t kMost = 1 << 14;  // memory bound per thread and query: 192 KiB, if k allows it

}  // namespace

void Collector::start(int64_t k, Threshold* threshold) {
  k_ = k;
  threshold_ = threshold;
  overflowed_ = false;
  found_.clear();
  limit_ = kRoom + static_cast<size_t>(k);
}

void Collector::add(float lower, float upper, int32_t row) {
  if (overflowed_) return;
  found_.push_back({known_lower(lower), upper < kInfinity ? upper : kInfinity, row});
}

void Collector::seed(float* lower, int64_t count) {
  if (k_ > count) return;
  std::nth_element(lower, lower + (k_ - 1), lower + count, std::greater<>());
  threshold_->raise(lower[k_ - 1]);
}

void Collector::tidy() {
  if (found_.size() <= limit_) return;
  threshold_->raise(prune(found_, k_));
  const float least = threshold_->get();
  std::erase_if(found_, [least](const Candidate& c) { return c.upper < least; });
  limit_ = 2 * found_.size() + kRoom;
  if (found_.size() > kMost + 4 * static_cast<size_t>(k_)) {
    overflowed_ = true;
    found_.clear();
  }
}

float prune(std::vector<Candidate>& found, int64_t k) {
  if (static_cast<int64_t>(found.size()) < k) return -kInfinity;
  const auto at = found.begin() + (k - 1);
  std::nth_element(found.begin(), at, found.end(),
                   [](const Candidate& a, const Candidate& b) { return a.lower > b.lower; });
  const float least = at->lower;
  std::erase_if(found, [least](const Candidate& c) { return c.upper < least; });
  return least;
}

}  // namespace qcompile
