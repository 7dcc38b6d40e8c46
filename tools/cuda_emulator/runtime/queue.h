// Streams as queues: work is put into a stream and done when somebody waits for it, as late as a GPU could.
//
// So what the host reads too early is old, what runs on the wrong stream comes in the wrong order, and what a
// capture records is done again by every launch of its graph. Everything runs under one lock.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gpu {

using Action = std::function<void()>;

struct Stream;

// What was captured, and which of the nodes before it the graph does before it: no others are waited for.
struct Node {
  Action action;
  Stream* stream;
  std::vector<size_t> after;
};

// What a stream captures: the work of all streams that joined, in the order in which it was given.
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::vector<Stream*> streams;  // the first began it
  std::vector<Node> nodes;
  bool invalid = false;

  void add(Stream* stream, Action action);
};

// One recording of an event.
struct Ticket {
  Stream* stream;
  std::shared_ptr<Capture> capture;  // of the stream at that time, or null
  bool done = false;
  std::vector<size_t> heads;  // of the stream at that time
};

struct Event {
  int device;
  std::shared_ptr<Ticket> ticket;
};

struct Work {
  Action action;                    // or null
  std::function<bool()> ready;      // whether what it needs of other processes is there, or null
  std::shared_ptr<Ticket> awaited;  // is done first, or null
  std::shared_ptr<Ticket> reached;  // is marked as done, or null
};

struct Stream {
  int device = 0;
  std::deque<Work> work;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> heads;  // the captured nodes that its next one comes after
};

// The runtime's one lock, which a thread may take several times and, while it waits for another process,
// leaves to the other threads.
class Lock {
 public:
  void lock();
  void unlock();
  void pause();  // leaves it for a moment, however often it was taken

 private:
  std::recursive_mutex mutex_;
  int depth_ = 0;  // of the thread that has it
};
using Guard = std::lock_guard<Lock>;
Lock& lock();

int current_device();
int device_count();
bool thread_is_capturing();

// Null is the current device's default stream.
Stream* stream_of(cudaStream_t handle);
// The handle that torch knows a stream by.
void enqueue(Stream* stream, Action action);
// Work that is not done before `ready` holds.
void enqueue_when(Stream* stream, std::function<bool()> ready, Action action);
void wait_for(Stream* stream);
void wait_for_all();
// Why a call that a capture forbids to this thread fails now, having spoilt the capture; or cudaSuccess.
cudaError_t forbidden_in_capture(const char* call);
// A stream waits for an event where one of the two, or both, are of a capture.
cudaError_t wait_in_capture(Stream* stream, const Ticket& ticket);
// Nobody outside a capture can wait for an event that was recorded in it.
cudaError_t refuse_captured(const char* call);

// The first fault of a kernel stays with the process, as on a GPU; every later call of some kinds returns it.
void break_device(cudaError_t error);
cudaError_t broken();

}  // namespace gpu
