// SPDX-License-Identifier: Apache-2.0
// Any bytes as a config.json: an error, or a config that is valid and survives writing and reading.
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "formats/hf_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  std::vector<std::string> warnings;
  Config config;
  try {
    config = parse_config({reinterpret_cast<const char*>(bytes), count}, "fuzz", &warnings);
  } catch (const Error& error) {
    MAMBA_CHECK(error.code() == ErrorCode::kBadFile || error.code() == ErrorCode::kUnsupported);
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
    return 0;
  }
  config.validate();
  MAMBA_CHECK(parse_config(write_config(config), "again") == config);
  return 0;
}
