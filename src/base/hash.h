// SPDX-License-Identifier: Apache-2.0
// A hash of bytes that notices change and damage, not forgery.
#pragma once

#include <cstdint>
#include <cstring>

namespace mamba {

// 64 bits over `bytes` bytes and a seed: four lanes of multiply and rotate, so that gigabytes take
// about as long as reading them. Chain calls through the seed.
inline uint64_t hash_bytes(const void* data, int64_t bytes, uint64_t seed) {
  constexpr uint64_t kMul = 0x9fb21c651e98df25ull;
  uint64_t lanes[4] = {seed, seed + 1, seed + 2, seed + 3};
  const char* p = static_cast<const char*>(data);
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int k = 0; k < 4; ++k) {
      uint64_t w;
      std::memcpy(&w, p + i + 8 * k, 8);
      lanes[k] = (lanes[k] ^ w) * kMul;
      lanes[k] ^= lanes[k] >> 29;
    }
  }
  uint64_t h = static_cast<uint64_t>(bytes);
  for (; i < bytes; ++i) h = (h ^ static_cast<unsigned char>(p[i])) * kMul;
  for (const uint64_t lane : lanes) h = (h ^ lane ^ (h >> 31)) * kMul;
  return h ^ (h >> 32);
}

}  // namespace mamba
