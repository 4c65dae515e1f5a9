// SPDX-License-Identifier: Apache-2.0
// What an error is for the caller of the program: an exit code, and an object for who reads JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "mamba/error.h"

namespace mamba::cli {

int exit_code(ErrorCode code);

// {"error": {"message", "type", "code"}}
nlohmann::ordered_json error_json(const std::string& message, const std::string& type, int code);
nlohmann::ordered_json error_json(const Error& error);

}  // namespace mamba::cli
