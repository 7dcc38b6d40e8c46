// What tests/cpp/emulated.py calls, besides the launchers of csrc/cuda.
#include <string>

#include "memory.h"
#include "reports.h"

extern "C" {

// Everything that happens by chance from here on follows from the seed.
void emulator_seed(uint64_t seed) { emulator::seed(seed); }

// Device memory: exactly `bytes`, holding nothing that may be read.
void* emulator_allocate(size_t bytes) { return emulator::memory::allocate(bytes, 256); }
void emulator_free(void* address, size_t bytes) { emulator::memory::release(address, bytes); }
void emulator_upload(void* device, const void* host, size_t bytes) {
  emulator::memory::copy_in(device, host, bytes);
}
// False if part of the range was never written.
bool emulator_download(void* host, const void* device, size_t bytes) {
  return emulator::memory::copy_out(host, device, bytes);
}

// The reports since the last call, one a line; empty if there are none.
const char* emulator_errors() {
  static std::string text;
  text = emulator::reports::take();
  return text.c_str();
}
}
