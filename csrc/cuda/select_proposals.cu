// From the logits and deltas of all levels to each image's proposals: a memset and four launches. Two
// launches find the best anchors of every level and image without sorting all of them: the first counts
// logits by their upper 12 bits, the second lists the anchors of the bins that hold the best `pre_nms`. Then
// some blocks per level and image order what is listed, decode, clip and filter, each for itself, and
// suppress together (nms_spread.h). The last launch merges the levels: a box's rank is its place in its own
// level plus how many are better in each other level, which a search in that sorted level tells.
//
// Bound by latency: the logits of a 800x1344 image, 268,569 anchors, are 1.1 MB and read twice, a modeled 1
// us at 3.35 TB/s; everything after is a thousand anchors per level, of which the longest block takes a
// modeled 19 us (docs/performance.md). Nothing was measured on a GPU.
#include "anchors.h"
#include "nms_spread.h"
#include "order_in_block.h"

namespace frcnn {
namespace {

constexpr int kScanThreads = 256, kScanEach = 8;  // anchors that a thread looks at
constexpr int kMergeThreads = 128;
constexpr int kBinBits = 12, kBins = 1 << kBinBits;
constexpr int kBinsPerDigit = kBins / kDigits;
static_assert(kDigits == kScanThreads);

struct Levels {
  FrcnnRPNLevel level[kFrcnnMostLevels];
  int64_t first[kFrcnnMostLevels];  // of the level's anchors among an image's
  int64_t anchors;                  // of an image
  int per_cell;
};

// In the workspace; S: images times levels.
struct Work {
  Key* listed;         // [B, anchors]: a level's keys from its first anchor on
  unsigned* kept;      // [S, each]: keys of scores, ascending
  float4* boxes;       // [S, each]
  int *counts, *bins;  // [S] kept; [S, kBins]
  int* listed_count;   // [S]
  int each;            // most that a level keeps
  Spread spread;
};

// (score, anchor), or kLastKey for an anchor beyond the level's, and for a logit of NaN or -inf.
__device__ __forceinline__ Key anchor_key(const Levels& levels, int l, int64_t image, unsigned i) {
  const FrcnnRPNLevel& level = levels.level[l];
  const unsigned width = static_cast<unsigned>(level.width),
                 per_cell = static_cast<unsigned>(levels.per_cell);
  const unsigned count = static_cast<unsigned>(level.height) * width * per_cell;
  if (i >= count) return kLastKey;
  const unsigned cell = i / per_cell, a = i - cell * per_cell, y = cell / width, x = cell - y * width;
  const int64_t* const steps = level.logit_strides;
  const float logit = level.logits[image * steps[0] + a * steps[1] + y * steps[2] + x * steps[3]];
  if (!(logit > -INFINITY)) return kLastKey;
  return static_cast<Key>(score_key(logit)) << 32 | i;
}
__device__ __forceinline__ int bin_of(Key key) { return static_cast<int>(key >> (64 - kBinBits)); }

// grid: (parts of the largest level, levels, images)
__global__ void __launch_bounds__(kScanThreads)
    count_kernel(const __grid_constant__ Levels levels, Work work) {
  FRCNN_SHARED(bins, int[kBins]);
  const int t = static_cast<int>(threadIdx.x), l = static_cast<int>(blockIdx.y);
  const int64_t image = blockIdx.z, segment = image * gridDim.y + l;
  for (int i = t; i < kBins; i += kScanThreads) bins[i] = 0;
  __syncthreads();
  for (int j = 0; j < kScanEach; ++j) {
    const Key key = anchor_key(levels, l, image, (blockIdx.x * kScanEach + j) * kScanThreads + t);
    if (key != kLastKey) atomicAdd(&bins[bin_of(key)], 1);
  }
  __syncthreads();
  for (int i = t; i < kBins; i += kScanThreads)
    if (bins[i] > 0) atomicAdd(&work.bins[segment * kBins + i], bins[i]);
}

// grid: as count_kernel
__global__ void __launch_bounds__(kScanThreads)
    list_kernel(const __grid_constant__ Levels levels, int pre_nms, Work work) {
  FRCNN_SHARED(order, OrderShared);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, l = static_cast<int>(blockIdx.y);
  const int64_t image = blockIdx.z, segment = image * gridDim.y + l;
  const int* const bins = work.bins + segment * kBins + t * kBinsPerDigit;
  int own = 0;
  for (int i = 0; i < kBinsPerDigit; ++i) own += bins[i];
  order.of_digit[t] = own;
  __syncthreads();
  find_digit(pre_nms, order);
  // The last bin that is listed; all if there are not as many anchors as are wanted.
  int last = kBins - 1;
  if (order.digit >= 0) {
    last = order.digit * kBinsPerDigit;
    const int* const near = work.bins + segment * kBins;
    for (int below = order.below + near[last]; below < pre_nms; below += near[last]) ++last;
  }
  for (int j = 0; j < kScanEach; ++j) {
    const Key key = anchor_key(levels, l, image, (blockIdx.x * kScanEach + j) * kScanThreads + t);
    const unsigned votes = __ballot_sync(kFullWarp, key != kLastKey && bin_of(key) <= last);
    int base = 0;
    if (lane == 0 && votes != 0) base = atomicAdd(&work.listed_count[segment], __popc(votes));
    base = __shfl_sync(kFullWarp, base, 0);
    if ((votes >> lane & 1u) != 0)
      work.listed[image * levels.anchors + levels.first[l] + base + __popc(votes & ((1u << lane) - 1u))] =
          key;
  }
}

// grid: (blocks of a level, levels, images). Dynamic shared memory: boxes [size], keys [size]; size: pre_nms,
// or the anchors of the largest level if those are fewer, as boxes_in_shared() rounds it.
__global__ void __launch_bounds__(kNmsThreads, 1)
    level_kernel(const __grid_constant__ AnchorGrid grid, const __grid_constant__ Levels levels,
                 const float* __restrict__ image_sizes, Delta<float> stds, float min_size, float threshold,
                 int pre_nms, int size, Work work) {
  FRCNN_DYNAMIC_SHARED(memory);
  FRCNN_SHARED(suppression, SpreadShared);
  FRCNN_SHARED(order, OrderShared);
  Box<float>* const boxes = reinterpret_cast<Box<float>*>(memory);
  Key* const keys = reinterpret_cast<Key*>(boxes + size);
  const int t = static_cast<int>(threadIdx.x);
  const int l = static_cast<int>(blockIdx.y), image = static_cast<int>(blockIdx.z);
  const int segment = image * static_cast<int>(gridDim.y) + l;
  const FrcnnRPNLevel& level = levels.level[l];
  const Key* const listed = work.listed + image * levels.anchors + levels.first[l];
  const int total = work.listed_count[segment], wanted = total < pre_nms ? total : pre_nms;
  lowest_in_block<kNmsThreads>([&](int64_t i) { return listed[i]; }, total, wanted, size, keys, order);

  // The keys' memory then holds, from its front on, the score's key of each box that is valid: a place takes
  // half a key, and keys are read a barrier before places are written, so none is overwritten unread.
  int* const places = reinterpret_cast<int*>(keys);
  int count = 0;
  for (int first = 0; first < wanted; first += kNmsThreads) {
    const Key own = first + t < wanted ? keys[first + t] : kLastKey;
    Box<float> box{0, 0, 0, 0};
    bool valid = false;
    if (own != kLastKey) {
      const unsigned index = static_cast<unsigned>(own & 0xffffffffu);
      const unsigned width = static_cast<unsigned>(level.width), cell = index / levels.per_cell;
      const unsigned y = cell / width, x = cell - y * width;
      const int64_t* const steps = level.delta_strides;
      const float* const d = level.deltas + image * steps[0] +
                             (index - cell * levels.per_cell) * 4 * steps[1] + y * steps[2] + x * steps[3];
      const Delta<float> delta{d[0], d[steps[1]], d[2 * steps[1]], d[3 * steps[1]]};
      box = clip(decode(anchor(grid, l, index, width), delta, stds), image_sizes[image * 2],
                 image_sizes[image * 2 + 1]);
      valid = box.width() > min_size && box.height() > min_size;
    }
    int found;
    const int rank = count + rank_in_block<kNmsWarps>(valid, suppression.in_block.of_warp, &found);
    count += found;
    if (valid) {
      store_box(&boxes[rank].x1, box);
      places[rank] = static_cast<int>(own >> 32);
    }
  }
  const int kept =
      suppress_spread(boxes, reinterpret_cast<float*>(places + size), places, count, nullptr, threshold,
                      work.each, work.spread, segment, static_cast<int>(blockIdx.x), suppression);
  if (kept < 0) return;
#pragma unroll 1  // four at a time would not fit the registers
  for (int i = t; i < kept; i += kNmsThreads) {
    const int64_t slot = int64_t{segment} * work.each + i;
    work.kept[slot] = static_cast<unsigned>(places[i]);
    work.boxes[slot] = make_float4(boxes[i].x1, boxes[i].y1, boxes[i].x2, boxes[i].y2);
  }
  if (t == 0) work.counts[segment] = kept;
}

// How many of the `count` ascending keys are below `key`.
__device__ __forceinline__ int count_below(const unsigned* keys, int count, uint64_t key) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// grid: (parts of a level, levels, images)
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(int most, Work work, float4* __restrict__ boxes, float* __restrict__ scores) {
  const int levels = static_cast<int>(gridDim.y), level = static_cast<int>(blockIdx.y);
  const int64_t image = blockIdx.z;
  const int* const counts = work.counts + image * levels;
  const unsigned* const kept = work.kept + image * levels * work.each;
  const int i = static_cast<int>(blockIdx.x * kMergeThreads + threadIdx.x);
  if (i < counts[level]) {
    // Of equal scores those of a lower level come first.
    const int64_t slot = int64_t{level} * work.each + i;
    const uint64_t key = kept[slot];
    int64_t rank = i;
    for (int l = 0; l < levels; ++l)
      if (l != level)
        rank += count_below(kept + int64_t{l} * work.each, counts[l], l < level ? key + 1 : key);
    if (rank < most) {
      boxes[image * most + rank] = work.boxes[image * levels * work.each + slot];
      scores[image * most + rank] = score_of(static_cast<unsigned>(key));
    }
  }
  if (level == 0 && i < most) {
    int64_t used = 0;
    for (int l = 0; l < levels; ++l) used += counts[l];
    if (i >= used) {
      boxes[image * most + i] = make_float4(0, 0, 0, 0);
      scores[image * most + i] = -INFINITY;
    }
  }
}

int64_t anchors_of(const FrcnnProposals& p, int64_t level) {
  return p.levels[level].height * p.levels[level].width * p.grid->num_scales * p.grid->num_ratios;
}

// Sizes, and with `memory` the places, of the workspace's parts.
struct Plan {
  Levels levels{};
  Work work{};
  int64_t largest = 0, zeroed = 0, zeroed_bytes = 0, bytes = 0;
  int64_t wanted = 0;  // of the largest level

  Plan(const FrcnnProposals& p, char* memory) {
    const int64_t count = p.grid->levels, segments = p.batch * count;
    levels.per_cell = static_cast<int>(p.grid->num_scales * p.grid->num_ratios);
    for (int64_t l = 0; l < count; ++l) {
      levels.level[l] = p.levels[l];
      levels.first[l] = levels.anchors;
      levels.anchors += anchors_of(p, l);
      largest = anchors_of(p, l) > largest ? anchors_of(p, l) : largest;
    }
    wanted = p.pre_nms < largest ? p.pre_nms : largest;
    const int64_t each = wanted < p.count ? wanted : p.count;
    work.each = static_cast<int>(each);
    const auto part = [&](int64_t size) {
      char* const place = memory == nullptr ? nullptr : memory + bytes;
      bytes += (size + 15) / 16 * 16;
      return place;
    };
    work.boxes = reinterpret_cast<float4*>(part(segments * each * static_cast<int64_t>(sizeof(float4))));
    work.listed = reinterpret_cast<Key*>(part(p.batch * levels.anchors * static_cast<int64_t>(sizeof(Key))));
    work.kept = reinterpret_cast<unsigned*>(part(segments * each * 4));
    work.counts = reinterpret_cast<int*>(part(segments * 4));
    work.spread.blocks = blocks_per_segment(segments, wanted);
    work.spread.words = static_cast<int>(div_up<int64_t>(wanted, kWord));
    work.spread.bits = reinterpret_cast<unsigned*>(part(Spread::bytes(segments, wanted)));
    zeroed = bytes;
    work.spread.finished = reinterpret_cast<unsigned*>(part(segments * 4));
    work.bins = reinterpret_cast<int*>(part(segments * kBins * 4));
    work.listed_count = reinterpret_cast<int*>(part(segments * 4));
    zeroed_bytes = bytes - zeroed;
  }
};

bool too_many(const FrcnnProposals& p) {
  return p.grid->levels > kFrcnnMostLevels || p.pre_nms > kFrcnnNmsBlock || p.count > kFrcnnNmsBlock ||
         p.batch > 65535;
}

}  // namespace
}  // namespace frcnn

extern "C" {

int64_t frcnn_cuda_select_proposals_workspace(const FrcnnProposals* proposals) {
  return frcnn::too_many(*proposals) ? 0 : frcnn::Plan(*proposals, nullptr).bytes;
}

int frcnn_cuda_select_proposals(const FrcnnProposals* proposals, void* workspace, float* boxes, float* scores,
                                cudaStream_t stream) {
  using namespace frcnn;
  const FrcnnProposals& p = *proposals;
  AnchorGrid grid;
  if (too_many(p) || !copy_grid(*p.grid, &grid)) return cudaErrorInvalidValue;
  const Plan plan(p, static_cast<char*>(workspace));
  if (plan.largest > INT32_MAX) return cudaErrorInvalidValue;
  if (p.batch == 0) return cudaSuccess;
  const auto stds = stds_of<float>(p.stds);
  const unsigned levels = static_cast<unsigned>(p.grid->levels), images = static_cast<unsigned>(p.batch);
  cudaError_t error =
      cudaMemsetAsync(static_cast<char*>(workspace) + plan.zeroed, 0, plan.zeroed_bytes, stream);
  if (plan.wanted > 0) {
    const dim3 parts(static_cast<unsigned>(div_up<int64_t>(plan.largest, kScanThreads * kScanEach)), levels,
                     images);
    if (error == cudaSuccess)
      error = launch(count_kernel, parts, dim3(kScanThreads), 0, stream, plan.levels, plan.work);
    if (error == cudaSuccess)
      error = launch(list_kernel, parts, dim3(kScanThreads), 0, stream, plan.levels,
                     static_cast<int>(p.pre_nms), plan.work);
  }
  const int size = boxes_in_shared(plan.wanted);
  if (error == cudaSuccess)
    error = launch(level_kernel, dim3(static_cast<unsigned>(plan.work.spread.blocks), levels, images),
                   dim3(kNmsThreads), static_cast<size_t>(size) * (sizeof(Key) + sizeof(Box<float>)), stream,
                   grid, plan.levels, p.image_sizes, stds, static_cast<float>(p.min_size),
                   static_cast<float>(p.iou_threshold), static_cast<int>(plan.wanted), size, plan.work);
  const int64_t longest = plan.work.each > p.count ? plan.work.each : p.count;
  if (error == cudaSuccess && longest > 0)
    error = launch(merge_kernel,
                   dim3(static_cast<unsigned>(div_up<int64_t>(longest, kMergeThreads)), levels, images),
                   dim3(kMergeThreads), 0, stream, static_cast<int>(p.count), plan.work,
                   reinterpret_cast<float4*>(boxes), scores);
  return error;
}
}
