// SPDX-License-Identifier: Apache-2.0
// Constructors of the registered variants; mixers.cpp lists them.
#pragma once

#include <memory>

#include "model/mixer.h"

namespace mamba {

std::unique_ptr<Mixer> make_mamba1(const Config& config);
std::unique_ptr<Mixer> make_mamba2(const Config& config);

}  // namespace mamba
