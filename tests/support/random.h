// SPDX-License-Identifier: Apache-2.0
// Seeded random inputs for tests: the same on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mamba::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  // Uniform in [lo, hi), a multiple of 2^-20 of the range: exact in f32 for ranges near 1.
  double uniform(double lo, double hi) {
    return lo + (hi - lo) * (static_cast<double>(next() >> 44) / 1048576.0);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // Values that are exact in f32, so that f32 and f64 runs see the same input.
  std::vector<double> vector(int64_t count, double lo, double hi) {
    std::vector<double> v(static_cast<size_t>(count));
    for (double& x : v) x = static_cast<float>(uniform(lo, hi));
    return v;
  }

 private:
  uint64_t state_;
};

}  // namespace mamba::test
