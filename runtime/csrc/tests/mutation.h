// Arrays as a damaged or a hostile file has them.
#pragma once

#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace qcompile {

// Changes one place: a bit, a whole value, or two values exchanged.
template <typename T>
void mutate(std::vector<T>& values, std::mt19937& random) {
  auto* bytes = reinterpret_cast<unsigned char*>(values.data());
  const size_t size = values.size() * sizeof(T);
  switch (random() % 4) {
    case 0:
      bytes[random() % size] ^= static_cast<unsigned char>(1u << random() % 8);
      break;
    case 1:
      std::memset(&values[random() % values.size()], random() % 2 ? 0xFF : 0x80, sizeof(T));
      break;
    case 2:
      std::swap(values[random() % values.size()], values[random() % values.size()]);
      break;
    default:
      values[random() % values.size()] = std::numeric_limits<T>::max();
  }
}

}  // namespace qcompile
