// SPDX-License-Identifier: Apache-2.0
// Reads the message of an expected mamba::Error, and a scratch folder for tests that write files.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <initializer_list>
#include <string>

#include "mamba/error.h"

namespace mamba::test {

// body() throws Error of this code whose message has one line, starts with "[" and contains every
// part.
template <class Body>
testing::AssertionResult fails_with(ErrorCode code, std::initializer_list<std::string> parts,
                                    Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.code() != code) {
      return testing::AssertionFailure()
             << "code " << error_code_name(error.code()) << ", expected " << error_code_name(code)
             << ": " << message;
    }
    if (message.empty() || message[0] != '[' || message.find('\n') != std::string::npos) {
      return testing::AssertionFailure() << "not one line that starts with [where]: " << message;
    }
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) {
        return testing::AssertionFailure() << "no \"" << part << "\" in: " << message;
      }
    }
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "no error was thrown";
}

// An empty folder that is removed with everything in it.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mamba-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace mamba::test
