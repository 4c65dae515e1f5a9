// SPDX-License-Identifier: Apache-2.0
// What a device chooses while it runs: the calls of operations that can run in several ways, each
// class once.
#pragma once

#include <functional>
#include <vector>

#include "device/device.h"

namespace mamba {

struct ExplainedChoice {
  Request request;
  Choice choice;
  int64_t calls = 0;
};

// The choices of `body`, in the order of their first call. Nothing is taken from a graph meanwhile.
std::vector<ExplainedChoice> choices_of(Device& device, const std::function<void()>& body);

}  // namespace mamba
