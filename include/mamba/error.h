// SPDX-License-Identifier: Apache-2.0
// The one exception type of the library and the list of its codes.
#pragma once

#include <stdexcept>
#include <string>

namespace mamba {

enum class ErrorCode {
  kInvalidArgument,  // an argument or option is out of range or contradicts another
  kBadFile,          // a file is missing, truncated, malformed or lies about its content
  kUnsupported,      // well-formed, but not something this build can do
  kOutOfMemory,      // memory or a device buffer could not be had
  kDevice,           // a device or an instruction set is absent or failed
  kIo,               // reading or writing failed (no space, no permission)
  kCancelled,        // the caller asked to stop
  kInternal,         // a bug in this library
};

// Message form: "[where] expected ..., got ... (file, tensor, byte or line); what to do".
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

// "bad_file" for ErrorCode::kBadFile, and so on.
const char* error_code_name(ErrorCode code) noexcept;

}  // namespace mamba
