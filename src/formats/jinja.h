// SPDX-License-Identifier: Apache-2.0
// The part of the Jinja language that chat templates use, interpreted safely: no files, no Python
// objects, bounded time, memory and depth. docs/chat.md lists what is there; what is not is refused
// by name with its line.
#pragma once

#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/jinja_ast.h"

namespace mamba::jinja {

struct Limits {
  int64_t steps = int64_t{5} << 20;    // evaluated expressions, loop items and the like
  int64_t bytes = int64_t{512} << 20;  // written into strings, in between and in the end
};

using Context = std::vector<std::pair<std::string, Value>>;

// A parsed template, with trim_blocks and lstrip_blocks as transformers sets them.
class Template {
 public:
  // Throws bad_file (no Jinja) or unsupported, with the line.
  explicit Template(std::string_view source) : block_(parse(source)) {}
  // Throws like the constructor, and invalid_argument with the template's words where it calls
  // raise_exception. `now` is what strftime_now tells.
  Text render(const Context& context, const std::tm& now, const Limits& limits = {}) const;

 private:
  Block block_;
};

}  // namespace mamba::jinja
