// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template: an error, or a text within the limits.
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "formats/jinja.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  using namespace mamba;
  using jinja::text_value;
  try {
    const jinja::Template body({reinterpret_cast<const char*>(bytes), count});
    const jinja::Site site;
    const auto message = [&](const char* role, const char* content) {
      return jinja::make_dict({{text_value("role", true), text_value(role, false)},
                               {text_value("content", true), text_value(content, false)}},
                              site);
    };
    const jinja::Context context = {
        {"messages", jinja::make_list({message("system", " S\xc3\xa9 "), message("user", "U\xff"),
                                       message("assistant", "")},
                                      site)},
        {"add_generation_prompt", jinja::Value(true)},
        {"bos_token", text_value("<s>", true)}};
    jinja::Limits limits;
    limits.steps = 20000;
    limits.bytes = 1 << 20;
    MAMBA_CHECK(body.render(context, std::tm{}, limits).size() <= (1 << 20));
  } catch (const Error& error) {
    MAMBA_CHECK(error.code() == ErrorCode::kBadFile || error.code() == ErrorCode::kUnsupported ||
                error.code() == ErrorCode::kInvalidArgument);
    for (const char* c = error.what(); *c != '\0'; ++c) MAMBA_CHECK(*c >= 0x20 && *c < 0x7f);
  }
  return 0;
}
