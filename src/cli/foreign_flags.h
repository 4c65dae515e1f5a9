// SPDX-License-Identifier: Apache-2.0
// Flags of llama.cpp's programs that people paste and that nothing here answers to: each is refused
// with the reason, but for values that ask for what is so anyway.
#pragma once

#include <string>
#include <vector>

namespace mamba::cli {

struct ForeignFlag {
  std::vector<std::string> commands, names;
  bool takes_value = true;
  std::vector<std::string> harmless;  // values that change nothing, and are taken silently
  std::string why;
};

// The flag of that name (with its dashes) for a command ("bench"); null if there is none.
const ForeignFlag* foreign_flag(const std::string& command, const std::string& name);

// Throws invalid_argument with the reason unless the value is harmless.
void expect_harmless(const ForeignFlag& flag, const std::string& command, const std::string& name,
                     const std::string& value);

}  // namespace mamba::cli
