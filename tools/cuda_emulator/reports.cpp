#include "reports.h"

#include <vector>

namespace emulator::reports {
namespace {

constexpr size_t kMost = 50;
std::vector<std::string> all;

}  // namespace

void add(const std::string& message) {
  if (all.size() < kMost) all.push_back(message);
}
size_t count() { return all.size(); }
std::string take() {
  std::string text;
  for (const std::string& r : all) text += r + "\n";
  all.clear();
  return text;
}

}  // namespace emulator::reports
