// SPDX-License-Identifier: Apache-2.0
// Any bytes as a file of settings, in both forms: an error that names the file, or settings that
// each have a name, a place and, unless they are lists, one value.
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "cli/config_file.h"

namespace {

using mamba::cli::Setting;

template <class Parse>
void parse_with(Parse parse, const std::string& text, const std::string& path) {
  try {
    for (const Setting& setting : parse(text, path)) {
      MAMBA_CHECK(setting.where.starts_with(path));
      MAMBA_CHECK(setting.is_list || setting.values.size() == 1);
    }
  } catch (const mamba::Error& error) {
    const std::string message = error.what();
    MAMBA_CHECK(error.code() == mamba::ErrorCode::kBadFile);
    MAMBA_CHECK(message.starts_with("[" + path));
    MAMBA_CHECK(
        std::all_of(message.begin(), message.end(), [](char c) { return c >= 0x20 && c < 0x7f; }));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  const std::string text(reinterpret_cast<const char*>(bytes), count);
  parse_with(mamba::cli::parse_config_toml, text, "fuzz.toml");
  parse_with(mamba::cli::parse_config_json, text, "fuzz.json");
  return 0;
}
