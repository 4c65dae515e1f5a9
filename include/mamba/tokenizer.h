// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back: whole texts, and streams of either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

struct EncodeOptions {
  // The names of special tokens in the text ("<|endoftext|>") become their ids; false: they are
  // text like any other, which is what text of strangers should be.
  bool parse_special = true;
  // Also the ids that the tokenizer's files put around every text (a BOS, say). Most have none.
  bool add_special = false;
};

// Immutable once made: any number of threads may use one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // What load_tokenizer takes: "bytes", or the path it was loaded from.
  virtual const std::string& name() const = 0;
  // Ids are in [0, vocab_size).
  virtual int64_t vocab_size() const = 0;
  // Ids of `text` with the default options. Any bytes may be given; a tokenizer of characters reads
  // each maximal part that is no UTF-8 as U+FFFD.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // The same with other options; a tokenizer without special tokens ignores them.
  virtual std::vector<int32_t> encode_with(std::string_view text,
                                           const EncodeOptions& options) const;
  // The bytes that `id` stands for, possibly a part of a character; none for an id of the range
  // that names no token. Throws invalid_argument for an id outside the vocabulary.
  virtual std::string token_bytes(int32_t id) const = 0;

  // The id of a token by its content as bytes ("<|endoftext|>", " the"), -1 if there is none.
  virtual int32_t id_of(std::string_view content) const;
  // True for tokens that mark something (an end, padding) and are left out of text for readers.
  virtual bool is_special(int32_t id) const;
  // Ids of the first and the last token of a text, -1 where the tokenizer's files name none.
  virtual int32_t bos_id() const { return -1; }
  virtual int32_t eos_id() const { return -1; }
  // What EncodeOptions::add_special puts before and after every text.
  virtual std::vector<int32_t> prefix_ids() const { return {}; }
  virtual std::vector<int32_t> suffix_ids() const { return {}; }
  // Hash of everything that decides ids: equal for equal tokenizers, whatever their path.
  virtual uint64_t fingerprint() const;

  // Where a stream of text may be cut: the largest n such that, whatever follows `text`, the ids of
  // the first n bytes and then those of the rest are the ids of all. 0: nowhere.
  virtual size_t safe_cut(std::string_view text, const EncodeOptions& options) const;

  // The bytes of all ids; not always valid UTF-8.
  std::string decode(const std::vector<int32_t>& ids) const;
  // The text of all ids as valid UTF-8: each maximal part that is none becomes U+FFFD.
  std::string decode_text(const std::vector<int32_t>& ids, bool skip_special = false) const;
};

// Ids to text, one at a time: whole characters only, as decode_text() has them. Borrows the
// tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}
  // The text that became certain with `id`, maybe none.
  std::string push(int32_t id);
  // An unfinished character at the end becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // the start of a character, at most 3 bytes
};

// Text to ids, piece by piece: the ids are those of the whole text, while memory holds a piece.
// Borrows the tokenizer.
class StreamEncoder {
 public:
  explicit StreamEncoder(const Tokenizer& tokenizer, const EncodeOptions& options = {});
  // Appends the ids that became certain with `piece` to `ids`, maybe none. What they stand for is
  // taken_bytes() of the text so far.
  void push(std::string_view piece, std::vector<int32_t>* ids);
  // The ids of the rest. A new text may follow.
  void finish(std::vector<int32_t>* ids);
  // Bytes of the text whose ids have been given out.
  int64_t taken_bytes() const { return taken_; }

 private:
  void take(size_t count, std::vector<int32_t>* ids);

  const Tokenizer* tokenizer_;
  EncodeOptions options_;
  std::string held_;
  size_t next_look_;  // bytes held at which to look for a cut
  int64_t taken_ = 0;
  bool begun_ = false;  // prefix_ids() are out
};

// Names that make_tokenizer accepts.
std::vector<std::string> tokenizer_names();
// Throws invalid_argument for an unknown name, listing the known ones.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);
// "bytes", or a folder whose tokenizer_config.json says so; a tokenizer.json of byte-level BPE; or
// a folder with one, or with vocab.json and merges.txt as GPT-2 has them (tokenizer_config.json
// beside them names BOS and EOS). A file in the current folder that is called bytes is "./bytes".
// Throws bad_file naming file and place, and unsupported naming what this version does not have
// (Unigram, WordPiece, Metaspace...).
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);

}  // namespace mamba
