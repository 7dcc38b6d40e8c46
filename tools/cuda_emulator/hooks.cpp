// The functions that code compiled with -fsanitize=thread calls, in place of that sanitizer's library.
#if !defined(EMULATOR_UNCHECKED)
#include "hooks.h"

#include <cstdint>

using emulator::on_read;
using emulator::on_write;

extern "C" {

#define FRCNN_ACCESS(n)                                                                    \
  void __tsan_read##n(void* p) { on_read(p, n, __builtin_return_address(0)); }             \
  void __tsan_write##n(void* p) { on_write(p, n, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##n(void* p) { on_read(p, n, __builtin_return_address(0)); }   \
  void __tsan_unaligned_write##n(void* p) { on_write(p, n, __builtin_return_address(0)); } \
  void __tsan_volatile_read##n(void* p) { on_read(p, n, __builtin_return_address(0)); }    \
  void __tsan_volatile_write##n(void* p) { on_write(p, n, __builtin_return_address(0)); }
FRCNN_ACCESS(1)
FRCNN_ACCESS(2)
FRCNN_ACCESS(4)
FRCNN_ACCESS(8)
FRCNN_ACCESS(16)
#undef FRCNN_ACCESS
void __tsan_read_range(void* p, size_t n) { on_read(p, n, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { on_write(p, n, __builtin_return_address(0)); }

// The kernels' atomics report themselves (emulator::atomic_access); here they only have to be done.
#define FRCNN_ATOMIC(bits, type)                                              \
  type __tsan_atomic##bits##_load(const volatile type* p, int) { return *p; } \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) { *p = v; } \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {       \
    const type old = *p;                                                      \
    *p = static_cast<type>(old + v);                                          \
    return old;                                                               \
  }                                                                           \
  type __tsan_atomic##bits##_fetch_or(volatile type* p, type v, int) {        \
    const type old = *p;                                                      \
    *p = static_cast<type>(old | v);                                          \
    return old;                                                               \
  }
FRCNN_ATOMIC(32, uint32_t)
FRCNN_ATOMIC(64, uint64_t)
#undef FRCNN_ATOMIC

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
#endif
