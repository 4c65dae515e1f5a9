// SPDX-License-Identifier: Apache-2.0
// Saved sessions as bytes, for files that hold more than one.
#pragma once

#include <string>

#include "formats/safetensors.h"
#include "mamba/generate.h"

namespace mamba {

// What save_session() writes.
std::string session_bytes(const Session& session, const Model& model);
// As load_session(), from an open file.
Session read_session(const SafetensorsFile& file, const Model& model);

}  // namespace mamba
