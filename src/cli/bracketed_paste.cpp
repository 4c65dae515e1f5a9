// SPDX-License-Identifier: Apache-2.0
// The marks of xterm around pasted text.
#include "cli/bracketed_paste.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "generate/text_stream.h"

namespace mamba::cli {
namespace {

constexpr std::string_view kBegin = "\033[200~", kEnd = "\033[201~";
constexpr size_t kMaxPaste = size_t{64} << 20;
constexpr char kInterrupt = '\3';

// Bytes at the end of a text that a mark may begin with.
size_t begun(const std::string& text, std::string_view mark) {
  size_t count = std::min(text.size(), mark.size() - 1);
  while (count > 0 && !text.ends_with(mark.substr(0, count))) --count;
  return count;
}

std::string cleaned(const std::string& paste) {
  TextStream stream;
  std::string text;
  const std::string whole = stream.push(paste) + stream.finish();
  for (size_t i = 0; i < whole.size(); ++i) {
    const auto c = static_cast<unsigned char>(whole[i]);
    const bool crlf = c == '\r' && i + 1 < whole.size() && whole[i + 1] == '\n';
    if (c == '\r' && !crlf) text += '\n';
    if ((c >= ' ' && c != 0x7f) || c == '\n' || c == '\t') text += whole[i];
  }
  text.erase(text.find_last_not_of('\n') + 1);
  return text;
}

}  // namespace

void PasteFilter::give(std::string_view bytes, std::string* typed) {
  if (pasting_) {
    paste_ += bytes.substr(0, kMaxPaste - std::min(kMaxPaste, paste_.size()));
    return;
  }
  std::copy_if(bytes.begin(), bytes.end(), std::back_inserter(*typed),
               [](char c) { return c != kKey; });
}

std::string PasteFilter::push(std::string_view bytes) {
  held_ += bytes;
  std::string typed;
  for (;;) {
    const std::string_view mark = pasting_ ? kEnd : kBegin;
    const size_t at = held_.find(mark);
    const size_t interrupt = pasting_ ? held_.find(kInterrupt) : std::string::npos;
    if (interrupt < at) {
      held_.erase(0, interrupt);
      paste_.clear();
      pasting_ = false;
      continue;
    }
    if (at == std::string::npos) {
      const size_t known = held_.size() - begun(held_, mark);
      give(std::string_view(held_).substr(0, known), &typed);
      held_.erase(0, known);
      return typed;
    }
    give(std::string_view(held_).substr(0, at), &typed);
    held_.erase(0, at + mark.size());
    if (pasting_) {
      pastes_.push_back(cleaned(std::exchange(paste_, "")));
      typed += kKey;
    }
    pasting_ = !pasting_;
  }
}

std::string PasteFilter::take() {
  if (pastes_.empty()) return "";
  std::string text = std::move(pastes_.front());
  pastes_.pop_front();
  return text;
}

}  // namespace mamba::cli
