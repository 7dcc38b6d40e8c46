#include "queue.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>

#include "log.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

thread_local int device = 0;
cudaError_t device_error = cudaSuccess;

std::map<int, Stream>& default_streams() {
  static auto* streams = new std::map<int, Stream>;
  return *streams;
}
// Never freed: a handle that is used after its stream was destroyed shall be seen, not crash.
std::vector<std::unique_ptr<Stream>>& streams() {
  static auto* all = new std::vector<std::unique_ptr<Stream>>;
  return *all;
}

bool do_next(Stream* stream);

// Whether it is reached now; if not, another process has to do something first.
bool reach(const std::shared_ptr<Ticket>& ticket) {
  while (!ticket->done && !ticket->stream->work.empty())
    if (!do_next(ticket->stream)) return false;
  return true;
}

// Does the stream's first work and returns true, unless another process has to do something first.
bool do_next(Stream* stream) {
  const std::shared_ptr<Ticket> awaited = stream->work.front().awaited;
  if (awaited && !reach(awaited)) return false;
  if (stream->work.front().ready && !stream->work.front().ready()) return false;
  const Work work = std::move(stream->work.front());
  stream->work.pop_front();
  if (work.action && device_error == cudaSuccess) work.action();
  if (work.reached) work.reached->done = true;
  return true;
}

cudaError_t created(cudaStream_t* handle) {
  const Guard guard(lock());
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  *handle = reinterpret_cast<cudaStream_t>(stream.get());
  streams().push_back(std::move(stream));
  return cudaSuccess;
}

cudaError_t waited(const char* call, const Action& wait, cudaStream_t stream = nullptr) {
  const Guard guard(lock());
  log("sync", call, 0, 0, 0, stream);
  if (const cudaError_t error = forbidden_in_capture(call)) return error;
  wait();
  return device_error;
}

cudaError_t recorded(cudaEvent_t handle, cudaStream_t on) {
  const Guard guard(lock());
  auto* event = reinterpret_cast<Event*>(handle);
  Stream* stream = stream_of(on);
  log("event", "cudaEventRecord", 0, 0, 0, on);
  if (stream->device != event->device) {
    fault("an event of device " + std::to_string(event->device) + " is recorded on a stream of device " +
          std::to_string(stream->device));
    return cudaErrorInvalidResourceHandle;
  }
  event->ticket = std::make_shared<Ticket>(Ticket{stream, stream->capture, false, stream->heads});
  if (!stream->capture) stream->work.push_back({nullptr, nullptr, nullptr, event->ticket});
  return cudaSuccess;
}

}  // namespace

void Lock::lock() {
  mutex_.lock();
  ++depth_;
}
void Lock::unlock() {
  --depth_;
  mutex_.unlock();
}
void Lock::pause() {
  const int depth = depth_;
  for (int i = 0; i < depth; ++i) unlock();
  std::this_thread::sleep_for(std::chrono::microseconds(200));
  for (int i = 0; i < depth; ++i) lock();
}

Lock& lock() {
  static auto* the_lock = new Lock;
  return *the_lock;
}

int current_device() { return device; }

int device_count() {
  const char* count = std::getenv("EMULATED_GPUS");
  return count != nullptr ? std::atoi(count) : 1;
}

Stream* stream_of(cudaStream_t handle) {
  if (reinterpret_cast<uintptr_t>(handle) <= 2) {  // legacy and per-thread default streams
    Stream& stream = default_streams()[device];
    stream.device = device;
    return &stream;
  }
  return reinterpret_cast<Stream*>(handle);
}

void enqueue(Stream* stream, Action action) {
  const Guard guard(lock());
  if (stream->capture) {
    stream->capture->add(stream, std::move(action));
  } else {
    stream->work.push_back({std::move(action), nullptr, nullptr, nullptr});
  }
}

void enqueue_when(Stream* stream, std::function<bool()> ready, Action action) {
  const Guard guard(lock());
  stream->work.push_back({std::move(action), std::move(ready), nullptr, nullptr});
}

void wait_for(Stream* stream) {
  const Guard guard(lock());
  while (!stream->work.empty())
    if (!do_next(stream)) lock().pause();
}

void wait_for_all() {
  const Guard guard(lock());
  for (auto& [_, stream] : default_streams()) wait_for(&stream);
  for (size_t i = 0; i < streams().size(); ++i) wait_for(streams()[i].get());  // others add to them meanwhile
}

void break_device(cudaError_t error) {
  if (device_error == cudaSuccess) device_error = error;
}

cudaError_t broken() { return device_error; }

}  // namespace gpu

using gpu::Guard;

EXPORT cudaError_t cudaGetDevice(int* device) {
  CALLED;
  *device = gpu::device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  CALLED;
  if (device < 0 || device >= gpu::device_count()) return cudaErrorInvalidDevice;
  gpu::device = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  CALLED;
  return gpu::waited("cudaDeviceSynchronize", [] { gpu::wait_for_all(); });
}

// ---- streams ---------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
  CALLED;
  return gpu::created(s);
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  CALLED;
  return gpu::created(s);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) {
  CALLED;
  return gpu::created(s);
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) {
  CALLED;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  CALLED;
  *priority = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  CALLED;
  return gpu::waited("cudaStreamSynchronize", [s] { gpu::wait_for(gpu::stream_of(s)); }, s);
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
  CALLED;
  const Guard guard(gpu::lock());
  if (const cudaError_t error = gpu::forbidden_in_capture("cudaStreamQuery")) return error;
  gpu::Stream* stream = gpu::stream_of(s);
  if (!stream->work.empty()) gpu::do_next(stream);  // the device goes on while it is asked
  return stream->work.empty() ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  CALLED;
  const Guard guard(gpu::lock());
  gpu::log("wait", "cudaStreamWaitEvent", 0, 0, 0, s);
  gpu::Stream* stream = gpu::stream_of(s);
  const auto& ticket = reinterpret_cast<gpu::Event*>(e)->ticket;
  if (!ticket) return cudaSuccess;  // never recorded
  if (ticket->capture || stream->capture) return gpu::wait_in_capture(stream, *ticket);
  if (!ticket->done) stream->work.push_back({nullptr, nullptr, ticket, nullptr});
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t callback, void* data,
                                         unsigned) {
  CALLED;
  gpu::enqueue(gpu::stream_of(s), [=] { callback(s, cudaSuccess, data); });
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void* data) {
  CALLED;
  gpu::log("hostfunc", "cudaLaunchHostFunc", 0, 0, 0, s);
  gpu::enqueue(gpu::stream_of(s), [=] { function(data); });
  return cudaSuccess;
}

// ---- events ----------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  CALLED;
  *e = reinterpret_cast<cudaEvent_t>(new gpu::Event{gpu::device, nullptr});
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) {
  CALLED;
  return cudaEventCreateWithFlags(e, 0);
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) {
  CALLED;
  return cudaSuccess;  // its ticket may still be waited for
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  CALLED;
  return gpu::recorded(e, s);
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  CALLED;
  return gpu::recorded(e, s);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
  CALLED;
  const Guard guard(gpu::lock());
  if (const cudaError_t error = gpu::forbidden_in_capture("cudaEventQuery")) return error;
  const auto& ticket = reinterpret_cast<gpu::Event*>(e)->ticket;
  if (!ticket || ticket->done) return cudaSuccess;
  if (ticket->capture) return gpu::refuse_captured("cudaEventQuery");
  if (!ticket->stream->work.empty()) gpu::do_next(ticket->stream);
  return ticket->done ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  CALLED;
  cudaError_t captured = cudaSuccess;
  const cudaError_t error = gpu::waited("cudaEventSynchronize", [e, &captured] {
    const auto ticket =
        reinterpret_cast<gpu::Event*>(e)->ticket;  // another thread may record it anew meanwhile
    if (ticket && ticket->capture) captured = gpu::refuse_captured("cudaEventSynchronize");
    while (captured == cudaSuccess && ticket && !gpu::reach(ticket)) gpu::lock().pause();
  });
  return captured != cudaSuccess ? captured : error;
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  CALLED;
  *milliseconds = 1;  // the device has no clock
  return cudaSuccess;
}
