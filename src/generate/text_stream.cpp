// SPDX-License-Identifier: Apache-2.0
// UTF-8 out of a stream of bytes.
#include "generate/text_stream.h"

#include "base/utf8.h"

namespace mamba {

std::string TextStream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  held_.erase(0, append_valid_utf8(held_, false, &out));
  return out;
}

std::string TextStream::finish() {
  std::string out;
  append_valid_utf8(held_, true, &out);
  held_.clear();
  return out;
}

}  // namespace mamba
