// SPDX-License-Identifier: Apache-2.0
// Capturing and launching of graphs.
#include "device/cuda_graphs.h"

#include <algorithm>

namespace mamba::cuda {
namespace {

// Batches of so many sizes may take turns; a graph of a large model is a few MiB.
constexpr size_t kMostGraphs = 32;

}  // namespace

void GraphCache::clear() noexcept {
  for (Entry& entry : entries_) {
    if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
  }
  entries_.clear();
}

cudaGraphExec_t GraphCache::capture(Stream& stream, const std::function<void()>& body) {
  const auto cuda = static_cast<cudaStream_t>(stream.cuda);
  if (cudaStreamBeginCapture(cuda, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(cuda, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  // What a kernel recorded is an error of the capture: the calls without one will tell it again.
  const bool failed = stream.failed != nullptr;
  stream.failed = stream.failed_why = nullptr;
  stream.failed_bytes = 0;
  const cudaError_t ended = cudaStreamEndCapture(cuda, &graph);
  cudaGraphExec_t made = nullptr;
  if (ended == cudaSuccess && !failed && cudaGraphInstantiate(&made, graph, 0) != cudaSuccess) {
    made = nullptr;
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
  return made;
}

void GraphCache::run(Stream& stream, const std::vector<uint64_t>& key,
                     const std::function<void()>& body) {
  if (stream.failed != nullptr) return;
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.key == key; });
  if (found == entries_.end()) {
    if (entries_.size() >= kMostGraphs) {
      if (entries_.back().graph != nullptr) cudaGraphExecDestroy(entries_.back().graph);
      entries_.pop_back();
    }
    entries_.push_front({key});
    body();
    return;
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  if (entry.graph == nullptr && !entry.refused) {
    entry.graph = capture(stream, body);
    entry.refused = entry.graph == nullptr;
  }
  if (entry.graph == nullptr) return body();
  const cudaError_t error = cudaGraphLaunch(entry.graph, static_cast<cudaStream_t>(stream.cuda));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  stream.failed = "a graph of kernels";
  stream.failed_why = cudaGetErrorString(error);
}

}  // namespace mamba::cuda
