// Transforms of tiles, a row of tiles at a time, to be inlined once per instruction set.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/isa.h"
#include "quadratic/winograd.h"

namespace qcompile {

constexpr int64_t kSegment = 32;  // tiles of a row at a time

// Columns [from, from + count) of one line, zero beyond its ends and where there is no line.
QC_INLINE void read_line(const float* plane, int64_t lines, int64_t width, int64_t line,
                         int64_t from, int64_t count, float* to) {
  const int64_t low = std::clamp<int64_t>(-from, 0, count);
  const int64_t high = std::clamp<int64_t>(width - from, low, count);
  if (line < 0 || line >= lines || low == high) {
    std::memset(to, 0, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < low; ++i) to[i] = 0;
  std::memcpy(to + low, plane + line * width + from + low,
              static_cast<size_t>(high - low) * sizeof(float));
  for (int64_t i = high; i < count; ++i) to[i] = 0;
}

// Where the 16 places of a row of tiles are: place p of tile t at to[p * stride + t].
struct TileRow {
  float* to;
  int64_t stride;
};

// B^T d B of the tiles of one row of one plane.
QC_INLINE void transform_input(const Convolution& shape, const float* plane, int64_t tile_row,
                               TileRow row) {
  alignas(64) float line[4][2 * kSegment + 2], even[kSegment + 1], odd[kSegment + 1];
  for (int64_t first = 0; first < shape.tile_columns(); first += kSegment) {
    const int64_t tiles = std::min(kSegment, shape.tile_columns() - first);
    const int64_t count = 2 * tiles + 2;
    for (int64_t r = 0; r < 4; ++r) {
      read_line(plane, shape.height, shape.width, 2 * tile_row - shape.padding + r,
                2 * first - shape.padding, count, line[r]);
    }
    for (int r = 0; r < 4; ++r) {
      const float* one = line[r == 0 ? 0 : r == 2 ? 2 : 1];
      const float* other = line[r == 0 ? 2 : r == 1 ? 2 : r == 2 ? 1 : 3];
      const float sign = r == 1 ? 1.0f : -1.0f;
      for (int64_t j = 0; j <= tiles; ++j) {
        even[j] = one[2 * j] + sign * other[2 * j];
        odd[j] = one[2 * j + 1] + sign * other[2 * j + 1];
      }
      float* to = row.to + 4 * r * row.stride + first;
      for (int64_t j = 0; j < tiles; ++j) to[j] = even[j] - even[j + 1];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = odd[j] + even[j + 1];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = even[j + 1] - odd[j];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = odd[j] - odd[j + 1];
    }
  }
}

// A^T m A of the tiles of one row, into one plane of the output.
QC_INLINE void transform_output(const Convolution& shape, TileRow row, int64_t tile_row, bool add,
                                float* plane) {
  const int64_t width = shape.output_width();
  const int64_t lines = std::min<int64_t>(2, shape.output_height() - 2 * tile_row);
  for (int64_t first = 0; first < shape.tile_columns(); first += kSegment) {
    const int64_t tiles = std::min(kSegment, shape.tile_columns() - first);
    for (int64_t r = 0; r < lines; ++r) {
      const float sign = r == 0 ? 1.0f : -1.0f;
      alignas(64) float sum[4][kSegment], found[2 * kSegment];
      for (int q = 0; q < 4; ++q) {
        const float* m0 = row.to + (4 * r + q) * row.stride + first;
        const float* m1 = m0 + 4 * row.stride;
        const float* m2 = m1 + 4 * row.stride;
        // Of the first line m0 + m1 + m2, of the second m1 - m2 - m3: places shift by a row.
        for (int64_t j = 0; j < tiles; ++j) {
          sum[q][j] = r == 0 ? m0[j] + m1[j] + m2[j] : m0[j] - m1[j] + sign * m2[j];
        }
      }
      for (int64_t j = 0; j < tiles; ++j) {
        found[2 * j] = sum[0][j] + sum[1][j] + sum[2][j];
        found[2 * j + 1] = sum[1][j] - sum[2][j] - sum[3][j];
      }
      float* to = plane + (2 * tile_row + r) * width + 2 * first;
      const int64_t count = std::min(2 * tiles, width - 2 * first);
      if (add) {
        for (int64_t i = 0; i < count; ++i) to[i] += found[i];
      } else {
        std::memcpy(to, found, static_cast<size_t>(count) * sizeof(float));
      }
    }
  }
}

// A g A^T: what the transform of the output is the adjoint of.
QC_INLINE void transform_gradient(const Convolution& shape, const float* plane, int64_t tile_row,
                                  TileRow row) {
  alignas(64) float line[2][2 * kSegment], even[kSegment], odd[kSegment];
  for (int64_t first = 0; first < shape.tile_columns(); first += kSegment) {
    const int64_t tiles = std::min(kSegment, shape.tile_columns() - first);
    for (int64_t r = 0; r < 2; ++r) {
      read_line(plane, shape.output_height(), shape.output_width(), 2 * tile_row + r, 2 * first,
                2 * tiles, line[r]);
    }
    for (int r = 0; r < 4; ++r) {
      const float of_first = r == 3 ? 0.0f : 1.0f;
      const float of_second = r == 0 ? 0.0f : r == 1 ? 1.0f : -1.0f;
      for (int64_t j = 0; j < tiles; ++j) {
        even[j] = of_first * line[0][2 * j] + of_second * line[1][2 * j];
        odd[j] = of_first * line[0][2 * j + 1] + of_second * line[1][2 * j + 1];
      }
      float* to = row.to + 4 * r * row.stride + first;
      for (int64_t j = 0; j < tiles; ++j) to[j] = even[j];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = even[j] + odd[j];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = even[j] - odd[j];
      to += row.stride;
      for (int64_t j = 0; j < tiles; ++j) to[j] = -odd[j];
    }
  }
}

// G w G^T of one kernel, 3x3; `turned` reads it back to front.
QC_INLINE void transform_weight(const float* weight, bool turned, float* to, int64_t stride) {
  float half[4][3];
  for (int column = 0; column < 3; ++column) {
    const auto at = [&](int line) {
      const int place = 3 * line + column;
      return weight[turned ? 8 - place : place];
    };
    half[0][column] = at(0);
    half[1][column] = 0.5f * (at(0) + at(1) + at(2));
    half[2][column] = 0.5f * (at(0) - at(1) + at(2));
    half[3][column] = at(2);
  }
  for (int r = 0; r < 4; ++r) {
    const float* h = half[r];
    to[(4 * r) * stride] = h[0];
    to[(4 * r + 1) * stride] = 0.5f * (h[0] + h[1] + h[2]);
    to[(4 * r + 2) * stride] = 0.5f * (h[0] - h[1] + h[2]);
    to[(4 * r + 3) * stride] = h[2];
  }
}

// G^T u G: the adjoint.
QC_INLINE void gather_weight_gradient(const float* from, int64_t stride, float* weight) {
  float half[3][4];
  for (int q = 0; q < 4; ++q) {
    const auto at = [&](int r) { return from[(4 * r + q) * stride]; };
    half[0][q] = at(0) + 0.5f * (at(1) + at(2));
    half[1][q] = 0.5f * (at(1) - at(2));
    half[2][q] = 0.5f * (at(1) + at(2)) + at(3);
  }
  for (int line = 0; line < 3; ++line) {
    const float* h = half[line];
    weight[3 * line] = h[0] + 0.5f * (h[1] + h[2]);
    weight[3 * line + 1] = 0.5f * (h[1] - h[2]);
    weight[3 * line + 2] = 0.5f * (h[1] + h[2]) + h[3];
  }
}

}  // namespace qcompile
