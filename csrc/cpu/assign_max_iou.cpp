// Max-IoU assignment in two streaming passes over tiles of boxes; no box x gt matrix is made.
//
// Pass 1 finds each box's best ground truth and each ground truth's best IoU. Pass 2 computes the IoUs again
// and hands every box that ties with its ground truth's best to that ground truth. A tie is bitwise equality,
// which holds because both passes inline the same iou(). A tile lies by coordinate, so one ground truth meets
// a vector of boxes at a time, and a ground truth that misses the tile's bounding box is skipped: anchors are
// ordered by position, so most do.
#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "parallel.h"
#include "types.h"
#include "vectorize.h"

namespace frcnn {
namespace {

constexpr int64_t kTile = 256;
constexpr int64_t kLanes = 16;

template <typename T>
struct Tile {
  alignas(64) T x1[kTile], y1[kTile], x2[kTile], y2[kTile], area[kTile];
  alignas(64) T best[kTile];
  alignas(64) int32_t gt[kTile];
  bool ignored[kTile];
  Box<T> bounds;
};

// IoU of one ground truth with a tile: updates each box's best (the earlier ground truth keeps a tie) and
// returns the highest IoU met.
template <typename T>
FRCNN_INLINE T meet(Tile<T>& tile, const Box<T>& gt, T gt_area, int32_t gt_index) {
  alignas(64) T highest[kLanes] = {};
  for (int64_t i = 0; i < kTile; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t k = i + lane;
      const T overlap =
          iou(Box<T>{tile.x1[k], tile.y1[k], tile.x2[k], tile.y2[k]}, tile.area[k], gt, gt_area);
      const bool better = overlap > tile.best[k];
      tile.best[k] = better ? overlap : tile.best[k];
      tile.gt[k] = better ? gt_index : tile.gt[k];
      highest[lane] = max_of(highest[lane], overlap);
    }
  }
  return *std::max_element(highest, highest + kLanes);
}

// Hands the ground truth every box of the tile whose IoU with it equals `best`.
template <typename T>
FRCNN_INLINE void claim(Tile<T>& tile, const Box<T>& gt, T gt_area, T best, int32_t gt_index) {
  for (int64_t k = 0; k < kTile; ++k) {
    const T overlap = iou(Box<T>{tile.x1[k], tile.y1[k], tile.x2[k], tile.y2[k]}, tile.area[k], gt, gt_area);
    tile.gt[k] = overlap == best ? gt_index : tile.gt[k];
  }
}

FRCNN_VECTORIZED float meet_tile(Tile<float>& tile, const Box<float>& gt, float area, int32_t index) {
  return meet(tile, gt, area, index);
}
FRCNN_VECTORIZED double meet_tile(Tile<double>& tile, const Box<double>& gt, double area, int32_t index) {
  return meet(tile, gt, area, index);
}
FRCNN_VECTORIZED void claim_tile(Tile<float>& tile, const Box<float>& gt, float area, float best,
                                 int32_t index) {
  claim(tile, gt, area, best, index);
}
FRCNN_VECTORIZED void claim_tile(Tile<double>& tile, const Box<double>& gt, double area, double best,
                                 int32_t index) {
  claim(tile, gt, area, best, index);
}

template <typename T>
bool apart(const Box<T>& a, const Box<T>& b) {
  return !(a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2);
}

// One image's boxes, ground truths and ignore regions.
template <typename T>
struct Problem {
  const T* boxes;
  int64_t count;
  const Box<T>* gts;
  int32_t gt_count;
  const Box<T>* ignore;
  int64_t ignore_count;
  T pos_iou, neg_iou, min_pos_iou, ignore_iof;
  bool match_low_quality;
};

template <typename T>
bool is_ignored(const Problem<T>& problem, const Box<T>& box) {
  if (has_nan(box)) return true;
  for (int64_t r = 0; r < problem.ignore_count; ++r) {
    if (iof(box, box.area(), problem.ignore[r]) > problem.ignore_iof) return true;
  }
  return false;
}

// Boxes [first, first + kTile) by coordinate. Ignored boxes, and places past the end, hold an empty box.
template <typename T>
void load_tile(const Problem<T>& problem, int64_t first, Tile<T>& tile) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  tile.bounds = {infinity, infinity, -infinity, -infinity};
  for (int64_t k = 0; k < kTile; ++k) {
    Box<T> box{T(0), T(0), T(0), T(0)};
    tile.ignored[k] = false;
    if (first + k < problem.count) {
      const Box<T> own = load_box(problem.boxes + 4 * (first + k));
      tile.ignored[k] = is_ignored(problem, own);
      if (!tile.ignored[k]) {
        box = own;
        // With the bounds second, a NaN coordinate leaves them as they are.
        tile.bounds = {min_of(box.x1, tile.bounds.x1), min_of(box.y1, tile.bounds.y1),
                       max_of(box.x2, tile.bounds.x2), max_of(box.y2, tile.bounds.y2)};
      }
    }
    tile.x1[k] = box.x1, tile.y1[k] = box.y1, tile.x2[k] = box.x2, tile.y2[k] = box.y2;
    tile.area[k] = box.area();
  }
}

template <typename T>
void assign(const Problem<T>& problem, T* best, int64_t* gt_index, T* max_iou) {
  if (problem.gt_count == 0) {
    for (int64_t i = 0; i < problem.count; ++i) {
      const bool ignored = has_nan(load_box(problem.boxes + 4 * i));
      gt_index[i] = ignored ? -1 : 0;
      max_iou[i] = ignored ? T(-1) : T(0);
    }
    return;
  }
  const int64_t tiles = (problem.count + kTile - 1) / kTile;
  std::vector<T> areas;
  std::fill_n(best, problem.gt_count, T(0));
  for (int32_t g = 0; g < problem.gt_count; ++g) areas.push_back(problem.gts[g].area());

  std::mutex merging;
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    std::vector<T> own_best(problem.gt_count, T(0));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kTile, size = std::min(kTile, problem.count - first);
      load_tile(problem, first, tile);
      std::fill(tile.best, tile.best + kTile, T(0));
      std::fill(tile.gt, tile.gt + kTile, 0);
      for (int32_t g = 0; g < problem.gt_count; ++g) {
        if (apart(tile.bounds, problem.gts[g])) continue;
        own_best[g] = max_of(own_best[g], meet_tile(tile, problem.gts[g], areas[g], g));
      }
      for (int64_t k = 0; k < size; ++k) {
        const bool positive = tile.best[k] >= problem.pos_iou;
        const int64_t index = positive ? tile.gt[k] + 1 : (tile.best[k] < problem.neg_iou ? 0 : -1);
        gt_index[first + k] = tile.ignored[k] ? -1 : index;
        max_iou[first + k] = tile.ignored[k] ? T(-1) : tile.best[k];
      }
    }
    // A maximum does not depend on the order in which threads bring theirs.
    const std::lock_guard<std::mutex> lock(merging);
    for (int32_t g = 0; g < problem.gt_count; ++g) best[g] = max_of(best[g], own_best[g]);
  });
  if (!problem.match_low_quality) return;

  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kTile, size = std::min(kTile, problem.count - first);
      load_tile(problem, first, tile);
      std::fill(tile.gt, tile.gt + kTile, -1);
      for (int32_t g = 0; g < problem.gt_count; ++g) {
        if (best[g] < problem.min_pos_iou) continue;
        // A best IoU of 0 ties with boxes that do not touch.
        if (best[g] > T(0) && apart(tile.bounds, problem.gts[g])) continue;
        claim_tile(tile, problem.gts[g], areas[g], best[g], g);
      }
      for (int64_t k = 0; k < size; ++k) {
        if (tile.gt[k] >= 0 && !tile.ignored[k]) gt_index[first + k] = tile.gt[k] + 1;
      }
    }
  });
}

// The first `count` of an image's padded rows.
template <typename T>
std::vector<Box<T>> boxes_of(const T* rows, int64_t count) {
  std::vector<Box<T>> boxes;
  for (int64_t i = 0; i < count; ++i) boxes.push_back(load_box(rows + 4 * i));
  return boxes;
}

}  // namespace
}  // namespace frcnn

void frcnn_cpu_assign_max_iou(int64_t type, const FrcnnAssignment* assignment, void* workspace,
                              int64_t* gt_index, void* max_iou) {
  using namespace frcnn;
  const FrcnnAssignment& a = *assignment;
  for_box_type(type, [&](auto number) {
    using T = decltype(number);
    for (int64_t image = 0; image < a.batch; ++image) {
      const auto own_gts = boxes_of(static_cast<const T*>(a.gts) + image * a.g * 4, a.gt_counts[image]);
      std::vector<Box<T>> regions;
      if (a.ignore && a.ignore_iof > 0) {
        regions = boxes_of(static_cast<const T*>(a.ignore) + image * a.i * 4, a.ignore_counts[image]);
      }
      const Problem<T> problem{static_cast<const T*>(a.boxes) + image * a.box_batch_stride,
                               a.n,
                               own_gts.data(),
                               static_cast<int32_t>(own_gts.size()),
                               regions.data(),
                               static_cast<int64_t>(regions.size()),
                               static_cast<T>(a.pos_iou),
                               static_cast<T>(a.neg_iou),
                               static_cast<T>(a.min_pos_iou),
                               static_cast<T>(a.ignore_iof),
                               a.match_low_quality};
      assign(problem, static_cast<T*>(workspace) + image * a.g, gt_index + image * a.n,
             static_cast<T*>(max_iou) + image * a.n);
    }
  });
}
