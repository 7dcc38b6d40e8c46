// Whether the IoU of a pair exceeds a threshold, most often without a division. Torch-free, for CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "box.h"

namespace frcnn {

// Decides exactly as iou(a, b) > threshold does, for thresholds from 0 on. That quotient is rounded, and
// rounding keeps order: a quotient below the threshold does not become more than it, and one above the next
// number does not become less than that. A fused multiply-add has the sign of the exact difference, so only a
// pair between the two has to be divided; where a difference underflows to 0, too.
template <typename T>
class Threshold {
 public:
  FRCNN_HD explicit Threshold(T threshold) : threshold_(threshold + T(0)), next_(threshold_) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    Bits bits;
    memcpy(&bits, &next_, sizeof(bits));
    ++bits;
    memcpy(&next_, &bits, sizeof(bits));
  }

  // False only if inter / joint is not more; `inter` may be below 0 where boxes are disjoint.
  FRCNN_HD bool may_exceed(T inter, T joint) const { return !(std::fma(-threshold_, joint, inter) < T(0)); }

  // joint > 0 ? inter / joint > threshold : false, of areas that are not below 0
  FRCNN_HD bool exceeded(T inter, T joint) const {
    if (!(joint > T(0)) || !may_exceed(inter, joint)) return false;
    return std::fma(-next_, joint, inter) > T(0) || inter / joint > threshold_;
  }
  FRCNN_HD bool exceeded(const Box<T>& a, T area_a, const Box<T>& b, T area_b) const {
    const T inter = intersection(a, b);
    return exceeded(inter, area_a + area_b - inter);
  }

 private:
  T threshold_, next_;
};

}  // namespace frcnn
