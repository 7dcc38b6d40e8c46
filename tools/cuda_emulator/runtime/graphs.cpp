// Captures and graphs. What is captured knows what it comes after, through its stream and the events that its
// stream waited for, and nothing else: a graph may do the rest in any order, and does so here.
#include <algorithm>
#include <map>
#include <string>

#include "log.h"
#include "queue.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {
namespace {

struct Graph {
  std::vector<Node> nodes;
  // Two orders that the events allow, as different as can be: one prefers the streams that joined first, the
  // other those that joined last. Launches take turns, so that of two streams one is late in each.
  std::vector<size_t> orders[2];
};

struct Executable {
  std::shared_ptr<Graph> graph;
  size_t launches = 0;
};

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
unsigned long long captures_begun = 0;

// Those that have not ended.
std::vector<std::shared_ptr<Capture>>& captures() {
  static auto* all = new std::vector<std::shared_ptr<Capture>>;
  return *all;
}

bool has_ended(const std::shared_ptr<Capture>& capture) {
  const auto& all = captures();
  return std::find(all.begin(), all.end(), capture) == all.end();
}

cudaError_t spoilt(const std::shared_ptr<Capture>& capture, const std::string& what, cudaError_t error) {
  capture->invalid = true;
  fault(what);
  return error;
}

std::vector<size_t> in_order(const Capture& capture, bool last_first) {
  std::map<const Stream*, int> joined;  // the stream that began it is 0
  for (Stream* stream : capture.streams) joined.emplace(stream, static_cast<int>(joined.size()));
  const auto& nodes = capture.nodes;
  std::vector<size_t> open(nodes.size()), order;
  std::vector<std::vector<size_t>> before(nodes.size());
  std::map<std::pair<int, size_t>, size_t> ready;
  const auto add = [&](size_t i) {
    const int rank = joined.at(nodes[i].stream);
    ready.emplace(std::pair(last_first ? -rank : rank, i), i);
  };
  for (size_t i = 0; i < nodes.size(); ++i) {
    open[i] = nodes[i].after.size();
    for (const size_t earlier : nodes[i].after) before[earlier].push_back(i);
    if (open[i] == 0) add(i);
  }
  while (!ready.empty()) {
    const size_t next = ready.begin()->second;
    ready.erase(ready.begin());
    order.push_back(next);
    for (const size_t later : before[next])
      if (--open[later] == 0) add(later);
  }
  return order;
}

// Whether all that was captured comes before what the stream would do next: nothing is after it but the end.
bool joined(const Capture& capture, const Stream& origin) {
  std::vector<bool> followed(capture.nodes.size());
  for (const Node& node : capture.nodes)
    for (const size_t earlier : node.after) followed[earlier] = true;
  for (const size_t head : origin.heads) followed[head] = true;
  return std::find(followed.begin(), followed.end(), false) == followed.end();
}

}  // namespace

void Capture::add(Stream* stream, Action action) {
  nodes.push_back({std::move(action), stream, stream->heads});
  stream->heads = {nodes.size() - 1};
}

bool thread_is_capturing() {
  const Guard guard(lock());
  for (const auto& capture : captures())
    if (capture->thread == std::this_thread::get_id()) return true;
  return false;
}

cudaError_t forbidden_in_capture(const char* call) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (const auto& capture : captures()) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool forbidden = capture->mode == cudaStreamCaptureModeGlobal
                               ? own || thread_mode == cudaStreamCaptureModeGlobal
                               : own && capture->mode != cudaStreamCaptureModeRelaxed;
    if (!forbidden) continue;
    return spoilt(capture, std::string(call) + " breaks a capture" + (own ? "" : " of another thread"),
                  cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

cudaError_t wait_in_capture(Stream* stream, const Ticket& ticket) {
  if (ticket.capture && has_ended(ticket.capture)) {
    if (stream->capture) stream->capture->invalid = true;
    return refuse_captured("cudaStreamWaitEvent");
  }
  if (!ticket.capture)
    return spoilt(stream->capture, "a capturing stream waits for an event from outside the capture",
                  cudaErrorStreamCaptureIsolation);
  if (stream->capture && stream->capture != ticket.capture)
    return spoilt(stream->capture, "a capturing stream waits for an event of another capture",
                  cudaErrorStreamCaptureMerge);
  if (!stream->capture) {
    stream->capture = ticket.capture;
    stream->capture->streams.push_back(stream);
  }
  for (const size_t head : ticket.heads)
    if (std::find(stream->heads.begin(), stream->heads.end(), head) == stream->heads.end())
      stream->heads.push_back(head);
  return cudaSuccess;
}

cudaError_t refuse_captured(const char* call) {
  fault(std::string(call) + " of an event that was last recorded in a capture");
  return cudaErrorCapturedEvent;
}

}  // namespace gpu

using gpu::Guard;

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  CALLED;
  std::swap(*mode, gpu::thread_mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  CALLED;
  const Guard guard(gpu::lock());
  gpu::Stream* stream = gpu::stream_of(s);
  if (reinterpret_cast<uintptr_t>(s) <= 2) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  gpu::log("graph", "begin capture", 0, 0, 0, s);
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
  CALLED;
  const Guard guard(gpu::lock());
  gpu::Stream* stream = gpu::stream_of(s);
  const auto capture = stream->capture;
  *graph = nullptr;
  if (!capture) return cudaErrorIllegalState;
  cudaError_t error = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  if (stream != capture->streams.front())
    error = gpu::spoilt(capture, "a capture is ended on a stream that joined it",
                        cudaErrorStreamCaptureUnmatched);
  else if (error == cudaSuccess && !gpu::joined(*capture, *stream))
    error =
        gpu::spoilt(capture, "a capture ends and its stream has not waited for another one that joined it",
                    cudaErrorStreamCaptureUnjoined);
  for (gpu::Stream* joined : capture->streams) {
    joined->capture = nullptr;
    joined->heads.clear();
  }
  auto& all = gpu::captures();
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  gpu::log("graph", "end capture", capture->nodes.size(), 0, 0, s);
  if (error != cudaSuccess) return error;
  auto* made = new std::shared_ptr<gpu::Graph>(new gpu::Graph);
  (*made)->orders[0] = gpu::in_order(*capture, false);
  (*made)->orders[1] = gpu::in_order(*capture, true);
  (*made)->nodes = std::move(capture->nodes);
  *graph = reinterpret_cast<cudaGraph_t>(made);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  CALLED;
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
  CALLED;
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
  CALLED;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  CALLED;
  *count = (*reinterpret_cast<std::shared_ptr<gpu::Graph>*>(graph))->nodes.size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                 unsigned long long) {
  CALLED;
  auto* made = new gpu::Executable{*reinterpret_cast<std::shared_ptr<gpu::Graph>*>(graph)};
  *executable = reinterpret_cast<cudaGraphExec_t>(made);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s) {
  CALLED;
  const Guard guard(gpu::lock());
  gpu::log("graph", "cudaGraphLaunch", 0, 0, 0, s);
  auto* launched = reinterpret_cast<gpu::Executable*>(executable);
  const gpu::Graph& graph = *launched->graph;
  for (const size_t i : graph.orders[launched->launches++ % 2])
    gpu::enqueue(gpu::stream_of(s), graph.nodes[i].action);
  return gpu::broken();
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  CALLED;
  delete reinterpret_cast<std::shared_ptr<gpu::Graph>*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  CALLED;
  delete reinterpret_cast<gpu::Executable*>(executable);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t, unsigned, unsigned) {
  CALLED;
  return cudaSuccess;
}
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void*, cudaHostFn_t, unsigned, unsigned) {
  CALLED;
  *object = reinterpret_cast<cudaUserObject_t>(1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) {
  CALLED;
  return cudaSuccess;
}
