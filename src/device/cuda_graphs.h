// SPDX-License-Identifier: Apache-2.0
// What was enqueued once, kept as CUDA graphs: one launch instead of hundreds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <list>
#include <vector>

#include "device/stream.h"

namespace mamba::cuda {

class GraphCache {
 public:
  GraphCache() = default;
  ~GraphCache() { clear(); }
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Enqueues what `body` enqueues: by calling it the first time that a key is seen, since kernels
  // are loaded and scratch grows then; from the second time on as a graph of that call. Where a
  // graph cannot be made, `body` is called each time.
  void run(Stream& stream, const std::vector<uint64_t>& key, const std::function<void()>& body);
  void clear() noexcept;

 private:
  struct Entry {
    std::vector<uint64_t> key;
    cudaGraphExec_t graph = nullptr;
    bool refused = false;
  };
  // Captures `body`; null where that fails, with nothing enqueued.
  static cudaGraphExec_t capture(Stream& stream, const std::function<void()>& body);

  std::list<Entry> entries_;  // the last used first
};

}  // namespace mamba::cuda
