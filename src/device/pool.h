// SPDX-License-Identifier: Apache-2.0
// Memory for weights, in a few large pieces on huge pages: a product that sweeps over a matrix then
// neither waits for page tables nor stops prefetching at every 4 KiB.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba {

class Pool {
 public:
  Pool() = default;
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // 64-byte aligned memory, not zeroed; null when the system has none.
  void* take(int64_t bytes);
  // Gives back what take() returned; null is allowed. Memory goes back to the system by pieces.
  void give(void* data);

 private:
  struct Piece {
    char* data;
    int64_t size, used;
    int64_t live;  // blocks that were not given back
  };
  std::vector<Piece> pieces_;  // the last one is filled
};

}  // namespace mamba
