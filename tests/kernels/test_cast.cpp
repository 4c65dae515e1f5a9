// SPDX-License-Identifier: Apache-2.0
// cast: every element of every backend, both ways, aligned and not; ties, infinities and NaN.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "support/backends.h"
#include "support/poison.h"
#include "support/random.h"

namespace mamba::test {
namespace {

TEST(Cast, EveryElement) {
  constexpr int64_t kCounts[] = {0, 1, 7, 8, 9, 2047, 2048, 5003};
  for (const int64_t count : kCounts) {
    for (const int64_t offset : {0, 1}) {
      Random random(count + 1);
      std::vector<double> values = random.vector(count, -3, 3);
      const double special[] = {1 + 0x1p-8, 1 + 3 * 0x1p-8, -0.0, INFINITY, NAN, 3.4e38};
      for (size_t i = 0; i < std::size(special) && i < values.size(); ++i) values[i] = special[i];
      for_each_backend([&](Device& device) {
        // bf16 lies in halves of Guarded's elements.
        Guarded x(count + offset, 5 * offset), back(count + offset, 3 * offset);
        Guarded room((count + offset) / 2 + 1, 2 * offset);
        for (int64_t i = 0; i < count; ++i) {
          x[i + offset] = static_cast<float>(values[static_cast<size_t>(i)]);
        }
        const Buf half = Buf(room.data(), DType::kBF16) + offset;
        const Kernels& kernels = device.kernels();
        kernels.cast(device.stream(), {count, x.data() + offset, half});
        kernels.cast(device.stream(), {count, half, Buf(back.data() + offset)});
        device.sync();
        for (int64_t i = 0; i < count; ++i) {
          const bf16 want = to_bf16(x[i + offset]);
          const float got = back[i + offset];
          if (std::isnan(x[i + offset])) {
            EXPECT_TRUE(std::isnan(got) && std::isnan(to_f32(half.as<bf16>()[i]))) << i;
            continue;
          }
          EXPECT_EQ(half.as<bf16>()[i].bits, want.bits) << i;
          EXPECT_EQ(got, to_f32(want)) << i;
          EXPECT_EQ(std::signbit(got), std::signbit(to_f32(want))) << i;
        }
        EXPECT_TRUE(x.intact() && back.intact() && room.intact());
      });
    }
  }
}

}  // namespace
}  // namespace mamba::test
