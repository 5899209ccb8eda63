#include "index/flat_queries.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/dot_int8.h"
#include "index/scan.h"

namespace qcompile {
namespace {

constexpr int64_t kLeastTiles = 16;  // that are looked at
constexpr int64_t kMostStep = 32;    // of as many tiles at most, one is looked at
constexpr int64_t kFewRows = 1 << 16;

bool is_flat(const std::vector<float>& scores, float least, int64_t share) {
  const float bar = *std::max_element(scores.begin(), scores.end()) + least;
  const auto probable =
      std::count_if(scores.begin(), scores.end(), [bar](float score) { return score >= bar; });
  return share * probable >= std::ssize(scores);
}

}  // namespace

float log_least_share(int64_t rows) {
  const double few = static_cast<double>(kFewRows) / static_cast<double>(std::max(rows, kFewRows));
  return static_cast<float>(std::log(1e-7 * few));
}

std::vector<char> find_flat(const Head& head, const float* hidden, int64_t count, int64_t share,
                            Isa isa) {
  std::vector<char> flat(static_cast<size_t>(count), 0);
  const int64_t step = std::min(kMostStep, head.tiles() / kLeastTiles);
  if (step < 2) return flat;
  QueryGroup group;
  group.encode(head, hidden, count, isa);
  std::vector<std::vector<float>> scores(static_cast<size_t>(count));
  std::vector<RowLine> rows(static_cast<size_t>(ceil_div(head.merged_bytes(), kStepBytes)));
  DotLine lines[kDotQueries * kTileBlocks];
  int32_t* dots = lines->of;
  const DotQueries queries = group.dots(0, count);
  const DotKernel& kernel = dot_kernel(isa, count);
  kernel.enter(queries);
  for (int64_t t = step / 2; t < head.tiles(); t += step) {
    const Tile tile = head.tile(t);
    head.merge(tile, rows.front().of, isa);
    kernel.dots(rows.front().of, queries, dots);
    for (int64_t q = 0; q < count; ++q) {
      if (!group[q].finite) continue;
      const TileDots work{dots + q * kTileRows, group[q].scale, tile_width(tile, group[q])};
      float own[kTileRows], peaks[kBlockRows];
      scan_kernels(isa).scores(tile, work, own, peaks);
      std::vector<float>& all = scores[static_cast<size_t>(q)];
      all.insert(all.end(), own, own + tile.rows);
    }
  }
  kernel.leave();
  const float least = log_least_share(head.rows());
  for (size_t q = 0; q < scores.size(); ++q)
    flat[q] = !scores[q].empty() && is_flat(scores[q], least, share);
  return flat;
}

}  // namespace qcompile
