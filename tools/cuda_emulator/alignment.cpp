// A GPU faults at an access whose address is no multiple of its size; a CPU does not mind. So the kernels are
// compiled with -fsanitize=alignment, whose library is replaced by what is here: an access of a type through
// an address that is not aligned for it is reported, with its place in the source.
#include <cstdint>
#include <string>

#include "reports.h"

namespace {

// What the compiler passes (GCC and Clang agree on it).
struct Mismatch {
  const char* file;
  uint32_t line, column;
  const struct Type {
    uint16_t kind, information;
    char name[1];  // in quotation marks, as long as it is
  }* type;
  unsigned char log_alignment, access;  // 0: a load, 1: a store
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(Mismatch* mismatch, uintptr_t address) {
  const std::string place = std::string(mismatch->file) + ":" + std::to_string(mismatch->line);
  emulator::reports::add("misaligned " + std::string(mismatch->access == 1 ? "write" : "read") + " of " +
                         mismatch->type->name + ": the address is no multiple of " +
                         std::to_string(1u << mismatch->log_alignment) + " but of " +
                         std::to_string(address & -address) + ", at " + place);
}
