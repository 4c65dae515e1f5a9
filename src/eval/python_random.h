// SPDX-License-Identifier: Apache-2.0
// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998) seeded and read as Python's random
// module does, so that a bootstrap with a seed gives the number that Python gives.
#pragma once

#include <array>
#include <cstdint>

namespace mamba {

class PythonRandom {
 public:
  // random.seed(seed) for a seed below 2^32: the array initialisation with one word.
  explicit PythonRandom(uint32_t seed) {
    state_[0] = 19650218u;
    for (uint32_t i = 1; i < kWords; ++i) {
      state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
    }
    uint32_t i = 1;
    for (uint32_t k = 0; k < kWords; ++k) {
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1664525u)) + seed;
      i = next_index(i);
    }
    for (uint32_t k = 0; k + 1 < kWords; ++k) {
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1566083941u)) - i;
      i = next_index(i);
    }
    state_[0] = 0x80000000u;
  }

  uint32_t next_word() {
    if (at_ == kWords) refill();
    uint32_t y = state_[at_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

  // random.random(): 53 bits in [0, 1).
  double next_double() {
    const uint32_t high = next_word() >> 5, low = next_word() >> 6;
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
  }

 private:
  static constexpr uint32_t kWords = 624, kShift = 397;

  // Round the array from 1: word 0 takes over the last one's value on the way.
  uint32_t next_index(uint32_t i) {
    if (++i < kWords) return i;
    state_[0] = state_[kWords - 1];
    return 1;
  }

  void refill() {
    for (uint32_t i = 0; i < kWords; ++i) {
      const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7fffffffu);
      state_[i] = state_[(i + kShift) % kWords] ^ (y >> 1) ^ ((y & 1u) != 0 ? 0x9908b0dfu : 0u);
    }
    at_ = 0;
  }

  std::array<uint32_t, kWords> state_;
  uint32_t at_ = kWords;
};

}  // namespace mamba
