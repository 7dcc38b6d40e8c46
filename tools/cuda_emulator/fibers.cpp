#include "fibers.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator::fibers {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;  // the address sanitizer clears all of it at every switch

struct Context {
  ucontext_t registers{};  // where it starts; with the address sanitizer also where it goes on
  jmp_buf place;           // where it goes on
  bool started = true;
  bool done = false;           // at the end of its body
  void* fake_stack = nullptr;  // the address sanitizer's
};

unsigned char* stacks = nullptr;
std::vector<std::unique_ptr<Context>> contexts;
Context scheduler;

Context& context(int fiber) {
  return fiber == kScheduler ? scheduler : *contexts[static_cast<size_t>(fiber)];
}
unsigned char* stack_of(int fiber) { return stacks + static_cast<size_t>(fiber) * kStackBytes; }

#if defined(__SANITIZE_ADDRESS__)
struct Stack {
  void* bottom;
  size_t bytes;
};
const Stack host_stack = [] {
  Stack found{};
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &found.bottom, &found.bytes);
  pthread_attr_destroy(&attributes);
  return found;
}();
#endif

}  // namespace

void prepare(int count) {
  if (stacks != nullptr) return;
  void* mapped = mmap(nullptr, static_cast<size_t>(count) * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  stacks = static_cast<unsigned char*>(mapped);
  for (int i = 0; i < count; ++i) contexts.push_back(std::make_unique<Context>());
}

void start(int fiber, void (*body)()) {
#if !defined(__SANITIZE_ADDRESS__)
  if (std::exchange(context(fiber).done, false)) return;  // a new context costs system calls
#endif
  ucontext_t& registers = context(fiber).registers;
  context(fiber).started = false;
  if (registers.uc_stack.ss_sp == nullptr) getcontext(&registers);
  registers.uc_stack.ss_sp = stack_of(fiber);
  registers.uc_stack.ss_size = kStackBytes;
  registers.uc_link = nullptr;
  makecontext(&registers, body, 0);
}

void switch_to(int from, int to, [[maybe_unused]] bool done) {
#if defined(__SANITIZE_ADDRESS__)
  void** save = &context(from).fake_stack;
  const Stack stack = to == kScheduler ? host_stack : Stack{stack_of(to), kStackBytes};
  __sanitizer_start_switch_fiber(done ? nullptr : save, stack.bottom, stack.bytes);
  swapcontext(&context(from).registers, &context(to).registers);
  __sanitizer_finish_switch_fiber(*save, nullptr, nullptr);
#else
  context(from).done = done;
  // swapcontext would also save and restore the signal mask: two system calls.
  if (_setjmp(context(from).place) != 0) return;
  if (context(to).started) _longjmp(context(to).place, 1);
  context(to).started = true;
  setcontext(&context(to).registers);
#endif
}

void arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace emulator::fibers
