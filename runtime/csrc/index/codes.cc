#include "index/codes.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "core/isa.h"
#include "core/lanes.h"

namespace qcompile {
namespace {

constexpr int kRounds = 3;

// Half the distance of levels, for a standard deviation of 1 (Max, 1960).
constexpr float half_step(int64_t bits) { return bits == 2 ? 0.4978f : 0.1676f; }

// Sums over the coordinates of a row.
struct Fit {
  float products;  // of what is coded and its levels
  float squares;   // of the levels
};

// Chooses the level of each of residual [depth], padded to a multiple of kLanes with zeros, for a
// scale.
QC_INLINE Fit refine_body(const float* residual, int64_t depth, int64_t bits, float scale,
                          float* levels) {
  const int64_t padded = ceil_div(depth, kLanes) * kLanes;
  const auto count = static_cast<float>(int64_t{1} << bits);
  const float half = 0.5f / scale;
  Lanes products{}, squares{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Lanes r = load_lanes(residual + j);
    Lanes place = r * half + 0.5f * count;
    place = place > all_lanes(0) ? place : all_lanes(0);
    place = place < all_lanes(count - 1) ? place : all_lanes(count - 1);
    const LaneInts code = __builtin_convertvector(place, LaneInts);
    const Lanes level = 2 * __builtin_convertvector(code, Lanes) + (1 - count);
    store_lanes(levels + j, level);
    products += r * level;
    squares += level * level;
  }
  // What is padded, with zeros, has the level 1.
  return {sum_lanes(products), sum_lanes(squares) - static_cast<float>(padded - depth)};
}
Fit refine_scalar(const float* residual, int64_t depth, int64_t bits, float scale, float* levels) {
  return refine_body(residual, depth, bits, scale, levels);
}
QC_AVX2 Fit refine_avx2(const float* residual, int64_t depth, int64_t bits, float scale,
                        float* levels) {
  return refine_body(residual, depth, bits, scale, levels);
}
QC_AVX512 Fit refine_avx512(const float* residual, int64_t depth, int64_t bits, float scale,
                            float* levels) {
  return refine_body(residual, depth, bits, scale, levels);
}

void check(const Dense& dense, const CodedPlaces& places) {
  bool good = places.offsets[0] == 0 && places.offsets[places.cells] == places.blocks;
  for (int64_t cell = 0; cell < places.cells; ++cell) {
    good = good && places.offsets[cell] <= places.offsets[cell + 1];
  }
  if (!good) {
    throw std::invalid_argument("offsets: expected to rise from 0 to " +
                                std::to_string(places.blocks));
  }
  for (int64_t place = 0; place < places.blocks * kBlockRows; ++place) {
    if (places.row_ids[place] >= -1 && places.row_ids[place] < dense.rows) continue;
    throw std::invalid_argument("row_ids: [" + std::to_string(place) + "] is " +
                                std::to_string(places.row_ids[place]) + ", expected -1 to " +
                                std::to_string(dense.rows - 1));
  }
}

// One thread's, for one cell after the other.
class Coder {
 public:
  Coder(const Dense& dense, const CodedPlaces& places, int64_t bits, CodedRows& out)
      : dense_(dense),
        places_(places),
        bits_(bits),
        out_(out),
        centroid_(static_cast<size_t>(dense.depth)),
        residual_(static_cast<size_t>(ceil_div(dense.depth, kLanes) * kLanes)),
        levels_(residual_.size()) {
    const Isa isa = best_isa();
    refine_ = isa == Isa::kScalar ? refine_scalar : isa == Isa::kAvx2 ? refine_avx2 : refine_avx512;
  }

  void code(int64_t cell) {
    const int8_t* block =
        places_.centroids + cell / kBlockRows * step_count(dense_.depth) * kStepBytes;
    for (int64_t j = 0; j < dense_.depth; ++j) {
      const int8_t value =
          block[j / kBlockDepth * kStepBytes + cell % kBlockRows * kBlockDepth + j % kBlockDepth];
      centroid_[static_cast<size_t>(j)] = static_cast<double>(places_.centroid_scale[cell]) * value;
    }
    for (int64_t place = int64_t{places_.offsets[cell]} * kBlockRows;
         place < int64_t{places_.offsets[cell + 1]} * kBlockRows; ++place) {
      if (places_.row_ids[place] >= 0) put(place, places_.row_ids[place]);
    }
  }

 private:
  double apart(int64_t row, int64_t j) const {
    return dense_.weight[row * dense_.depth + j] - centroid_[static_cast<size_t>(j)];
  }

  void put(int64_t place, int64_t row) {
    double squares = 0;
    for (int64_t j = 0; j < dense_.depth; ++j) {
      squares += apart(row, j) * apart(row, j);
      residual_[static_cast<size_t>(j)] = finite_float(apart(row, j));
    }
    const double deviation = std::sqrt(squares / static_cast<double>(dense_.depth));
    float scale = half_step(bits_) * finite_float(deviation);
    for (int round = 0; round < kRounds && std::isnormal(scale); ++round) {
      const Fit fit = refine_(residual_.data(), dense_.depth, bits_, scale, levels_.data());
      const bool last = round == kRounds - 1;
      scale = last ? static_cast<float>(squares / fit.products) : fit.products / fit.squares;
    }
    if (!std::isnormal(scale)) scale = 0;
    out_.scale[static_cast<size_t>(place)] = scale;
    double left = 0;
    for (int64_t j = 0; j < dense_.depth; ++j) {
      const double rest =
          apart(row, j) - static_cast<double>(scale) * levels_[static_cast<size_t>(j)];
      left += rest * rest;
    }
    const double rounding = 1 + static_cast<double>(dense_.depth + 8) * 0x1p-51;
    out_.error[static_cast<size_t>(place)] = round_up(std::sqrt(left) * rounding);
    if (scale != 0) set(place);
  }

  void set(int64_t place) {
    const int64_t each = codes_per_byte(bits_), steps = code_step_count(dense_.depth, bits_);
    const int shift = each == 2 ? 1 : 2;  // its logarithm
    const int most = (1 << bits_) - 1;
    uint8_t* codes = out_.codes.data() + place / kBlockRows * steps * kStepBytes +
                     place % kBlockRows * kBlockDepth;
    for (int64_t j = 0; j < dense_.depth; ++j) {
      const int64_t step = j / kBlockDepth;
      const int code = (static_cast<int>(levels_[static_cast<size_t>(j)]) + most) >> 1;
      codes[(step >> shift) * kStepBytes + j % kBlockDepth] |=
          static_cast<uint8_t>(code << ((step & (each - 1)) * bits_));
    }
  }

  const Dense& dense_;
  const CodedPlaces& places_;
  const int64_t bits_;
  CodedRows& out_;
  Fit (*refine_)(const float*, int64_t, int64_t, float, float*);
  std::vector<double> centroid_;
  std::vector<float> residual_, levels_;
};

}  // namespace

CodedRows code_rows(const Dense& dense, const CodedPlaces& places, int64_t bits,
                    const Executor& executor) {
  if (!codable(bits)) {
    throw std::invalid_argument("bits is " + std::to_string(bits) + ", expected 2 or 4");
  }
  check(dense, places);
  CodedRows out;
  const auto rows = static_cast<size_t>(places.blocks * kBlockRows);
  out.codes.resize(
      static_cast<size_t>(places.blocks * code_step_count(dense.depth, bits) * kStepBytes));
  out.scale.resize(rows);
  out.error.resize(rows);
  parallel_for(executor, places.cells, 16, [&](int64_t begin, int64_t end) {
    Coder coder(dense, places, bits, out);
    for (int64_t cell = begin; cell < end; ++cell) coder.code(cell);
  });
  return out;
}

}  // namespace qcompile
