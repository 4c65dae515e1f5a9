// SPDX-License-Identifier: Apache-2.0
// How long each kernel of a call runs: the table of a device, watched.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "device/device.h"

namespace mamba {

struct ProfileLine {
  std::string kernel;  // with the sizes of matrix products, "linear_forward 512x3072x768"
  int64_t calls = 0;
  double seconds = 0;  // of all calls
};

// Times every kernel that `body` calls on `device`, one after the other: nothing overlaps, and on a
// GPU a call takes as long as there, without the time to start it. The longest first.
std::vector<ProfileLine> profile_kernels(Device& device, const std::function<void()>& body);

}  // namespace mamba
