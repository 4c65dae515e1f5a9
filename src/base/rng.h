// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: value i of a stream is a function of (seed, stream, i) alone, so
// results do not depend on the order of drawing, on threads or on the device. Philox4x32-10:
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace mamba {

using PhiloxKey = std::array<uint32_t, 2>;
using PhiloxCounter = std::array<uint32_t, 4>;

// One round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0
// c0)); between rounds the key grows by the Weyl constants. Ten rounds.
inline PhiloxCounter philox(PhiloxKey key, PhiloxCounter c) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return c;
}

// A sequence of independent values, by index.
class CounterRng {
 public:
  explicit CounterRng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  // The 128 random bits of value i.
  PhiloxCounter words(uint64_t i) const {
    return philox({static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)},
                  {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32),
                   static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)});
  }
  uint64_t bits(uint64_t i) const {
    const PhiloxCounter w = words(i);
    return join(w[0], w[1]);
  }
  // In [0, 1), a multiple of 2^-53.
  double uniform(uint64_t i) const { return to_unit(bits(i)); }
  double uniform(uint64_t i, double low, double high) const {
    return low + (high - low) * uniform(i);
  }
  // In [0, n); uneven by at most n / 2^64. n > 0.
  uint64_t below(uint64_t i, uint64_t n) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(bits(i)) * n) >> 64);
  }
  // Standard normal (Box-Muller): sqrt(-2 ln u) cos(2 pi v) with u in (0, 1], v in [0, 1).
  double normal(uint64_t i) const {
    const PhiloxCounter w = words(i);
    const double u = 1.0 - to_unit(join(w[0], w[1]));
    const double v = to_unit(join(w[2], w[3]));
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * 3.14159265358979323846 * v);
  }

 private:
  static uint64_t join(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }
  static double to_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

  uint64_t seed_;
  uint64_t stream_;
};

}  // namespace mamba
