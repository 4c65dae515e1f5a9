// SPDX-License-Identifier: Apache-2.0
// Errors to exit codes and JSON.
#include "cli/error_report.h"

#include <algorithm>

#include "cli/args.h"

namespace mamba::cli {

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return 2;
    case ErrorCode::kBadFile:
    case ErrorCode::kUnsupported:
    case ErrorCode::kIo:
      return 3;
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kDevice:
      return 4;
    case ErrorCode::kCancelled:
      return interrupt_exit_code();
    case ErrorCode::kInternal:
      return 70;
  }
  return 70;
}

nlohmann::ordered_json error_json(const std::string& message, const std::string& type, int code) {
  const nlohmann::ordered_json error = {{"message", message}, {"type", type}, {"code", code}};
  return {{"error", error}};
}

nlohmann::ordered_json error_json(const Error& error) {
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  return error_json(message, error_code_name(error.code()), exit_code(error.code()));
}

}  // namespace mamba::cli
