// SPDX-License-Identifier: Apache-2.0
// Files of all kinds as one stream of tokens: where its documents begin, and which of its tokens
// have a loss.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "mamba/tokenizer.h"
#include "tokenizer/conversation.h"

namespace mamba {

struct DataFormat {
  std::string dtype;  // of .bin files: "uint16", "uint32", or "" for what they say
  int threads = 0;    // that encode, 0: one per physical core; the tokens do not depend on it
  const ConversationEncoder* conversations = nullptr;  // for lines with messages
  std::vector<std::string>* notices = nullptr;         // told which files are left out
};

// The tokens of files, one document behind the other. Documents of text end with the tokenizer's
// EOS, if it has one, conversations as ConversationEncoder ends them; .bin files have what is in
// them. With the byte tokenizer text stays mapped,
// as .bin always does; other files are encoded once. Immutable once made.
class TokenStream {
 public:
  // `what` names the option in messages, e.g. "--data". Paths are files or folders, see
  // list_data_files. Throws bad_file for what is missing, not readable, wrong (with its file and
  // line) or without a token.
  TokenStream(const std::vector<std::string>& paths, const Tokenizer& tokenizer,
              const std::string& what, const DataFormat& format = {});

  int64_t size() const { return size_; }
  const std::vector<std::string>& files() const { return files_; }
  // Document d is tokens [documents()[d], documents()[d + 1]); none is empty. A document ends at
  // the end of a file, of a line of JSONL, and behind each EOS of a text or a .bin.
  const std::vector<int64_t>& documents() const { return documents_; }
  int64_t document_count() const { return static_cast<int64_t>(documents_.size()) - 1; }
  int32_t eos_id() const { return eos_; }

  // Tokens [begin, begin + count) of the stream.
  void read(int64_t begin, int64_t count, int32_t* out) const;
  // The same as targets: -1 for those without a loss.
  void read_targets(int64_t begin, int64_t count, int32_t* out) const;
  bool all_scored() const { return scored_ == size_; }
  int64_t scored() const { return scored_; }  // tokens with a loss

  // 16 hex digits over the size and 256 blocks spread over the stream: tells data sets apart at the
  // cost of reading 1 MiB. With documents, over where those begin too.
  std::string fingerprint(bool with_documents = false) const;

 private:
  // Tokens from one place: a mapped file, or memory.
  struct Part {
    int64_t begin = 0;  // of its first token in the stream
    int64_t count = 0;
    int width = 1;  // bytes of an id
    std::optional<MappedFile> file;
    std::vector<uint16_t> narrow;  // ids of vocabularies up to 65,536
    std::vector<int32_t> wide;     // of others
    std::vector<bool> scored;      // by token; empty: all are
    std::vector<int64_t> ends;     // of documents, in tokens of the part
    int64_t unscored = 0;

    void append(const std::vector<int32_t>& ids, bool has_loss);
    void end_document();
    // Calls use(ids) with the ids as they are stored: const uint8_t*, uint16_t* or uint32_t*.
    template <class Use>
    void with_ids(const Use& use) const;
  };

  Part new_part() const;
  void add_text(const std::string& path, const Tokenizer& tokenizer, int threads);
  void add_mapped_text(const std::string& path);
  void add_jsonl(const std::string& path, const Tokenizer& tokenizer, const DataFormat& format,
                 int threads);
  // One line of JSONL as one document.
  void append_line(std::string_view line, const std::string& where, const Tokenizer& tokenizer,
                   const DataFormat& format, Part* part) const;
  void add_tokens(const std::string& path, const Tokenizer& tokenizer, const std::string& dtype);
  void add(Part part);
  // A document that is still open ends here, with the EOS where `with_eos`.
  void close_document(bool with_eos);
  // Calls copy(part, first token of it, count, where in the range) for each part of a range.
  template <class Copy>
  void for_parts(int64_t begin, int64_t count, const Copy& copy) const;

  std::vector<std::string> files_;
  std::vector<Part> parts_;
  std::vector<int64_t> documents_ = {0};
  int64_t size_ = 0, scored_ = 0;
  int32_t eos_ = -1;
  bool narrow_ = true;
};

}  // namespace mamba
