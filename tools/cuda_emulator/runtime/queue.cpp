#include "queue.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>

#include "log.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

struct Event {
  int device;
  std::shared_ptr<Ticket> ticket;
};

struct Graph {
  std::vector<Action> actions;
};

thread_local int device = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
cudaError_t device_error = cudaSuccess;
unsigned long long captures_begun = 0;

std::map<int, Stream>& default_streams() {
  static auto* streams = new std::map<int, Stream>;
  return *streams;
}
// Never freed: a handle that is used after its stream was destroyed shall be seen, not crash.
std::vector<std::unique_ptr<Stream>>& streams() {
  static auto* all = new std::vector<std::unique_ptr<Stream>>;
  return *all;
}
std::vector<std::shared_ptr<Capture>>& captures() {
  static auto* all = new std::vector<std::shared_ptr<Capture>>;
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

cudaError_t waited(const char* call, const Action& wait) {
  const Guard guard(lock());
  log("sync", call);
  if (const cudaError_t error = forbidden_in_capture(call)) return error;
  wait();
  return device_error;
}

cudaError_t recorded(cudaEvent_t handle, cudaStream_t on) {
  const Guard guard(lock());
  auto* event = reinterpret_cast<Event*>(handle);
  Stream* stream = stream_of(on);
  log("event", "cudaEventRecord");
  if (stream->device != event->device) {
    fault("an event of device " + std::to_string(event->device) + " is recorded on a stream of device " +
          std::to_string(stream->device));
    return cudaErrorInvalidResourceHandle;
  }
  event->ticket = std::make_shared<Ticket>(Ticket{stream, stream->capture});
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

bool thread_is_capturing() {
  const Guard guard(lock());
  for (const auto& capture : captures())
    if (capture->thread == std::this_thread::get_id()) return true;
  return false;
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
    stream->capture->actions.push_back(std::move(action));
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

cudaError_t forbidden_in_capture(const char* call) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& capture : captures()) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool forbidden = capture->mode == cudaStreamCaptureModeGlobal
                               ? own || thread_mode == cudaStreamCaptureModeGlobal
                               : own && capture->mode != cudaStreamCaptureModeRelaxed;
    if (!forbidden) continue;
    capture->invalid = true;
    fault(std::string(call) + " breaks a capture" + (own ? "" : " of another thread"));
    return cudaErrorStreamCaptureUnsupported;
  }
  return cudaSuccess;
}

void break_device(cudaError_t error) {
  if (device_error == cudaSuccess) device_error = error;
}

cudaError_t broken() { return device_error; }

}  // namespace gpu

using gpu::Guard;

EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = gpu::device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= gpu::device_count()) return cudaErrorInvalidDevice;
  gpu::device = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  return gpu::waited("cudaDeviceSynchronize", [] { gpu::wait_for_all(); });
}

// ---- streams ---------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return gpu::created(s); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return gpu::created(s); }
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* s) { return gpu::created(s); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  return gpu::waited("cudaStreamSynchronize", [s] { gpu::wait_for(gpu::stream_of(s)); });
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
  const Guard guard(gpu::lock());
  if (const cudaError_t error = gpu::forbidden_in_capture("cudaStreamQuery")) return error;
  gpu::Stream* stream = gpu::stream_of(s);
  if (!stream->work.empty()) gpu::do_next(stream);  // the device goes on while it is asked
  return stream->work.empty() ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  const Guard guard(gpu::lock());
  gpu::log("wait", "cudaStreamWaitEvent");
  gpu::Stream* stream = gpu::stream_of(s);
  const auto& ticket = reinterpret_cast<gpu::Event*>(e)->ticket;
  if (!ticket) return cudaSuccess;  // never recorded
  if (ticket->capture && !ticket->capture->invalid) {
    if (!stream->capture) {
      stream->capture = ticket->capture;
      stream->capture->streams.push_back(stream);
    }
  } else if (stream->capture) {
    stream->capture->invalid = true;
    gpu::fault("a capturing stream waits for an event from outside the capture");
    return cudaErrorStreamCaptureIsolation;
  } else if (!ticket->done) {
    stream->work.push_back({nullptr, nullptr, ticket, nullptr});
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t callback, void* data,
                                         unsigned) {
  gpu::enqueue(gpu::stream_of(s), [=] { callback(s, cudaSuccess, data); });
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void* data) {
  gpu::log("hostfunc", "cudaLaunchHostFunc");
  gpu::enqueue(gpu::stream_of(s), [=] { function(data); });
  return cudaSuccess;
}

// ---- events ----------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = reinterpret_cast<cudaEvent_t>(new gpu::Event{gpu::device, nullptr});
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) {
  return cudaSuccess;
}  // its ticket may still be waited for
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return gpu::recorded(e, s); }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  return gpu::recorded(e, s);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
  const Guard guard(gpu::lock());
  if (const cudaError_t error = gpu::forbidden_in_capture("cudaEventQuery")) return error;
  const auto& ticket = reinterpret_cast<gpu::Event*>(e)->ticket;
  if (!ticket || ticket->done) return cudaSuccess;
  if (!ticket->stream->work.empty()) gpu::do_next(ticket->stream);
  return ticket->done ? cudaSuccess : cudaErrorNotReady;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  return gpu::waited("cudaEventSynchronize", [e] {
    const auto ticket =
        reinterpret_cast<gpu::Event*>(e)->ticket;  // another thread may record it anew meanwhile
    while (ticket && !gpu::reach(ticket)) gpu::lock().pause();
  });
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;  // the device has no clock
  return cudaSuccess;
}

// ---- captures --------------------------------------------------------------------------------------------

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, gpu::thread_mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  const Guard guard(gpu::lock());
  gpu::Stream* stream = gpu::stream_of(s);
  if (reinterpret_cast<uintptr_t>(s) <= 2) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  gpu::log("graph", "begin capture");
  auto capture = std::make_shared<gpu::Capture>();
  capture->id = ++gpu::captures_begun;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->streams.push_back(stream);
  stream->capture = capture;
  gpu::captures().push_back(capture);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
  const Guard guard(gpu::lock());
  const auto capture = gpu::stream_of(s)->capture;
  *graph = nullptr;
  if (!capture) return cudaErrorIllegalState;
  for (gpu::Stream* stream : capture->streams) stream->capture = nullptr;
  auto& all = gpu::captures();
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  gpu::log("graph", "end capture", capture->actions.size());
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  *graph = reinterpret_cast<cudaGraph_t>(new gpu::Graph{capture->actions});
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  const Guard guard(gpu::lock());
  const auto& capture = gpu::stream_of(s)->capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** dependencies,
                                            const cudaGraphEdgeData** edges, size_t* count) {
  const Guard guard(gpu::lock());
  cudaStreamIsCapturing(s, status);
  const auto& capture = gpu::stream_of(s)->capture;
  if (id != nullptr) *id = capture ? capture->id : 0;
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(capture.get());
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t*,
                                                       const cudaGraphEdgeData*, size_t, unsigned) {
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<gpu::Graph*>(graph)->actions.size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new gpu::Graph(*reinterpret_cast<gpu::Graph*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s) {
  const Guard guard(gpu::lock());
  gpu::log("graph", "cudaGraphLaunch");
  const auto* graph = reinterpret_cast<gpu::Graph*>(executable);
  for (const gpu::Action& action : graph->actions) gpu::enqueue(gpu::stream_of(s), action);
  return gpu::broken();
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<gpu::Graph*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<gpu::Graph*>(executable);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) {
  return cudaSuccess;
}
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void*, cudaHostFn_t, unsigned, unsigned) {
  *object = reinterpret_cast<cudaUserObject_t>(1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
