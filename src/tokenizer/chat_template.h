// SPDX-License-Identifier: Apache-2.0
// What is behind mamba::ChatTemplate: the parsed text, and rendering that keeps the origin of
// bytes: those of the assistant's answers are marked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/jinja.h"
#include "mamba/chat_template.h"

namespace mamba {

struct ChatTemplate::Parsed {
  std::string name, bos_token, eos_token, source;
  jinja::Template body;
  std::vector<std::string> stops;

  jinja::Text render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                     int64_t now) const;
};

}  // namespace mamba
