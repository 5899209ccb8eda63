#include "quadratic/winograd.h"

#include "core/buffer.h"
#include "core/lanes.h"
#include "quadratic/winograd_tiles.h"
#include "train/kernels.h"

namespace qcompile {
namespace {

constexpr int64_t kTaskTiles = 64;    // of a task of convolve: its products stay in the cache
constexpr int64_t kChunkTiles = 512;  // of a step of weight_gradients
constexpr int64_t kDotRows = 64;      // output channels of a task that adds up products
constexpr int64_t kWeightRows = 16;   // of a task that transforms weights

int64_t divided(int64_t size, int64_t by) { return (size + by - 1) / by; }
int64_t rounded_up(int64_t size) { return divided(size, kLanes) * kLanes; }

int64_t rows_of_tiles(const Convolution& shape, int64_t tiles) {
  return std::max<int64_t>(1, tiles / shape.tile_columns());
}

struct Tiles {
  const Convolution& shape;
  int64_t first;  // row of tiles, of all images
  int64_t rows;
  int64_t stride;  // tiles of one channel in a buffer

  int64_t image(int64_t row) const { return (first + row) / shape.tile_rows(); }
  int64_t line(int64_t row) const { return (first + row) % shape.tile_rows(); }
  int64_t count() const { return rows * shape.tile_columns(); }
};

QC_INLINE void transform_inputs(const Tiles& tiles, const float* x, int64_t channel, float* to,
                                int64_t place_stride) {
  const Convolution& shape = tiles.shape;
  const int64_t plane = shape.height * shape.width;
  for (int64_t row = 0; row < tiles.rows; ++row) {
    transform_input(shape, x + (tiles.image(row) * shape.inputs + channel) * plane, tiles.line(row),
                    {to + channel * tiles.stride + row * shape.tile_columns(), place_stride});
  }
}

QC_INLINE void transform_gradients(const Tiles& tiles, const float* grad, int64_t channel,
                                   float* to, int64_t place_stride) {
  const Convolution& shape = tiles.shape;
  const int64_t plane = shape.output_height() * shape.output_width();
  for (int64_t row = 0; row < tiles.rows; ++row) {
    transform_gradient(shape, grad + (tiles.image(row) * shape.outputs + channel) * plane,
                       tiles.line(row),
                       {to + channel * tiles.stride + row * shape.tile_columns(), place_stride});
  }
}

QC_INLINE void transform_outputs(const Tiles& tiles, float* from, int64_t place_stride, bool add,
                                 float* y) {
  const Convolution& shape = tiles.shape;
  const int64_t plane = shape.output_height() * shape.output_width();
  for (int64_t channel = 0; channel < shape.outputs; ++channel) {
    for (int64_t row = 0; row < tiles.rows; ++row) {
      transform_output(
          shape, {from + channel * tiles.stride + row * shape.tile_columns(), place_stride},
          tiles.line(row), add, y + (tiles.image(row) * shape.outputs + channel) * plane);
    }
  }
}

// Halves of vectors, each `width` lanes wide, added up: those of a and then those of b.
template <int kWidth>
QC_INLINE Lanes fold(Lanes a, Lanes b) {
  LaneInts low;
  for (int i = 0; i < kLanes; ++i) low[i] = i / kWidth * 2 * kWidth + i % kWidth;
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + kWidth);
}

// The sum of each vector, in the order of sum_lanes.
QC_INLINE void sum_each(const Lanes (&from)[16], float* to) {
  Lanes part[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) part[i] = fold<8>(from[2 * i], from[2 * i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) part[i] = fold<4>(part[2 * i], part[2 * i + 1]);
  part[0] = fold<2>(part[0], part[1]);
  part[1] = fold<2>(part[2], part[3]);
  store_lanes(to, fold<1>(part[0], part[1]));
}
QC_INLINE void sum_each(const Lanes (&from)[4], float* to) {
  for (int i = 0; i < 4; ++i) to[i] = sum_lanes(from[i]);
}

// sums [rows, columns] += left [rows, depth] · right [columns, depth]ᵀ, kEdge x kEdge at a time;
// depth is a multiple of sixteen.
template <int kEdge>
QC_INLINE void add_dots(int64_t rows, int64_t columns, int64_t depth, const float* left,
                        const float* right, float* sums) {
  for (int64_t i = 0; i < rows; i += kEdge) {
    for (int64_t j = 0; j < columns; j += kEdge) {
      Lanes sum[kEdge * kEdge] = {};
      // Beyond the edge the last row counts again, for nobody.
      const float *of_row[kEdge], *of_column[kEdge];
      for (int e = 0; e < kEdge; ++e) {
        of_row[e] = left + std::min(i + e, rows - 1) * depth;
        of_column[e] = right + std::min(j + e, columns - 1) * depth;
      }
      for (int64_t k = 0; k < depth; k += kLanes) {
        Lanes b[kEdge];
#pragma GCC unroll 4
        for (int c = 0; c < kEdge; ++c) b[c] = load_lanes(of_column[c] + k);
#pragma GCC unroll 4
        for (int r = 0; r < kEdge; ++r) {
          const Lanes a = load_lanes(of_row[r] + k);
#pragma GCC unroll 4
          for (int c = 0; c < kEdge; ++c)
            sum[kEdge * r + c] = fma_lanes(a, b[c], sum[kEdge * r + c]);
        }
      }
      float found[kEdge * kEdge];
      sum_each(sum, found);
      for (int r = 0; r < kEdge && i + r < rows; ++r) {
        for (int c = 0; c < kEdge && j + c < columns; ++c) {
          sums[(i + r) * columns + j + c] += found[kEdge * r + c];
        }
      }
    }
  }
}

struct Kernels {
  void (*inputs)(const Tiles&, const float*, int64_t, float*, int64_t);
  void (*gradients)(const Tiles&, const float*, int64_t, float*, int64_t);
  void (*outputs)(const Tiles&, float*, int64_t, bool, float*);
  void (*dots)(int64_t, int64_t, int64_t, const float*, const float*, float*);
};

#define QC_WINOGRAD_KERNELS(name, attribute, edge)                                               \
  struct name {                                                                                  \
    attribute static void inputs(const Tiles& tiles, const float* x, int64_t channel, float* to, \
                                 int64_t stride) {                                               \
      transform_inputs(tiles, x, channel, to, stride);                                           \
    }                                                                                            \
    attribute static void gradients(const Tiles& tiles, const float* grad, int64_t channel,      \
                                    float* to, int64_t stride) {                                 \
      transform_gradients(tiles, grad, channel, to, stride);                                     \
    }                                                                                            \
    attribute static void outputs(const Tiles& tiles, float* from, int64_t stride, bool add,     \
                                  float* y) {                                                    \
      transform_outputs(tiles, from, stride, add, y);                                            \
    }                                                                                            \
    attribute static void dots(int64_t rows, int64_t columns, int64_t depth, const float* left,  \
                               const float* right, float* sums) {                                \
      add_dots<edge>(rows, columns, depth, left, right, sums);                                   \
    }                                                                                            \
    static constexpr Kernels kTable = {inputs, gradients, outputs, dots};                        \
  };

QC_WINOGRAD_KERNELS(Scalar, , 2)
QC_WINOGRAD_KERNELS(Avx2, QC_AVX2, 2)
QC_WINOGRAD_KERNELS(Avx512, QC_AVX512, 4)
#undef QC_WINOGRAD_KERNELS

const Kernels& kernels_for(Isa isa) {
  if (isa >= Isa::kAvx512) return Avx512::kTable;
  return isa == Isa::kAvx2 ? Avx2::kTable : Scalar::kTable;
}

}  // namespace

void transform_weights(const Convolution& shape, const float* weight, float* transformed,
                       const Executor& executor) {
  const int64_t stride = shape.place_stride();
  executor.run(divided(shape.inputs, kWeightRows), [&](int64_t task) {
    const int64_t end = std::min(shape.inputs, (task + 1) * kWeightRows);
    for (int64_t i = task * kWeightRows; i < end; ++i) {
      for (int64_t o = 0; o < shape.outputs; ++o) {
        transform_weight(weight + 9 * (o * shape.inputs + i), false,
                         transformed + i * shape.outputs + o, stride);
      }
    }
  });
}

void transform_weights_back(const Convolution& shape, const float* weight, float* transformed,
                            const Executor& executor) {
  const int64_t stride = shape.place_stride();
  executor.run(divided(shape.outputs, kWeightRows), [&](int64_t task) {
    const int64_t end = std::min(shape.outputs, (task + 1) * kWeightRows);
    for (int64_t o = task * kWeightRows; o < end; ++o) {
      for (int64_t i = 0; i < shape.inputs; ++i) {
        transform_weight(weight + 9 * (o * shape.inputs + i), true,
                         transformed + o * shape.inputs + i, stride);
      }
    }
  });
}

void convolve(const Convolutions& problem, const Executor& executor, Isa isa) {
  const Convolution& shape = problem.shape;
  const Kernels& kernels = kernels_for(isa);
  const int64_t all = shape.batch * shape.tile_rows(), step = rows_of_tiles(shape, kTaskTiles);
  if (all == 0 || shape.tile_columns() == 0) return;
  executor.run(divided(all, step), [&](int64_t task) {
    Tiles tiles{shape, task * step, std::min(step, all - task * step), 0};
    tiles.stride = tiles.count();
    thread_local Buffer<float> from, to;
    const int64_t from_stride = shape.inputs * tiles.stride + kLanes;
    const int64_t to_stride = shape.outputs * tiles.stride + kLanes;
    float* v = from.resize(kPlaces * from_stride);
    float* m = to.resize(kPlaces * to_stride);
    const float* u = problem.transformed;
    for (float* y : problem.y) {
      std::memset(m, 0, static_cast<size_t>(kPlaces * to_stride) * sizeof(float));
      for (const float* x : problem.x) {
        // One input is transformed once for all outputs.
        const bool known = problem.x.size() == 1 && y != problem.y.front();
        for (int64_t channel = 0; !known && channel < shape.inputs; ++channel) {
          kernels.inputs(tiles, x, channel, v, from_stride);
        }
        for (int64_t place = 0; place < kPlaces; ++place, u += shape.place_stride()) {
          train_kernels(isa).multiply_add(shape.outputs, tiles.stride, shape.inputs,
                                          {u, 1, shape.outputs}, v + place * from_stride,
                                          tiles.stride, m + place * to_stride, tiles.stride);
        }
      }
      kernels.outputs(tiles, m, to_stride, problem.add, y);
    }
  });
}

// Tiles of a chunk of weight_gradients, and some for nobody so that channels are an odd number of
// cache lines apart.
int64_t chunk_stride(const Convolution& shape) {
  return rounded_up(rows_of_tiles(shape, kChunkTiles) * shape.tile_columns()) | kLanes;
}

int64_t weight_gradient_scratch(const Convolution& shape, int64_t count) {
  return kPlaces * ((shape.inputs + shape.outputs) * chunk_stride(shape) + 2 * kLanes +
                    count * shape.place_stride());
}

void weight_gradients(const WeightGradients& problem, const Executor& executor, Isa isa) {
  const Convolution& shape = problem.shape;
  const Kernels& kernels = kernels_for(isa);
  const int64_t step = rows_of_tiles(shape, kChunkTiles);
  const int64_t all = shape.batch * shape.tile_rows();
  const int64_t stride = chunk_stride(shape), apart = shape.place_stride();
  const int64_t products = shape.inputs * shape.outputs;
  const int64_t v_stride = shape.inputs * stride + kLanes;
  const int64_t m_stride = shape.outputs * stride + kLanes;
  const int64_t count = static_cast<int64_t>(problem.grads.size());
  float* v = problem.scratch;
  float* m = v + kPlaces * v_stride;
  float* sums = m + kPlaces * m_stride;
  std::memset(problem.scratch, 0,
              static_cast<size_t>(weight_gradient_scratch(shape, count)) * sizeof(float));
  // Tasks: a place and a part of the output channels.
  const int64_t parts = divided(shape.outputs, kDotRows);
  for (int64_t first = 0; first < all && shape.tile_columns() > 0; first += step) {
    const Tiles tiles{shape, first, std::min(step, all - first), stride};
    const auto transform = [&](auto kernel, const float* from, int64_t channels, float* to,
                               int64_t place_stride) {
      parallel_for(executor, channels, 4, [&](int64_t begin, int64_t end) {
        for (int64_t channel = begin; channel < end; ++channel) {
          // The last chunk may have fewer tiles.
          for (int place = 0; tiles.rows < step && place < kPlaces; ++place) {
            std::memset(to + place * place_stride + channel * stride, 0,
                        static_cast<size_t>(stride) * sizeof(float));
          }
          kernel(tiles, from, channel, to, place_stride);
        }
      });
    };
    transform(kernels.inputs, problem.x, shape.inputs, v, v_stride);
    for (int64_t i = 0; i < count; ++i) {
      transform(kernels.gradients, problem.grads[i], shape.outputs, m, m_stride);
      executor.run(kPlaces * parts, [&](int64_t task) {
        const int64_t place = task / parts, begin = task % parts * kDotRows;
        kernels.dots(std::min(kDotRows, shape.outputs - begin), shape.inputs, stride,
                     m + place * m_stride + begin * stride, v + place * v_stride,
                     sums + (i * kPlaces + place) * apart + begin * shape.inputs);
      });
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    parallel_for(executor, products, 256, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        gather_weight_gradient(sums + i * kPlaces * apart + at, apart,
                               problem.towards_weights[i] + 9 * at);
      }
    });
  }
}

}  // namespace qcompile
