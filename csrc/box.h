// Box arithmetic shared by the CPU and the CUDA kernels: torch-free, one box or one pair at a time.
//
// Boxes are (x1, y1, x2, y2) in pixels, width x2 - x1 (no +1). Every function is a template over float and
// double. Both compilers are told not to contract a*b+c, so one expression rounds alike on every device, and
// IoUs that tie on the CPU tie on the GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FRCNN_HD __host__ __device__ __forceinline__
#else
#define FRCNN_HD inline
#endif

namespace frcnn {

// |log(16 / 1000)|: the largest change of log size that a delta may ask for.
constexpr double kMaxLogRatio = 4.135166556742356;

// Not std::min and std::max: those are not device functions. With a NaN the second operand is returned.
template <typename T>
FRCNN_HD T min_of(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
FRCNN_HD T max_of(T a, T b) {
  return a > b ? a : b;
}
// A NaN stays a NaN.
template <typename T>
FRCNN_HD T clamp(T v, T low, T high) {
  return v < low ? low : (v > high ? high : v);
}

template <typename T>
struct Box {
  T x1, y1, x2, y2;

  FRCNN_HD T width() const { return x2 - x1; }
  FRCNN_HD T height() const { return y2 - y1; }
  FRCNN_HD T area() const { return (x2 - x1) * (y2 - y1); }
};

template <typename T>
FRCNN_HD Box<T> load_box(const T* p) {
#if defined(__CUDA_ARCH__) || defined(FRCNN_EMULATED)
  // One load of 16 bytes for float, unless a view of a tensor begins in between.
  if constexpr (sizeof(T) == 4) {
    if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
      const float4 whole = *reinterpret_cast<const float4*>(p);
      Box<T> box;
      memcpy(&box, &whole, sizeof(box));
      return box;
    }
  }
#endif
  return {p[0], p[1], p[2], p[3]};
}
template <typename T>
FRCNN_HD void store_box(T* p, const Box<T>& b) {
  p[0] = b.x1;
  p[1] = b.y1;
  p[2] = b.x2;
  p[3] = b.y2;
}

template <typename T>
FRCNN_HD bool has_nan(const Box<T>& b) {
  return b.x1 != b.x1 || b.y1 != b.y1 || b.x2 != b.x2 || b.y2 != b.y2;
}

// ---- overlap ----------------------------------------------------------------------------------------------

template <typename T>
FRCNN_HD T intersection(const Box<T>& a, const Box<T>& b) {
  const T w = min_of(a.x2, b.x2) - max_of(a.x1, b.x1);
  const T h = min_of(a.y2, b.y2) - max_of(a.y1, b.y1);
  return max_of(w, T(0)) * max_of(h, T(0));
}

// Never NaN: pairs without area, or with NaN or overflowing coordinates, have IoU 0.
template <typename T>
FRCNN_HD T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T inter = intersection(a, b);
  const T joint = area_a + area_b - inter;
  return joint > T(0) ? inter / joint : T(0);
}
template <typename T>
FRCNN_HD T iou(const Box<T>& a, const Box<T>& b) {
  return iou(a, a.area(), b, b.area());
}

// Intersection over foreground: the part of `a` that lies in `b`. Never NaN.
template <typename T>
FRCNN_HD T iof(const Box<T>& a, T area_a, const Box<T>& b) {
  const T part = intersection(a, b) / area_a;
  return area_a > T(0) && part <= T(1) ? part : T(0);
}

// ---- anchors ----------------------------------------------------------------------------------------------

// The anchor of one (ratio, scale) at position (0, 0); ratio = height / width, base size = stride.
// Inside a position anchors are ordered ratio-major: index = ratio_index * num_scales + scale_index.
template <typename T>
FRCNN_HD Box<T> base_anchor(T stride, T scale, T ratio, T center_offset) {
  const T h_ratio = std::sqrt(ratio);
  const T w_ratio = T(1) / h_ratio;
  const T half_w = T(0.5) * (stride * w_ratio * scale);
  const T half_h = T(0.5) * (stride * h_ratio * scale);
  const T center = center_offset * stride;
  return {center - half_w, center - half_h, center + half_w, center + half_h};
}

template <typename T>
FRCNN_HD Box<T> shift(const Box<T>& b, T dx, T dy) {
  return {b.x1 + dx, b.y1 + dy, b.x2 + dx, b.y2 + dy};
}

// ---- box coding: deltas (dx, dy, dw, dh) in units of `stds` -------------------------------------------

template <typename T>
struct Delta {
  T dx, dy, dw, dh;
};
// Of four numbers on the host.
template <typename T>
Delta<T> stds_of(const double* stds) {
  return {static_cast<T>(stds[0]), static_cast<T>(stds[1]), static_cast<T>(stds[2]), static_cast<T>(stds[3])};
}

template <typename T>
FRCNN_HD Delta<T> encode(const Box<T>& box, const Box<T>& target, const Delta<T>& stds) {
  const T w = box.width(), h = box.height();
  const T dx = ((target.x1 + target.x2) * T(0.5) - (box.x1 + box.x2) * T(0.5)) / w;
  const T dy = ((target.y1 + target.y2) * T(0.5) - (box.y1 + box.y2) * T(0.5)) / h;
  const T dw = std::log(target.width() / w);
  const T dh = std::log(target.height() / h);
  return {dx / stds.dx, dy / stds.dy, dw / stds.dw, dh / stds.dh};
}

template <typename T>
FRCNN_HD Box<T> decode(const Box<T>& box, const Delta<T>& delta, const Delta<T>& stds) {
  const T limit = T(kMaxLogRatio);
  const T w = box.width(), h = box.height();
  const T cx = (box.x1 + box.x2) * T(0.5) + w * (delta.dx * stds.dx);
  const T cy = (box.y1 + box.y2) * T(0.5) + h * (delta.dy * stds.dy);
  const T half_w = w * std::exp(clamp(delta.dw * stds.dw, -limit, limit)) * T(0.5);
  const T half_h = h * std::exp(clamp(delta.dh * stds.dh, -limit, limit)) * T(0.5);
  return {cx - half_w, cy - half_h, cx + half_w, cy + half_h};
}

template <typename T>
FRCNN_HD Box<T> clip(const Box<T>& b, T height, T width) {
  return {clamp(b.x1, T(0), width), clamp(b.y1, T(0), height), clamp(b.x2, T(0), width),
          clamp(b.y2, T(0), height)};
}

// In the pixels of the image that was resized by these factors (x, y).
template <typename T>
FRCNN_HD Box<T> unscale(const Box<T>& b, const T* scale) {
  return {b.x1 / scale[0], b.y1 / scale[1], b.x2 / scale[0], b.y2 / scale[1]};
}

// Gradient of clip() with respect to the box; a coordinate on the border still gets its gradient.
template <typename T>
FRCNN_HD Box<T> clip_grad(const Box<T>& b, T height, T width, const Box<T>& grad) {
  return {b.x1 >= T(0) && b.x1 <= width ? grad.x1 : T(0), b.y1 >= T(0) && b.y1 <= height ? grad.y1 : T(0),
          b.x2 >= T(0) && b.x2 <= width ? grad.x2 : T(0), b.y2 >= T(0) && b.y2 <= height ? grad.y2 : T(0)};
}

// Gradient of decode() with respect to the delta.
template <typename T>
FRCNN_HD Delta<T> decode_grad(const Box<T>& box, const Delta<T>& delta, const Delta<T>& stds,
                              const Box<T>& grad) {
  const T limit = T(kMaxLogRatio);
  const T w = box.width(), h = box.height();
  const T log_w = delta.dw * stds.dw, log_h = delta.dh * stds.dh;
  const T grad_w = (grad.x2 - grad.x1) * T(0.5) * w * std::exp(clamp(log_w, -limit, limit)) * stds.dw;
  const T grad_h = (grad.y2 - grad.y1) * T(0.5) * h * std::exp(clamp(log_h, -limit, limit)) * stds.dh;
  return {(grad.x1 + grad.x2) * w * stds.dx, (grad.y1 + grad.y2) * h * stds.dy,
          log_w >= -limit && log_w <= limit ? grad_w : T(0),
          log_h >= -limit && log_h <= limit ? grad_h : T(0)};
}

// ---- IoU losses of one pair
// ---------------------------------------------------------------------------------
//
// Finite boxes, however degenerate, inverted or large, give a finite loss and a finite gradient; a NaN or
// infinite coordinate gives NaN, so that a diverged model is not mistaken for a converged one. Where
// coordinates tie, min and max share their gradient evenly, as torch's do.

enum class IouLoss { kLog, kLinear, kSquare, kGiou, kDiou, kCiou, kBounded };

// One loss value with its gradient with respect to the predicted box.
template <typename T>
struct LossAndGrad {
  T value;
  Box<T> grad;
};

namespace detail {

// x * 0 is NaN exactly for NaN and infinities.
template <typename T>
FRCNN_HD T nan_unless_finite(const Box<T>& b) {
  return b.x1 * T(0) + b.y1 * T(0) + b.x2 * T(0) + b.y2 * T(0);
}
template <typename T>
FRCNN_HD T divide_or_zero(T n, T d) {
  return d > T(0) ? n / d : T(0);
}
// Zero for the NaN and the infinities that overflow leaves.
template <typename T>
FRCNN_HD T finite_or(T v, T otherwise) {
  return v - v == T(0) ? v : otherwise;
}
// d max(a, b) / d a
template <typename T>
FRCNN_HD T max_share(T a, T b) {
  return a > b ? T(1) : (a == b ? T(0.5) : T(0));
}

// The extent along one axis of a pair's intersection or enclosure, and its derivatives by the prediction.
template <typename T>
struct Extent {
  T size, d_low, d_high;
};
template <typename T>
FRCNN_HD Extent<T> shared_extent(T p1, T p2, T t1, T t2) {
  const T size = min_of(p2, t2) - max_of(p1, t1);
  if (!(size >= T(0))) return {T(0), T(0), T(0)};
  return {size, -max_share(p1, t1), max_share(t2, p2)};
}
template <typename T>
FRCNN_HD Extent<T> enclosing_extent(T p1, T p2, T t1, T t2) {
  const T size = max_of(p2, t2) - min_of(p1, t1);
  if (!(size >= T(0))) return {T(0), T(0), T(0)};
  return {size, -max_share(t1, p1), max_share(p2, t2)};
}

// a + s * b
template <typename T>
FRCNN_HD Box<T> add(const Box<T>& a, T s, const Box<T>& b) {
  return {a.x1 + s * b.x1, a.y1 + s * b.y1, a.x2 + s * b.x2, a.y2 + s * b.y2};
}
template <typename T>
FRCNN_HD Box<T> scale(T s, const Box<T>& b) {
  return {s * b.x1, s * b.y1, s * b.x2, s * b.y2};
}

}  // namespace detail

// Every mode but kBounded. Rezatofighi et al. 2019 (GIoU), Zheng et al. 2020 (DIoU, CIoU), Yu et al. 2016
// (log).
template <typename T>
FRCNN_HD LossAndGrad<T> iou_loss(IouLoss mode, const Box<T>& p, const Box<T>& t, T eps) {
  using namespace detail;
  const Extent<T> w = shared_extent(p.x1, p.x2, t.x1, t.x2);
  const Extent<T> h = shared_extent(p.y1, p.y2, t.y1, t.y2);
  const T inter = w.size * h.size;
  const Box<T> d_inter{w.d_low * h.size, h.d_low * w.size, w.d_high * h.size, h.d_high * w.size};
  const Box<T> d_area{-p.height(), -p.width(), p.height(), p.width()};
  const T joint = p.area() + t.area() - inter;
  const Box<T> d_joint = add(d_area, T(-1), d_inter);

  // GIoU and the plain modes floor the union, DIoU and CIoU add eps to it.
  const bool adds_eps = mode == IouLoss::kDiou || mode == IouLoss::kCiou;
  const T floor = mode == IouLoss::kGiou ? eps : T(1e-6);
  const T u = adds_eps ? joint + eps : max_of(joint, floor);
  const Box<T> d_u = adds_eps || joint > floor ? d_joint : Box<T>{T(0), T(0), T(0), T(0)};
  const T inverse_u = divide_or_zero(T(1), u);
  const T iou = divide_or_zero(inter, u);
  const Box<T> d_iou = scale(inverse_u, add(d_inter, -iou, d_u));

  T value = T(0);
  Box<T> grad{T(0), T(0), T(0), T(0)};
  if (mode == IouLoss::kLog || mode == IouLoss::kLinear || mode == IouLoss::kSquare) {
    const T clamped = max_of(iou, eps);
    const T slope =
        mode == IouLoss::kLog ? T(-1) / clamped : (mode == IouLoss::kLinear ? T(-1) : T(-2) * clamped);
    value = mode == IouLoss::kLog ? -std::log(clamped)
                                  : (mode == IouLoss::kLinear ? T(1) - clamped : T(1) - clamped * clamped);
    if (iou >= eps) grad = scale(slope, d_iou);
  } else {
    const Extent<T> cw = enclosing_extent(p.x1, p.x2, t.x1, t.x2);
    const Extent<T> ch = enclosing_extent(p.y1, p.y2, t.y1, t.y2);
    if (mode == IouLoss::kGiou) {
      const T enclosed = cw.size * ch.size;
      const T e = max_of(enclosed, eps);
      const T gap = (e - u) / e;
      Box<T> d_gap = scale(T(-1) / e, d_u);
      if (enclosed > eps) {
        const Box<T> d_e{cw.d_low * ch.size, ch.d_low * cw.size, cw.d_high * ch.size, ch.d_high * cw.size};
        d_gap = add(d_gap, u / e / e, d_e);
      }
      value = T(1) - (iou - gap);
      grad = add(d_gap, T(-1), d_iou);
    } else {
      const T c2 = cw.size * cw.size + ch.size * ch.size + eps;
      const T sx = (t.x1 + t.x2) - (p.x1 + p.x2), sy = (t.y1 + t.y2) - (p.y1 + p.y2);
      const T distance = (sx * sx / T(4) + sy * sy / T(4)) / c2;
      const T kx = distance * T(2) * cw.size, ky = distance * T(2) * ch.size;
      const Box<T> d_distance =
          scale(T(1) / c2, Box<T>{-sx / T(2) - kx * cw.d_low, -sy / T(2) - ky * ch.d_low,
                                  -sx / T(2) - kx * cw.d_high, -sy / T(2) - ky * ch.d_high});
      T similarity = iou - distance;
      grad = add(d_distance, T(-1), d_iou);
      if (mode == IouLoss::kCiou) {
        const T pw = p.width(), ph = p.height() + eps, tw = t.width(), th = t.height() + eps;
        const T factor = T(0.4052847345693511);  // 4 / pi^2
        const T pa = pw == T(0) && ph == T(0) ? T(0) : std::atan(pw / ph);
        const T ta = tw == T(0) && th == T(0) ? T(0) : std::atan(tw / th);
        const T v = factor * (ta - pa) * (ta - pa);
        // The weight of v is a constant for the gradient, and counts only once the boxes overlap well.
        const T alpha = iou > T(0.5) ? divide_or_zero(v, T(1) - iou + v) : T(0);
        const T slope = alpha * T(-2) * factor * (ta - pa);
        const T norm = pw * pw + ph * ph;
        const T gw = slope * divide_or_zero(ph, norm), gh = -slope * divide_or_zero(pw, norm);
        similarity = similarity - alpha * v;
        grad = add(grad, T(1), Box<T>{-gw, -gh, gw, gh});
        if (!(similarity >= T(-1) && similarity <= T(1))) grad = {T(0), T(0), T(0), T(0)};
        similarity = clamp(similarity, T(-1), T(1));
      }
      value = T(1) - similarity;
    }
  }
  const T nan = nan_unless_finite(p) + nan_unless_finite(t);
  // What overflows counts as disjoint, with nothing to learn from.
  return {finite_or(value, T(1)) + nan,
          {finite_or(grad.x1, T(0)) + nan, finite_or(grad.y1, T(0)) + nan, finite_or(grad.x2, T(0)) + nan,
           finite_or(grad.y2, T(0)) + nan}};
}

namespace detail {

template <typename T>
FRCNN_HD T smooth_l1(T v, T beta) {
  return v < beta ? T(0.5) * v * v / beta : v - T(0.5) * beta;
}
template <typename T>
FRCNN_HD T smooth_l1_grad(T v, T beta) {
  return v < beta ? v / beta : T(1);
}

// One axis of the bounded IoU loss: the two values with their derivatives by the center and by the size.
template <typename T>
struct BoundedAxis {
  T center, d_center, size, d_size;
};
template <typename T>
FRCNN_HD BoundedAxis<T> bounded_axis(T p1, T p2, T t1, T t2, T beta, T eps) {
  // Inverted boxes count as empty: 1 / (size + eps) has a pole at -eps.
  const T target = max_of(t2 - t1, T(0));
  const T size = max_of(p2 - p1, T(0));
  const T offset = (t1 + t2) * T(0.5) - (p1 + p2) * T(0.5);
  const T distance = T(2) * (offset < T(0) ? -offset : offset);

  const T reach = target + distance + eps;
  const T closeness = divide_or_zero(target - distance, reach);
  const T center = T(1) - max_of(closeness, T(0));
  // d closeness / d distance = -(2 target + eps) / reach^2; d distance / d center of p = -2 sign(offset)
  const T toward = offset > T(0) ? T(-2) : (offset < T(0) ? T(2) : T(0));
  const T d_center = closeness > T(0) ? divide_or_zero((T(2) * target + eps) / reach, reach) * toward : T(0);

  const T grown = target / (size + eps), shrunk = divide_or_zero(size, target + eps);
  const T scale = T(1) - min_of(grown, shrunk);
  const T d_grown = -grown / (size + eps), d_shrunk = divide_or_zero(T(1), target + eps);
  const T d_size = -(grown < shrunk ? d_grown : (grown > shrunk ? d_shrunk : T(0.5) * (d_grown + d_shrunk)));
  const T live = p2 - p1 >= T(0) ? T(1) : T(0);
  return {smooth_l1(center, beta), smooth_l1_grad(center, beta) * d_center, smooth_l1(scale, beta),
          smooth_l1_grad(scale, beta) * d_size * live};
}

}  // namespace detail

// Tychsen-Smith and Petersson 2018: four values (dx, dy, dw, dh) per pair, each through smooth L1.
template <typename T>
FRCNN_HD Delta<T> bounded_iou_loss(const Box<T>& p, const Box<T>& t, T beta, T eps) {
  const auto x = detail::bounded_axis(p.x1, p.x2, t.x1, t.x2, beta, eps);
  const auto y = detail::bounded_axis(p.y1, p.y2, t.y1, t.y2, beta, eps);
  const T nan = detail::nan_unless_finite(p) + detail::nan_unless_finite(t);
  return {detail::finite_or(x.center, T(1)) + nan, detail::finite_or(y.center, T(1)) + nan,
          detail::finite_or(x.size, T(1)) + nan, detail::finite_or(y.size, T(1)) + nan};
}
// Gradient with respect to the predicted box, given the gradient of the four values.
template <typename T>
FRCNN_HD Box<T> bounded_iou_loss_grad(const Box<T>& p, const Box<T>& t, T beta, T eps, const Delta<T>& grad) {
  using detail::finite_or;
  const auto x = detail::bounded_axis(p.x1, p.x2, t.x1, t.x2, beta, eps);
  const auto y = detail::bounded_axis(p.y1, p.y2, t.y1, t.y2, beta, eps);
  const T nan = detail::nan_unless_finite(p) + detail::nan_unless_finite(t);
  const T cx = grad.dx * finite_or(x.d_center, T(0)) * T(0.5), sx = grad.dw * finite_or(x.d_size, T(0));
  const T cy = grad.dy * finite_or(y.d_center, T(0)) * T(0.5), sy = grad.dh * finite_or(y.d_size, T(0));
  return {cx - sx + nan, cy - sy + nan, cx + sx + nan, cy + sy + nan};
}

}  // namespace frcnn
