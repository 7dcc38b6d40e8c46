// box.h and threshold.h without torch, meant to run under the sanitizers: gradients against finite
// differences, hostile coordinates through every function, and thresholds where a quotient ties with them.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <random>

#include "threshold.h"

using namespace frcnn;

namespace {

int failures = 0;

void expect(bool condition, const char* what, int detail = 0) {
  if (condition) return;
  std::printf("failed: %s (%d)\n", what, detail);
  ++failures;
}

bool close(double a, double b, double tolerance) {
  return std::abs(a - b) <= tolerance * (1 + std::max(std::abs(a), std::abs(b)));
}

constexpr IouLoss kModes[] = {IouLoss::kLog, IouLoss::kLinear, IouLoss::kSquare, IouLoss::kGiou,
                              IouLoss::kDiou};

Box<double> random_box(std::mt19937& random) {
  std::uniform_real_distribution<double> corner(0, 50), size(5, 60);
  const double x = corner(random), y = corner(random);
  return {x, y, x + size(random), y + size(random)};
}

Box<double> moved(Box<double> box, int coordinate, double by) {
  (coordinate == 0 ? box.x1 : coordinate == 1 ? box.y1 : coordinate == 2 ? box.x2 : box.y2) += by;
  return box;
}

double at(const Box<double>& box, int i) {
  return i == 0 ? box.x1 : i == 1 ? box.y1 : i == 2 ? box.x2 : box.y2;
}

void gradients_match_finite_differences() {
  std::mt19937 random(1);
  constexpr double step = 1e-6;
  for (int trial = 0; trial < 200; ++trial) {
    const Box<double> pred = random_box(random), target = random_box(random);
    for (const IouLoss mode : kModes) {
      const auto grad = iou_loss(mode, pred, target, 1e-6).grad;
      for (int i = 0; i < 4; ++i) {
        const double up = iou_loss(mode, moved(pred, i, step), target, 1e-6).value;
        const double down = iou_loss(mode, moved(pred, i, -step), target, 1e-6).value;
        expect(close(at(grad, i), (up - down) / (2 * step), 1e-5), "loss gradient", static_cast<int>(mode));
      }
    }
    const Delta<double> factors{1, 2, 3, 4};
    const auto total = [&](const Box<double>& box) {
      const auto loss = bounded_iou_loss(box, target, 0.2, 1e-3);
      return loss.dx * factors.dx + loss.dy * factors.dy + loss.dw * factors.dw + loss.dh * factors.dh;
    };
    const auto grad = bounded_iou_loss_grad(pred, target, 0.2, 1e-3, factors);
    for (int i = 0; i < 4; ++i) {
      const double slope = (total(moved(pred, i, step)) - total(moved(pred, i, -step))) / (2 * step);
      expect(close(at(grad, i), slope, 1e-5), "bounded gradient", i);
    }
  }
}

template <typename T>
void hostile_coordinates_are_safe() {
  constexpr T infinity = std::numeric_limits<T>::infinity(), huge = std::numeric_limits<T>::max();
  constexpr T values[] = {0,    1,     -1,       T(1e-20),  T(1e20),
                          huge, -huge, infinity, -infinity, std::numeric_limits<T>::quiet_NaN()};
  constexpr int count = sizeof(values) / sizeof(values[0]);
  std::mt19937 random(2);
  const auto pick = [&] { return values[random() % count]; };
  const auto is_finite = [](const Box<T>& b) {
    return std::isfinite(b.x1) && std::isfinite(b.y1) && std::isfinite(b.x2) && std::isfinite(b.y2);
  };
  for (int trial = 0; trial < 200000; ++trial) {
    const Box<T> a{pick(), pick(), pick(), pick()}, b{pick(), pick(), pick(), pick()};
    const T overlap = iou(a, b), part = iof(a, a.area(), b);
    expect(overlap >= 0 && overlap <= 1 && overlap == iou(b, a), "IoU in [0, 1] and symmetric");
    expect(part >= 0 && part <= 1, "IoF in [0, 1]");
    const Delta<T> delta{pick(), pick(), pick(), pick()}, stds{1, 1, 1, 1};
    const Box<T> inside = clip(decode(a, delta, stds), T(30), T(40));
    for (const T x : {inside.x1, inside.x2}) expect(!(x < 0 || x > 40), "clipped x");
    for (const T y : {inside.y1, inside.y2}) expect(!(y < 0 || y > 30), "clipped y");

    const bool finite = is_finite(a) && is_finite(b);
    for (const IouLoss mode : {IouLoss::kLog, IouLoss::kLinear, IouLoss::kSquare, IouLoss::kGiou,
                               IouLoss::kDiou, IouLoss::kCiou}) {
      const auto loss = iou_loss(mode, a, b, T(1e-6));
      expect(std::isfinite(loss.value) == finite, "finite loss", static_cast<int>(mode));
      expect(is_finite(loss.grad) == finite, "finite gradient", static_cast<int>(mode));
    }
    const auto bounded = bounded_iou_loss(a, b, T(0.2), T(1e-3));
    const auto grad = bounded_iou_loss_grad(a, b, T(0.2), T(1e-3), {1, 1, 1, 1});
    expect(std::isfinite(bounded.dx + bounded.dy + bounded.dw + bounded.dh) == finite, "finite bounded loss");
    expect(is_finite(grad) == finite, "finite bounded gradient");
  }
}

// Quotients within a few units of the last place of the threshold, on both sides, at every size of number.
template <typename T>
void thresholds_decide_as_the_quotient() {
  constexpr T smallest = std::numeric_limits<T>::denorm_min(), infinity = std::numeric_limits<T>::infinity();
  constexpr T special[] = {0,
                           smallest,
                           2 * smallest,
                           std::numeric_limits<T>::min(),
                           1,
                           infinity,
                           std::numeric_limits<T>::max(),
                           std::numeric_limits<T>::quiet_NaN(),
                           -1};
  constexpr int count = sizeof(special) / sizeof(special[0]);
  std::mt19937 random(3);
  std::uniform_real_distribution<T> mantissa(1, 2);
  for (const T value : {T(0), T(-0.0), smallest, T(0.3), T(0.5), T(0.7), T(1) - T(1e-7), T(1)}) {
    const Threshold<T> threshold(value);
    const auto agrees = [&](T inter, T joint) {
      const bool more = joint > T(0) && inter / joint > value;
      expect(threshold.exceeded(inter, joint) == more, "threshold");
      expect(!more || threshold.may_exceed(inter, joint), "may exceed");
    };
    for (int trial = 0; trial < 200000; ++trial) {
      const T joint =
          std::ldexp(mantissa(random), std::numeric_limits<T>::min_exponent - 24 +
                                           static_cast<int>(random() % (sizeof(T) == 4 ? 274 : 2090)));
      T inter = value * joint;
      for (int i = static_cast<int>(random() % 5); i > 0; --i)
        inter = std::nextafter(inter, random() % 2 == 0 ? infinity : T(0));
      agrees(inter, joint);
      agrees(special[random() % count], joint);
      agrees(special[random() % (count - 1)], special[random() % count]);
    }
  }
}

}  // namespace

int main() {
  thresholds_decide_as_the_quotient<float>();
  thresholds_decide_as_the_quotient<double>();
  gradients_match_finite_differences();
  hostile_coordinates_are_safe<float>();
  hostile_coordinates_are_safe<double>();
  if (failures == 0) std::printf("passed\n");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
