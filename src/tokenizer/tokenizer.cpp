// SPDX-License-Identifier: Apache-2.0
// What all tokenizers share: defaults, decoding, and streams in both directions.
#include "mamba/tokenizer.h"

#include <algorithm>

#include "base/utf8.h"

namespace mamba {
namespace {

// Below this a look for a cut is not worth its time.
constexpr size_t kFirstLook = size_t{1} << 16;

}  // namespace

std::vector<int32_t> Tokenizer::encode_with(std::string_view text, const EncodeOptions&) const {
  return encode(text);
}

int32_t Tokenizer::id_of(std::string_view content) const {
  for (int64_t id = 0; id < vocab_size(); ++id) {
    if (token_bytes(static_cast<int32_t>(id)) == content) return static_cast<int32_t>(id);
  }
  return -1;
}

bool Tokenizer::is_special(int32_t) const { return false; }

uint64_t Tokenizer::fingerprint() const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const unsigned char c : name()) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

size_t Tokenizer::safe_cut(std::string_view, const EncodeOptions&) const { return 0; }

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += token_bytes(id);
  return bytes;
}

std::string Tokenizer::decode_text(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string bytes, text;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  }
  append_valid_utf8(bytes, true, &text);
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return "";
  held_ += tokenizer_->token_bytes(id);
  std::string out;
  held_.erase(0, append_valid_utf8(held_, false, &out));
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  append_valid_utf8(held_, true, &out);
  held_.clear();
  return out;
}

StreamEncoder::StreamEncoder(const Tokenizer& tokenizer, const EncodeOptions& options)
    : tokenizer_(&tokenizer), options_(options), next_look_(kFirstLook) {}

void StreamEncoder::push(std::string_view piece, std::vector<int32_t>* ids) {
  held_ += piece;
  if (held_.size() < next_look_) return;
  const size_t cut = tokenizer_->safe_cut(held_, options_);
  if (cut > 0) take(cut, ids);
  // Twice what is left, so that a text that cannot be cut is looked through a few times only.
  next_look_ = std::max(kFirstLook, 2 * held_.size());
}

void StreamEncoder::finish(std::vector<int32_t>* ids) {
  take(held_.size(), ids);
  if (options_.add_special) {
    const std::vector<int32_t> suffix = tokenizer_->suffix_ids();
    ids->insert(ids->end(), suffix.begin(), suffix.end());
  }
  begun_ = false;
  taken_ = 0;
  next_look_ = kFirstLook;
}

void StreamEncoder::take(size_t count, std::vector<int32_t>* ids) {
  if (!begun_ && options_.add_special) {
    const std::vector<int32_t> prefix = tokenizer_->prefix_ids();
    ids->insert(ids->end(), prefix.begin(), prefix.end());
  }
  begun_ = true;
  EncodeOptions options = options_;
  options.add_special = false;
  const std::vector<int32_t> more =
      tokenizer_->encode_with(std::string_view(held_).substr(0, count), options);
  ids->insert(ids->end(), more.begin(), more.end());
  held_.erase(0, count);
  taken_ += static_cast<int64_t>(count);
}

}  // namespace mamba
