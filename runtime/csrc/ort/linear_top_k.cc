#include "ort/linear_top_k.h"

#include <cmath>

#include "index/log_sum.h"
#include "index/operators.h"

namespace qcompile::ort {
namespace {

enum Input : size_t {
  kPackedRows = 3,
  kScale,
  kError,
  kOffsets,
  kRowIds,
  kCentroids,
  kCentroidScale,
  kCellBias,
  kCellSpread,
  kGroupOffsets,
  kGroupCentroids,
  kGroupScale,
  kGroupBias,
  kGroupSpread,
  kInputs
};
// Weights are float32 or bfloat16, packed rows uint8 or int8: the constructor looks.
constexpr int kInputTypes[] = {kFloat,  kUndefined, kFloat, kUndefined, kFloat, kFloat,
                               kUInt32, kInt32,     kInt8,  kFloat,     kFloat, kFloat,
                               kUInt32, kInt8,      kFloat, kFloat,     kFloat};
static_assert(std::size(kInputTypes) == kInputs);
enum Output : size_t { kScores, kIds, kLogSum, kOutputs };
constexpr int kOutputTypes[] = {kFloat, kInt64, kFloat};
static_assert(std::size(kOutputTypes) == kOutputs);

struct Mode {
  const char* name;
  size_t inputs;  // that a node of this mode has
  size_t head;    // of these, those of which the kernel makes its head
};
constexpr Mode kExact{"exact", kPackedInputs, kPackedInputs};
constexpr Mode kCells{"cells", kInputs, kDenseInputs};
constexpr Mode kLsh{"lsh", kRowIds + 1, kPackedInputs};

// What a mode that is not known counts as until the constructor refuses it.
constexpr Mode kUnknown{"", kDenseInputs, kDenseInputs};

const Mode& mode_of(const NodeInfo& info) {
  const std::string name = info.string_attribute("mode", kExact.name);
  for (const Mode* mode : {&kExact, &kCells, &kLsh}) {
    if (name == mode->name) return *mode;
  }
  return kUnknown;
}

}  // namespace

const Signature LinearTopK::signature{"LinearTopK", kInputTypes, kInputs, kPackedInputs,
                                      kOutputTypes, kOutputs,    kLogSum};

LinearTopK::LinearTopK(const NodeInfo& info)
    : HeadKernel(info, signature.name, mode_of(info).head,
                 info.has_output(kLogSum) ? Rows::kFloat32 : Rows::kAny,
                 info.has_output(kLogSum) ? RoughRows::kNever : RoughRows::kIfLarge),
      log_sum_(info.has_output(kLogSum)) {
  const Mode& mode = mode_of(info);
  const std::string name = info.string_attribute("mode", kExact.name);
  if (&mode == &kUnknown) reject("attribute mode is '" + name + "', expected exact, cells or lsh");
  if (info.inputs() != mode.inputs) {
    reject(std::to_string(info.inputs()) + " inputs, expected " + std::to_string(mode.inputs) +
           " in mode " + name);
  }
  const auto count = [&](const char* attribute, int64_t fallback) {
    const int64_t value = info.attribute(attribute, fallback);
    if (value >= 1) return value;
    reject("attribute " + std::string(attribute) + " is " + std::to_string(value) +
           ", expected at least 1");
  };
  const auto factor = [&](const char* attribute, float fallback) {
    const float value = info.float_attribute(attribute, fallback);
    if (value >= 0 && std::isfinite(value)) return value;
    reject("attribute " + std::string(attribute) + " is " + std::to_string(value) +
           ", expected a finite value >= 0");
  };
  search_ = {.k = count("k", 1),
             .probes = count("probes", 32),
             .groups = count("groups", 16),
             .rescore = count("rescore", 32),
             .spread = factor("spread", 0),
             .guard = factor("guard", 0),
             .sum = log_sum_,
             .variance = factor("variance", 1)};
  if (&mode == &kCells) read_cells(info);
  // A sum over every row has no use for tables.
  if (&mode == &kLsh && !log_sum_) read_tables(info);
}

void LinearTopK::read_tables(const NodeInfo& info) {
  if (search_.probes > HashedSearch::kMostProbes) {
    reject("attribute probes is " + std::to_string(search_.probes) + ", expected at most " +
           std::to_string(HashedSearch::kMostProbes) + " in mode lsh");
  }
  Tensor offsets, row_ids;
  const bool constant = info.constant(kOffsets, offsets) && info.constant(kRowIds, row_ids);
  if (!constant || head() == nullptr) return;
  const auto list = [&](const char* name, const Tensor& tensor, int type) {
    const std::vector<int64_t>& dims = tensor.shape.dims;
    require(name, tensor, type, {dims.size() == 1 ? dims[0] : 1});
    return dims[0];
  };
  const int64_t offset_count = list("offsets", offsets, kUInt32);
  const int64_t row_id_count = list("row_ids", row_ids, kInt32);
  try {
    hashed_ = std::make_unique<HashedRows>(
        *head(),
        HashedArrays{.family = parse_family(info.string_attribute("family", "dwta")),
                     .tables = info.attribute("tables", 1),
                     .hashes = info.attribute("hashes", 1),
                     .seed = static_cast<uint64_t>(info.attribute("seed", 0)),
                     .offsets = offsets.as<uint32_t>(),
                     .offset_count = offset_count,
                     .row_ids = row_ids.as<int32_t>(),
                     .row_id_count = row_id_count},
        SerialExecutor());
  } catch (const std::invalid_argument& error) {
    reject(error.what());
  }
}

void LinearTopK::read_cells(const NodeInfo& info) {
  Tensor tensors[kInputs];
  bool constant = head() != nullptr;
  for (size_t i = kPackedRows; i < kInputs; ++i) {
    constant = info.constant(i, tensors[i]) && constant;
  }
  if (!constant) return;
  const Dense& dense = head()->dense();
  const int64_t steps = step_count(dense.depth);
  const int64_t bits = info.attribute("bits", 8);
  if (bits != 8 && !codable(bits)) {
    reject("attribute bits is " + std::to_string(bits) + ", expected 2, 4 or 8");
  }
  const int row_type = bits == 8 ? kInt8 : kUInt8;
  const int64_t row_steps = bits == 8 ? steps : code_step_count(dense.depth, bits);
  const auto extent = [&](size_t input, size_t rank) {
    const std::vector<int64_t>& dims = tensors[input].shape.dims;
    return dims.size() == rank ? dims[0] : 0;
  };
  const int64_t blocks = extent(kPackedRows, 4), cells = extent(kOffsets, 1) - 1;
  if (blocks < 1 || blocks > kMostRows / kBlockRows) {
    reject("input 'packed': expected " + std::string(bits == 8 ? "int8" : "uint8") +
           " [1 or more, " + std::to_string(row_steps) + ", 16, 4], found " +
           describe(tensors[kPackedRows].shape));
  }
  if (cells < 1) {
    reject("input 'offsets': expected uint32 [2 or more], found " +
           describe(tensors[kOffsets].shape));
  }
  const int64_t groups = extent(kGroupOffsets, 1) - 1;
  if (groups < 1) {
    reject("input 'group_offsets': expected uint32 [2 or more], found " +
           describe(tensors[kGroupOffsets].shape));
  }
  const int64_t places = blocks * kBlockRows;
  require("packed", tensors[kPackedRows], row_type, {blocks, row_steps, kBlockRows, kBlockDepth});
  require("scale", tensors[kScale], kFloat, {places});
  require("error", tensors[kError], kFloat, {places});
  require("offsets", tensors[kOffsets], kUInt32, {cells + 1});
  require("row_ids", tensors[kRowIds], kInt32, {places});
  require("centroids", tensors[kCentroids], kInt8,
          {block_count(cells), steps, kBlockRows, kBlockDepth});
  require("centroid_scale", tensors[kCentroidScale], kFloat, {cells});
  require("cell_bias", tensors[kCellBias], kFloat, {cells});
  require("cell_spread", tensors[kCellSpread], kFloat, {cells});
  require("group_offsets", tensors[kGroupOffsets], kUInt32, {groups + 1});
  require("group_centroids", tensors[kGroupCentroids], kInt8,
          {block_count(groups), steps, kBlockRows, kBlockDepth});
  require("group_scale", tensors[kGroupScale], kFloat, {groups});
  require("group_bias", tensors[kGroupBias], kFloat, {groups});
  require("group_spread", tensors[kGroupSpread], kFloat, {groups});
  try {
    cells_ = std::make_unique<CellIndex>(
        dense,
        CellArrays{.blocks = blocks,
                   .cells = cells,
                   .packed = bits == 8 ? tensors[kPackedRows].as<int8_t>() : nullptr,
                   .scale = tensors[kScale].as<float>(),
                   .error = tensors[kError].as<float>(),
                   .offsets = tensors[kOffsets].as<uint32_t>(),
                   .row_ids = tensors[kRowIds].as<int32_t>(),
                   .centroids = tensors[kCentroids].as<int8_t>(),
                   .centroid_scale = tensors[kCentroidScale].as<float>(),
                   .cell_bias = tensors[kCellBias].as<float>(),
                   .cell_spread = tensors[kCellSpread].as<float>(),
                   .groups = groups,
                   .group_offsets = tensors[kGroupOffsets].as<uint32_t>(),
                   .group_centroids = tensors[kGroupCentroids].as<int8_t>(),
                   .group_scale = tensors[kGroupScale].as<float>(),
                   .group_bias = tensors[kGroupBias].as<float>(),
                   .group_spread = tensors[kGroupSpread].as<float>(),
                   .bits = bits,
                   .codes = bits == 8 ? nullptr : tensors[kPackedRows].as<uint8_t>()},
        SerialExecutor());
  } catch (const std::invalid_argument& error) {
    reject(error.what());
  }
}

void LinearTopK::compute(OrtKernelContext* context) const {
  run(context, [&](const Head& head, const float* hidden, const std::vector<int64_t>& shape,
                   int64_t count, const Executor& executor) {
    const int64_t k = search_.k;
    if (k > head.rows()) {
      reject("attribute k is " + std::to_string(k) + ", expected at most the " +
             std::to_string(head.rows()) + " rows of input 'weight'");
    }
    auto* scores = static_cast<float*>(output(context, kScores, shape, k));
    auto* ids = static_cast<int64_t*>(output(context, kIds, shape, k));
    float* log_sums = nullptr;
    if (log_sum_) log_sums = static_cast<float*>(output(context, kLogSum, shape, 1));
    if (cells_) {
      return cells_top_k(*cells_, search_, hidden, count, scores, ids, log_sums, executor);
    }
    if (log_sum_) {
      return linear_top_k_log_sum(head, hidden, count, k, scores, ids, log_sums, executor);
    }
    if (hashed_) {
      const HashedSearch search{.k = k, .probes = search_.probes, .rescore = search_.rescore};
      return hashed_top_k(*hashed_, search, hidden, count, scores, ids, executor);
    }
    linear_top_k(head, hidden, count, k, scores, ids, executor);
  });
}

void LinearTopK::infer(const ShapeContext& context) {
  const int64_t k = context.attribute("k", 1);
  context.set_output(kScores, kFloat, k);
  context.set_output(kIds, kInt64, k);
  // Nothing tells whether the node has a third output, and onnxruntime does not check the place.
}

}  // namespace qcompile::ort
