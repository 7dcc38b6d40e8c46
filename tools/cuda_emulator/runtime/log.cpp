#include "log.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "queue.h"

namespace gpu {
namespace {

struct Row {
  std::string kind, name, op;
  size_t bytes, blocks, threads;
  int device;
  bool captured;
  const void* stream;
};

std::vector<Row>
    rows;  // under the runtime's lock: with one of their own, two threads could wait for each other
std::atomic<bool> recording{false}, recording_calls{false};
std::atomic<long> faults{0};
thread_local std::string current_op;
thread_local int calls = 0;  // that this thread is in

}  // namespace

void log(const char* kind, const std::string& name, size_t bytes, size_t blocks, size_t threads,
         const void* stream) {
  if (!recording) return;
  const Guard guard(lock());
  rows.push_back(
      {kind, name, current_op, bytes, blocks, threads, current_device(), thread_is_capturing(), stream});
}

Call::Call(const char* name) {
  if (calls++ == 0 && recording_calls) log("call", name);
}
Call::~Call() { --calls; }

void fault(const std::string& what) {
  ++faults;
  std::fprintf(stderr, "emulated GPU: %s%s%s\n", what.c_str(), current_op.empty() ? "" : ", in ",
               current_op.c_str());
  log("fault", what);
}

bool in_operator() { return !current_op.empty(); }

}  // namespace gpu

// ---- called by emulated_gpu.py and aten.cpp --------------------------------------------------------------

extern "C" {

void gpu_log_start(bool every_call) {
  const gpu::Guard guard(gpu::lock());
  gpu::rows.clear();
  gpu::recording = true;
  gpu::recording_calls = every_call;
}
void gpu_log_stop() { gpu::recording = gpu::recording_calls = false; }
void gpu_log_add(const char* kind, const char* name, size_t bytes) { gpu::log(kind, name, bytes); }
// The operator that this thread runs, for the rows to come; returns to "" when it is done.
void gpu_log_op(const char* name) { gpu::current_op = name; }
long gpu_faults() { return gpu::faults; }

// Rows as lines of: operator, kind, device, stream, captured, bytes, blocks, threads, name; separated by
// tabs.
bool gpu_log_write(const char* path) {
  const gpu::Guard guard(gpu::lock());
  FILE* file = std::fopen(path, "w");
  if (file == nullptr) return false;
  for (const gpu::Row& row : gpu::rows) {
    int status = 0;
    char* readable = abi::__cxa_demangle(row.name.c_str(), nullptr, nullptr, &status);
    std::string name = readable != nullptr ? readable : row.name;
    std::free(readable);
    for (char& c : name)
      if (c == '\t' || c == '\n') c = ' ';
    std::fprintf(file, "%s\t%s\t%d\t%zu\t%d\t%zu\t%zu\t%zu\t%s\n", row.op.c_str(), row.kind.c_str(),
                 row.device, reinterpret_cast<size_t>(row.stream), row.captured, row.bytes, row.blocks,
                 row.threads, name.c_str());
  }
  return std::fclose(file) == 0;
}
}
