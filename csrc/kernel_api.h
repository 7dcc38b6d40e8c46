// The kernel API: every kernel as a plain C function of pointers and sizes, nothing of torch. Names and
// shapes are those of the operator in bindings/, tensors are contiguous unless strides are passed, boxes are
// four numbers, `type` is the number type of what it stands beside; boxes of an operator that has float64
// share it.
//
// FRCNN_KERNEL(x, ...) declares frcnn_cpu_x(...) in cpu/ and frcnn_cuda_x(..., stream) in cuda/. The latter
// takes device pointers and only enqueues: it neither allocates nor synchronizes, so any sequence of them can
// be captured into a CUDA graph. It returns the first launch error, a cudaError_t.
#pragma once

#include <cstdint>

using FrcnnStream = struct CUstream_st*;  // cudaStream_t, without CUDA's headers

#define FRCNN_KERNEL(name, ...)       \
  void frcnn_cpu_##name(__VA_ARGS__); \
  int frcnn_cuda_##name(__VA_ARGS__, FrcnnStream stream)
// How many bytes of workspace the kernel wants.
#define FRCNN_WORKSPACE(name, ...)                   \
  int64_t frcnn_cpu_##name##_workspace(__VA_ARGS__); \
  int64_t frcnn_cuda_##name##_workspace(__VA_ARGS__)

extern "C" {

enum FrcnnType { kFrcnnFloat = 0, kFrcnnDouble = 1, kFrcnnHalf = 2, kFrcnnBfloat16 = 3 };

// The anchors of a grid, in host memory. On CUDA at most kFrcnnMostLevels levels, kFrcnnMostShapes scales or
// ratios.
enum { kFrcnnMostLevels = 16, kFrcnnMostShapes = 16 };
struct FrcnnAnchors {
  const float* strides;  // [levels]
  const float* scales;
  const float* ratios;
  int64_t levels, num_scales, num_ratios;
  float center_offset;
};

// sizes: host, H and W of each level; anchors [N, 4] float32, or, with image_sizes [images, 2], [images, N,
// 4] and NaN where an anchor's position is beyond its image's (height, width)
FRCNN_KERNEL(grid_anchors, const FrcnnAnchors* grid, const int64_t* sizes, const float* image_sizes,
             int64_t images, float* anchors);

FRCNN_KERNEL(box_iou, int64_t type, const void* a, const void* b, int64_t n, int64_t m, void* out);

// stds: host, four
FRCNN_KERNEL(encode_boxes, int64_t type, const void* boxes, const void* targets, const double* stds,
             int64_t n, void* deltas);
// max_shape: host (height, width), or null
FRCNN_KERNEL(decode_boxes, int64_t type, const void* boxes, const void* deltas, const double* stds,
             const int64_t* max_shape, int64_t n, int64_t classes, void* out);
FRCNN_KERNEL(decode_boxes_backward, int64_t type, const void* grad, const void* boxes, const void* deltas,
             const double* stds, const int64_t* max_shape, int64_t n, int64_t classes, void* grad_deltas);

// One level of select_proposals, in host memory; the pointers are to device memory.
struct FrcnnRPNLevel {
  const float *logits, *deltas;  // [B, A, H, W] and [B, A*4, H, W]: strides of batch, channel, row, column
  int64_t height, width;
  int64_t logit_strides[4], delta_strides[4];
};
struct FrcnnProposals {
  const FrcnnAnchors* grid;
  const FrcnnRPNLevel* levels;
  const float* image_sizes;  // [B, 2]
  const double* stds;        // host, four
  int64_t batch;
  double min_size, iou_threshold;
  int64_t pre_nms, count;  // per level, and of all levels; on CUDA at most kFrcnnNmsBlock
};
// -> boxes [B, count, 4], scores [B, count], best first; unused ones are 0 and -inf
FRCNN_WORKSPACE(select_proposals, const FrcnnProposals* proposals);
FRCNN_KERNEL(select_proposals, const FrcnnProposals* proposals, void* workspace, float* boxes, float* scores);

// What the two directions of roi_align share, in host memory. On CUDA at most kFrcnnMostBins bin rows and
// columns.
enum { kFrcnnMostBins = 512 };
// Of the gradient on CUDA: cells along each side of a tile, and channels.
enum { kFrcnnTile = 8, kFrcnnMostChannels = 65535 * 32 };
struct FrcnnRoiAlign {
  const int64_t* sizes;  // H and W of each level
  const double* scales;  // cells per pixel of each level
  int64_t levels, batch, channels, rois, pooled_height, pooled_width, sampling_ratio;
  bool aligned, channels_last;  // channels_last: features and pooled values are [B, H, W, C]; forward only
  double finest_scale;
};
// features: host array of pointers; rois float32, or float64 when features are.
FRCNN_KERNEL(roi_align, int64_t type, const FrcnnRoiAlign* pooling, const void* const* features,
             const void* rois, void* out);
// grad is [K, h, w, C], grad_features [B, H, W, C], whatever channels_last says; on a CPU float32 or float64
FRCNN_WORKSPACE(roi_align_backward, int64_t type, const FrcnnRoiAlign* pooling);
FRCNN_KERNEL(roi_align_backward, int64_t type, const FrcnnRoiAlign* pooling, const void* grad,
             const void* rois, void* workspace, void* const* grad_features);

// boxes [S, n, 4], scores [S, n]; groups [S, n] or null: boxes of different groups do not suppress each
// other; drop_absent: a score of -inf marks an absent box -> indices [S, max_keep], padded with -1, and
// counts [S]. The CUDA kernel sorts and suppresses in one launch, and takes float32 only and n up to what
// frcnn_cuda_nms_block says of the current GPU: kFrcnnNmsBlock, or half as many before compute
// capability 8.0.
enum { kFrcnnNmsBlock = 4096 };
int frcnn_cuda_nms_block(int64_t* boxes);
FRCNN_WORKSPACE(nms, int64_t segments, int64_t n);
FRCNN_KERNEL(nms, int64_t type, const void* boxes, const void* scores, const int64_t* groups,
             int64_t segments, int64_t n, double iou_threshold, int64_t max_keep, bool drop_absent,
             void* workspace, int64_t* indices, int64_t* counts);

// Larger inputs, on CUDA: sort by the keys of the scores, stably, then by group if there are any, then
// suppress. keys ascend from the best score to the worst, NaN last; int32 for float scores, int64 for double
int frcnn_cuda_nms_keys(int64_t type, const void* scores, int64_t n, void* keys, FrcnnStream stream);
// ids [n]: the running number, from 1, of each sorted row's group -> starts [n + 1] of the groups, count [1]
int frcnn_cuda_nms_segments(const int64_t* ids, int64_t n, int64_t* starts, int64_t* count,
                            FrcnnStream stream);

struct FrcnnLargeNms {
  const void* boxes;     // [total, 4], not sorted
  const void* scores;    // [total] or null; a score of -inf marks an absent box
  const int64_t* order;  // [total]: segment by segment, best first, rows of boxes, or of the segment's boxes
  // Segments are [starts[s], starts[s + 1]) with their number in device memory, or `segments` of n rows each
  // if starts is null; only then does `order` count within a segment, and may there be indices.
  const int64_t *starts, *segment_count;
  int64_t total, segments, n;
  double iou_threshold;
  int64_t max_keep;
  // Results: keep [total], in the order of `order`, or indices [S, max_keep] (into the segment) and
  // counts [S]
  uint8_t* keep;
  int64_t *indices, *counts;
};
// workspace: frcnn_cuda_nms_large_workspace(type, total) bytes
int64_t frcnn_cuda_nms_large_workspace(int64_t type, int64_t total);
int frcnn_cuda_nms_large(int64_t type, const FrcnnLargeNms* problem, void* workspace, FrcnnStream stream);

// The best detections of each image, in host memory but for the pointers: probabilities [B, P, C + 1], the
// last of them background; deltas [B, P, 4 * C], or [B, P, 4] if class_agnostic; proposals [B, P, 4], present
// [B, P]; sizes [B, 2], (height, width) that boxes are clipped to; scales [B, 2], (x, y) that they are
// divided by. On CUDA at most kFrcnnNmsBlock proposals and detections.
struct FrcnnSelection {
  const float *probabilities, *deltas, *proposals, *sizes, *scales;
  const bool* present;
  const double* stds;  // host, four
  int64_t images, proposals_per_image, classes;
  bool class_agnostic;
  double score_threshold, iou_threshold;
  int64_t max_detections;
};
// -> boxes [B, D, 4], scores [B, D], labels and rows [B, D] (-1 where unused), counts [B]
FRCNN_WORKSPACE(select_detections, const FrcnnSelection* selection);
FRCNN_KERNEL(select_detections, const FrcnnSelection* selection, void* workspace, float* boxes, float* scores,
             int64_t* labels, int64_t* rows, int64_t* counts);

// images [B, H, W, channels]; sizes [B, 2], (height, width) of each, beyond which the result is zero; mean
// and std: host, one for each channel, in the result's order; reverse: of three, BGR becomes RGB
// -> out [B, H, W, channels] of `type`, one of float, half and bfloat16
enum { kFrcnnMostImageChannels = 32 };
FRCNN_KERNEL(normalize_images, int64_t type, const uint8_t* images, const float* sizes, const double* mean,
             const double* std, bool reverse, int64_t batch, int64_t height, int64_t width, int64_t channels,
             void* out);

// An image of resize_images, in host memory but for its pixels [height, width, 3]. On CUDA a launch takes
// kFrcnnImages of them, none longer than kFrcnnLongestSide.
enum { kFrcnnImages = 32, kFrcnnLongestSide = 1 << 24 };
struct FrcnnImage {
  const uint8_t* pixels;
  int64_t height, width, new_height, new_width;
};
// -> out [B, H, W, 3], zero beyond each image's new size
FRCNN_KERNEL(resize_images, const FrcnnImage* images, int64_t batch, int64_t height, int64_t width,
             uint8_t* out);

// What follows a convolution: x and out [B, H, W, K], bias [K], add [B, h, w, K] or null, each of whose cells
// is the nearest of several of x where it is smaller; `type` one of float, half and bfloat16
struct FrcnnEpilogue {
  const void *x, *bias, *add;
  bool relu;
  int64_t batch, height, width, channels, add_height, add_width;
};
FRCNN_KERNEL(conv_epilogue, int64_t type, const FrcnnEpilogue* epilogue, void* out);
// The gradient of relu(x + bias), of which grad and out are the gradient and the result, all [cells,
// channels]
// -> masked, which may be grad itself: zero where out is not above 0; by_bias [channels], its sums
FRCNN_WORKSPACE(relu_bias_gradient, int64_t type, int64_t cells, int64_t channels);
FRCNN_KERNEL(relu_bias_gradient, int64_t type, const void* grad, const void* out, int64_t cells,
             int64_t channels, void* workspace, void* masked, void* by_bias);

// mode: as frcnn::IouLoss counts; reduction: a FrcnnReduction; weight and boxes may be null.
enum FrcnnReduction { kFrcnnNone = 0, kFrcnnSum = 1, kFrcnnMean = 2 };
FRCNN_WORKSPACE(iou_loss, int64_t n);
FRCNN_KERNEL(iou_loss, int64_t type, const void* pred, const void* target, const void* weight,
             const void* boxes, const double* stds, int64_t n, int64_t mode, double eps, double beta,
             int64_t reduction, void* workspace, void* out);
FRCNN_KERNEL(iou_loss_backward, int64_t type, const void* grad, const void* pred, const void* target,
             const void* weight, const void* boxes, const double* stds, int64_t n, int64_t mode, double eps,
             double beta, int64_t reduction, void* grad_pred);

// Boxes and the ground truths of a batch of images, all of one type.
struct FrcnnAssignment {
  const void* boxes;  // [n, 4] with box_batch_stride 0, or [batch, n, 4] with n * 4
  const void* gts;    // [batch, g, 4], of which gt_counts [batch] are there
  const int64_t* gt_counts;
  const void* ignore;  // [batch, i, 4], of which ignore_counts [batch] are there; may be null
  const int64_t* ignore_counts;
  int64_t batch, n, g, i, box_batch_stride;
  double pos_iou, neg_iou, min_pos_iou, ignore_iof;
  bool match_low_quality;
};
// workspace: [batch, g] numbers of `type`; gt_index and max_iou [batch, n]
FRCNN_KERNEL(assign_max_iou, int64_t type, const FrcnnAssignment* assignment, void* workspace,
             int64_t* gt_index, void* max_iou);

// Convolutions whose norm is an affine map of each filter; all of one layer, and `layers` of them.
struct FrcnnNorm {
  const void *weight, *gain, *shift, *mean, *variance;  // [filters, row], and [filters] each
  int64_t filters, row;
};
// -> weights and biases of out_type, one of each per layer; double goes with double only
FRCNN_KERNEL(fold_norms, int64_t type, int64_t out_type, const FrcnnNorm* norms, int64_t layers, double eps,
             void* const* weights, void* const* biases);
// grads: of the weights, then of the biases, of grad_type -> grads of weight, gain and shift of each layer
FRCNN_KERNEL(fold_norms_backward, int64_t type, int64_t grad_type, const FrcnnNorm* norms, int64_t layers,
             double eps, const void* const* grad_weights, const void* const* grad_biases,
             void* const* by_weight, void* const* by_gain, void* const* by_shift);

// gt_index [B, n], seed [1] -> index [B, slots], -1 where unused, and counts [B, 2] of positives and
// negatives, which come in this order
FRCNN_WORKSPACE(sample_anchors, int64_t batch, int64_t n);
FRCNN_KERNEL(sample_anchors, const int64_t* gt_index, const int64_t* seed, int64_t batch, int64_t n,
             int64_t slots, int64_t most_positive, void* workspace, int64_t* index, int64_t* counts);

// The candidates of an image are its g gts, then its p proposals.
struct FrcnnCandidates {
  const float *proposals, *scores;  // [B, p, 4], [B, p]; a score of -inf marks an absent one
  const int64_t* gt_index;          // [B, p]
  const float* gts;                 // [B, g, 4]
  const int64_t *labels, *counts;   // [B, g], [B]
  int64_t batch, p, g, background;
};
// -> rois [B, slots, 5], labels [B, slots], targets [B, slots, 4], counts as above
FRCNN_WORKSPACE(sample_proposals, const FrcnnCandidates* candidates);
FRCNN_KERNEL(sample_proposals, const FrcnnCandidates* candidates, const int64_t* seed, int64_t slots,
             int64_t most_positive, void* workspace, float* rois, int64_t* labels, float* targets,
             int64_t* counts);

// What an RPN says of sampled anchors, in host memory: maps [B, per_cell * 5, H, W] hold the logits, then the
// deltas of each anchor.
struct FrcnnRPNMap {
  const void* values;
  int64_t height, width, strides[4];
};
struct FrcnnRPNSamples {
  const FrcnnRPNMap* maps;
  const float* anchors;                      // [B, n, 4], or [n, 4] with anchor_stride 0
  const float* gts;                          // [B, g, 4]
  const int64_t *gt_index, *index, *counts;  // [B, n], [B, slots], [B, 2]
  const double* stds;                        // host, four
  int64_t levels, per_cell, batch, n, g, slots, anchor_stride;
};
// Losses and their gradients are float64 where the maps are, otherwise float32. grads: one [B, H, W,
// per_cell * 5] per level, zero on entry.
FRCNN_KERNEL(rpn_loss, int64_t type, const FrcnnRPNSamples* samples, void* of_class, void* of_box);
FRCNN_KERNEL(rpn_loss_backward, int64_t type, const FrcnnRPNSamples* samples, const void* by_class,
             const void* by_box, void* const* grads);

// What a box head says of `rows` sampled boxes, `slots` of each image: outputs [rows, classes + 1 + 4 *
// classes], or 4 in place of the latter if class_agnostic. mode: as frcnn::IouLoss counts, or kFrcnnL1.
enum { kFrcnnL1 = 7 };
struct FrcnnBoxSamples {
  const void* outputs;
  const int64_t *labels, *counts;  // [rows], [B, 2]
  const float *boxes, *targets;    // [rows, 4]; boxes are box_stride apart
  const double* stds;              // host, four
  int64_t rows, slots, classes, box_stride, mode;
  bool class_agnostic;
  double eps, beta, weight;
};
FRCNN_WORKSPACE(box_head_loss, const FrcnnBoxSamples* samples);
FRCNN_KERNEL(box_head_loss, int64_t type, const FrcnnBoxSamples* samples, void* workspace, void* of_class,
             void* of_box, void* accuracy);
FRCNN_KERNEL(box_head_loss_backward, int64_t type, const FrcnnBoxSamples* samples, const void* by_class,
             const void* by_box, void* grad);

// x [B, H, W, C], weight [K / panel, points, C, panel] as frcnn_ops/winograd_conv.py makes it, bias [K] and
// add [B, H, W, K] or null -> out [B, H, W, K]; float32, C a multiple of channels and K of filters. lanes:
// what frcnn_cpu_winograd_lanes says, the floats in this CPU's widest vectors of at most `most`; 0 if it has
// none.
enum {
  kFrcnnWinogradPoints = 36,
  kFrcnnWinogradPanel = 16,
  kFrcnnWinogradChannels = 16,
  kFrcnnWinogradFilters = 32
};
int64_t frcnn_cpu_winograd_lanes(int64_t most);
void frcnn_cpu_winograd_conv(int64_t lanes, const float* x, const float* weight, const float* bias,
                             const float* add, bool relu, int64_t batch, int64_t height, int64_t width,
                             int64_t channels, int64_t filters, float* out);
// x [B, H, W, C], grad [B, H, W, K] -> out [3, 3, C, K], the gradient of the convolution's weight
void frcnn_cpu_winograd_weight_gradient(int64_t lanes, const float* x, const float* grad, int64_t batch,
                                        int64_t height, int64_t width, int64_t channels, int64_t filters,
                                        float* out);
}
