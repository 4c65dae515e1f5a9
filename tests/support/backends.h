// SPDX-License-Identifier: Apache-2.0
// Runs a test over every backend that this machine has and says which ones ran.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>

#include "device/device.h"

namespace mamba::test {

// What kernels have written is there, for a stream of a device as for one by itself.
inline void finish(const Stream& stream) {
  if (stream.owner != nullptr) static_cast<Device*>(stream.owner)->sync();
}

// body(Device&) for "cpu:base" ... "cpu:avx512_bf16" (what is available), "ref" and the GPUs, each
// with the given number of threads. What kernels of a GPU read and write lies on the heap
// (support/registered_memory.cpp), and is there after device.sync(). Checks that the table that
// runs is the one asked for.
template <class Body>
void for_each_backend(Body&& body, int threads = 2) {
  std::string ran;
  for (const std::string& name : Device::available()) {
    if (name == "ref64") continue;
    std::unique_ptr<Device> device = Device::create({name, threads});
    std::string table = name.rfind("cpu:", 0) == 0 ? name.substr(4) : name;
    if (name.rfind("cuda:", 0) == 0) table = "cuda";
    ASSERT_EQ(table, device->kernels().name);
    SCOPED_TRACE("backend " + name);
    body(*device);
    ran += " " + name;
  }
  std::printf("backends:%s\n", ran.c_str());
}

}  // namespace mamba::test
