#include "stores.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "memory.h"
#include "order.h"

namespace emulator::stores {
namespace {

constexpr size_t kMostBytes = 16;  // of a store; larger copies are seen at once
constexpr size_t kMostStores = 32, kMostLate = 256;

struct Store {
  unsigned char* address;
  size_t bytes;
  uint32_t segment;
  // While the block is shown, what others see; else what the block sees.
  std::array<unsigned char, kMostBytes> other;

  void exchange() { std::swap_ranges(address, address + bytes, other.begin()); }
  bool overlaps(const unsigned char* from, size_t size) const {
    return address < from + size && from < address + bytes;
  }
};

std::array<std::vector<Store>, memory::kSlots> buffers;  // no two stores of a block overlap
std::vector<Store> late;                                 // of blocks that have ended
int shown = -1;

}  // namespace

void show(int slot) {
  if (slot == shown) return;
  if (shown >= 0) {
    auto& buffer = buffers[static_cast<size_t>(shown)];
    std::erase_if(buffer, [](const Store&) { return draw(16) == 0; });
    for (Store& s : buffer) s.exchange();
  }
  std::erase_if(late, [](Store& s) {
    if (draw(64) != 0) return false;
    s.exchange();
    return true;
  });
  shown = slot;
  if (shown >= 0)
    for (Store& s : buffers[static_cast<size_t>(shown)]) s.exchange();
}

void add(void* address, size_t bytes, uint32_t segment) {
  settle(address, bytes);
  if (bytes > kMostBytes) return;
  auto& buffer = buffers[static_cast<size_t>(shown)];
  if (buffer.size() == kMostStores) {
    std::swap(buffer[draw(kMostStores)], buffer.back());
    buffer.pop_back();
  }
  Store& s = buffer.emplace_back(Store{static_cast<unsigned char*>(address), bytes, segment, {}});
  std::copy_n(s.address, bytes, s.other.begin());
}

void settle(const void* address, size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(address);
  std::erase_if(buffers[static_cast<size_t>(shown)], [=](const Store& s) { return s.overlaps(from, bytes); });
}

void fence(uint32_t segment) {
  std::erase_if(buffers[static_cast<size_t>(shown)],
                [=](const Store& s) { return order::before(s.segment, order::kThread, segment); });
}

void end_block(int slot) {
  if (shown == slot) show(-1);
  auto& buffer = buffers[static_cast<size_t>(slot)];
  late.insert(late.end(), buffer.begin(), buffer.end());
  buffer.clear();
  if (late.size() > kMostLate) {
    // the oldest are seen first
    const auto end = late.begin() + static_cast<std::ptrdiff_t>(late.size() - kMostLate);
    for (auto s = late.begin(); s != end; ++s) s->exchange();
    late.erase(late.begin(), end);
  }
}

void end_launch() {
  show(-1);
  for (Store& s : late) s.exchange();
  late.clear();
}

}  // namespace emulator::stores
