// Device memory, which is host memory here, and what kind of memory an address lies in.
#pragma once

#include <cstddef>

namespace gpu {

enum class Place { kPageable, kPinned, kDevice };

struct Found {
  Place place = Place::kPageable;
  int device = -1;
  size_t left = 0;  // bytes from the address to the end of its allocation
};
Found find(const void* address);

}  // namespace gpu
