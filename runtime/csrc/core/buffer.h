// Memory that is kept from one use to the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace qcompile {

// Room for elements that are overwritten before they are read; aligned to cache lines. It only
// ever grows, so that a training step of the usual size allocates nothing.
template <typename T>
class Buffer {
  static_assert(std::is_trivial_v<T>);

 public:
  // Room for `size` elements; what was there before is lost when it has to grow.
  T* resize(int64_t size) {
    if (size > capacity_) {
      data_.reset();
      data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kAlign)));
      capacity_ = size;
    }
    return data_.get();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlign); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace qcompile
