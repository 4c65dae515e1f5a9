// SPDX-License-Identifier: Apache-2.0
// Devices: their names and what is wrong with others, and their memory, on the CPU and on every
// GPU.
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "device/arena.h"
#include "device/device.h"
#include "support/expect_error.h"

namespace mamba::test {
namespace {

// One device of each kind of memory.
template <class Body>
void for_each_memory(Body&& body) {
  for (const std::string& name : Device::available()) {
    if (name != "ref" && name.rfind("cuda:", 0) != 0) continue;
    SCOPED_TRACE(name);
    const std::unique_ptr<Device> device = Device::create({name, 1});
    body(*device);
  }
}

std::vector<int32_t> read(DeviceMemory& memory, const void* data, size_t count) {
  std::vector<int32_t> values(count, -1);
  memory.copy_out(values.data(), data, static_cast<int64_t>(count * sizeof(int32_t)));
  return values;
}

std::vector<int32_t> counting(size_t count) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), 1);
  return values;
}

TEST(Device, AvailableNamesAreThoseThatItTakes) {
  for (const std::string& name : Device::available()) {
    const std::unique_ptr<Device> device = Device::create({name, 1});
    EXPECT_EQ(device->name(), name);
    EXPECT_EQ(device->memory().on_host(), name.rfind("cuda:", 0) != 0);
    EXPECT_GT(device->memory().free_bytes(), 0);
    device->sync();
  }
}

// No machine has a hundred GPUs; one without any says so in its own words.
TEST(Device, AGpuThatIsNotThereIsAClearError) {
  EXPECT_TRUE(fails_with(ErrorCode::kDevice, {"[device] expected", "'cuda:99'"}, [] {
    Device::create({"cuda:99", 1});
  }));
  for (const char* name :
       {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda1", "cudax", "cuda:99999999999"}) {
    EXPECT_TRUE(fails_with(ErrorCode::kInvalidArgument, {"cuda:N", name}, [&] {
      Device::create({name, 1});
    }));
  }
}

TEST(DeviceMemory, IsZeroAndKeepsWhatIsCopied) {
  for_each_memory([](Device& device) {
    DeviceMemory& memory = device.memory();
    // More than one stage of a copy, and no multiple of it.
    const size_t count = 3000017;
    const std::vector<int32_t> values = counting(count);
    const int64_t bytes = static_cast<int64_t>(count * sizeof(int32_t));
    const AlignedBlock a(bytes, "a test", memory), b(bytes, "a test", memory);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
    EXPECT_EQ(read(memory, a.data(), count), std::vector<int32_t>(count));
    memory.copy_in(a.data(), values.data(), bytes);
    memory.copy(b.data(), a.data(), bytes);
    memory.zero(a.data(), bytes - 4);
    EXPECT_EQ(read(memory, b.data(), count), values);
    const std::vector<int32_t> rest = read(memory, a.data(), count);
    EXPECT_EQ(rest[count - 2], 0);
    EXPECT_EQ(rest[count - 1], values.back());
    memory.wait();
  });
}

TEST(DeviceMemory, SourcesMayChangeOnceCopyInReturns) {
  for_each_memory([](Device& device) {
    DeviceMemory& memory = device.memory();
    const AlignedBlock block(40 * 4000, "a test", memory);
    std::vector<int32_t> values(1000);
    for (int32_t round = 0; round < 40; ++round) {
      std::fill(values.begin(), values.end(), round);
      memory.copy_in(static_cast<char*>(block.data()) + round * 4000, values.data(), 4000);
    }
    const std::vector<int32_t> got = read(memory, block.data(), 40000);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], static_cast<int32_t>(i / 1000));
  });
}

TEST(DeviceMemory, CopiesRowsWithTheirSteps) {
  for_each_memory([](Device& device) {
    DeviceMemory& memory = device.memory();
    const AlignedBlock from(48, "a test", memory), to(80, "a test", memory);
    const std::vector<int32_t> values = counting(12);
    memory.copy_in(from.data(), values.data(), 48);
    // Columns 1 and 2 of 3 rows of 4, to rows of 6.
    memory.copy_rows(static_cast<char*>(to.data()) + 4, 24, static_cast<char*>(from.data()) + 4, 16,
                     8, 3);
    EXPECT_EQ(read(memory, to.data(), 20),
              (std::vector<int32_t>{0, 2, 3, 0, 0, 0, 0, 6, 7, 0, 0, 0, 0, 10, 11, 0, 0, 0, 0, 0}));
    memory.copy_rows(to.data(), 24, from.data(), 16, 0, 3);
    memory.copy_rows(to.data(), 24, from.data(), 16, 8, 0);
  });
}

TEST(DeviceMemory, NothingIsAsMuchAsAnything) {
  for_each_memory([](Device& device) {
    DeviceMemory& memory = device.memory();
    EXPECT_EQ(memory.allocate(0, "nothing"), nullptr);
    memory.release(nullptr);
    memory.copy_in(nullptr, nullptr, 0);
    memory.copy_out(nullptr, nullptr, 0);
    memory.copy(nullptr, nullptr, 0);
    memory.zero(nullptr, 0);
    const AlignedBlock block;
    EXPECT_EQ(block.data(), nullptr);
  });
}

#ifndef __SANITIZE_ADDRESS__  // which aborts on such an allocation
TEST(DeviceMemory, TooMuchSaysHowMuchAndWhatFor) {
  for_each_memory([](Device& device) {
    EXPECT_TRUE(
        fails_with(ErrorCode::kOutOfMemory, {"1099511627776.0 MiB", "the universe", "smaller"},
                   [&] { AlignedBlock(int64_t{1} << 60, "the universe", device.memory()); }));
    // The device works on.
    const AlignedBlock block(64, "a test", device.memory());
    EXPECT_EQ(read(device.memory(), block.data(), 16), std::vector<int32_t>(16));
  });
}
#endif

}  // namespace
}  // namespace mamba::test
