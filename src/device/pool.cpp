// SPDX-License-Identifier: Apache-2.0
// Pieces of memory, filled from their beginning.
#include "device/pool.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "device/memory.h"

namespace mamba {
namespace {

constexpr int64_t kPiece = int64_t{32} << 20;
constexpr int64_t kAlignment = 64;

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Pool::~Pool() {
  for (const Piece& piece : pieces_) std::free(piece.data);
}

void* Pool::take(int64_t bytes) {
  if (bytes < 0 || bytes > int64_t{1} << 62) return nullptr;
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  if (pieces_.empty() || pieces_.back().size - pieces_.back().used < size) {
    const int64_t piece = round_up(std::max(size, kPiece), kHugePage);
    void* data = std::aligned_alloc(kHugePage, static_cast<size_t>(piece));
    if (data == nullptr) return nullptr;
    prefer_huge_pages(data, piece);
    try {
      pieces_.push_back({static_cast<char*>(data), piece, 0, 0});
    } catch (const std::bad_alloc&) {
      std::free(data);
      return nullptr;
    }
  }
  Piece& piece = pieces_.back();
  void* at = piece.data + piece.used;
  piece.used += size;
  ++piece.live;
  return at;
}

void Pool::give(void* data) {
  if (data == nullptr) return;
  const auto* at = static_cast<const char*>(data);
  const auto found = std::find_if(pieces_.begin(), pieces_.end(), [at](const Piece& piece) {
    return at >= piece.data && at < piece.data + piece.size;
  });
  if (found == pieces_.end() || --found->live > 0) return;
  std::free(found->data);
  pieces_.erase(found);
}

}  // namespace mamba
