// SPDX-License-Identifier: Apache-2.0
// mamba-cpp tokenize: text to ids and back, as a stream, by lines of JSON, or into a token file.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "mamba/tokenizer.h"
#include "tokenizer/conversation.h"
#include "tokenizer/files.h"
#include "tokenizer/token_file.h"

namespace mamba::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBlock = size_t{1} << 20;
constexpr size_t kOutput = size_t{1} << 16;  // gathered before it is written
constexpr size_t kMaxLine = size_t{256} << 20;

struct TokenizeFlags {
  std::string tokenizer, file = "-", out, dtype = "auto", chat_template;
  bool jsonl = false, decode = false, json = false, no_special = false, add_special = false;
  bool skip_special = false, stats = false;
};

struct CloseFile {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};

// The input, in blocks or in lines.
class Input {
 public:
  explicit Input(const std::string& path)
      : path_(path), file_(path == "-" ? stdin : std::fopen(path.c_str(), "rb")) {
    if (file_ == nullptr) fail_to_read();
  }

  const std::string& path() const { return path_; }
  // Empty at the end; valid until the next call.
  std::string_view block() {
    buffer_.resize(kBlock);
    const size_t got = read_block(file_.get(), buffer_.data(), kBlock);
    if (got < kBlock && std::ferror(file_.get())) fail_to_read();
    return std::string_view(buffer_).substr(0, got);
  }
  // Without its line feed; nothing at the end.
  std::optional<std::string> line() {
    size_t searched = 0;
    for (;;) {
      const size_t end = held_.find('\n', searched);
      if (end != std::string::npos) {
        std::string found = held_.substr(0, end);
        held_.erase(0, end + 1);
        return found;
      }
      searched = held_.size();
      if (held_.size() > kMaxLine) {
        fail(ErrorCode::kBadFile, "[{}] expected lines of at most {} bytes, got a longer one",
             path_, kMaxLine);
      }
      const std::string_view more = block();
      held_ += more;
      if (!more.empty()) continue;
      if (held_.empty()) return std::nullopt;
      return std::exchange(held_, "");
    }
  }

 private:
  [[noreturn]] void fail_to_read() const {
    fail(ErrorCode::kBadFile, "[tokenize] expected a readable file, got '{}' ({}); check the path",
         path_, std::strerror(errno));
  }
  std::string path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::string buffer_, held_;
};

class Output {  // to standard output, in large parts
 public:
  void add(std::string_view text) {
    held_ += text;
    if (held_.size() >= kOutput) flush();
  }
  void flush() {
    write_output(held_);
    held_.clear();
  }

 private:
  std::string held_;
};

void append_ids(const std::vector<int32_t>& ids, const char* separator, bool* any,
                std::string* out) {
  for (const int32_t id : ids) {
    if (*any) *out += separator;
    *any = true;
    const fmt::format_int text(id);
    out->append(text.data(), text.size());
  }
}

class TokenizeCommand {
 public:
  explicit TokenizeCommand(const TokenizeFlags& flags) : flags_(flags) {
    check_flags();
    tokenizer_ = load_tokenizer(flags.tokenizer);
    options_.parse_special = !flags.no_special;
    options_.add_special = flags.add_special;
    if (!flags.out.empty()) {
      const int bytes = flags.dtype == "auto"     ? bytes_per_token(tokenizer_->vocab_size())
                        : flags.dtype == "uint16" ? 2
                                                  : 4;
      expect_token_file_place("--out", flags.out, flags.file == "-" ? "" : flags.file);
      expect_writable(token_file_info_path(flags.out));
      writer_ = std::make_unique<TokenFileWriter>(flags.out, *tokenizer_, bytes);
    }
    conversations_ = std::make_unique<ConversationEncoder>(
        *tokenizer_, tokenizer_folder(flags.tokenizer), flags.chat_template);
    input_ = std::make_unique<Input>(flags.file);
  }

  int run() {
    catch_interrupt();
    const auto start = Clock::now();
    if (flags_.decode) {
      flags_.jsonl ? decode_lines() : decode_stream();
    } else {
      flags_.jsonl ? encode_lines() : encode_stream();
    }
    output_.flush();
    if (writer_ != nullptr) writer_->finish(bytes_, documents_);
    report(std::chrono::duration<double>(Clock::now() - start).count());
    return 0;
  }

 private:
  void check_flags() const {
    const bool has_template = !flags_.chat_template.empty();
    const std::pair<bool, const char*> only_encode[] = {{!flags_.out.empty(), "--out"},
                                                        {flags_.no_special, "--no-special"},
                                                        {flags_.add_special, "--add-special"},
                                                        {has_template, "--chat-template"}};
    for (const auto& [given, name] : only_encode) {
      if (!flags_.decode || !given) continue;
      fail(ErrorCode::kInvalidArgument, "[tokenize] expected --decode or {}, got both", name);
    }
    if (has_template && !flags_.decode && !flags_.jsonl) {
      fail(ErrorCode::kInvalidArgument,
           "[--chat-template] expected --jsonl with it, got none; conversations are lines of JSON");
    }
    if (flags_.out.empty() && flags_.dtype != "auto") {
      fail(ErrorCode::kInvalidArgument, "[--dtype] expected --out with it, got none; add it");
    }
    if (flags_.json && (flags_.jsonl || flags_.decode)) {
      fail(ErrorCode::kInvalidArgument,
           "[--json] expected ids of a text, got --jsonl or --decode; leave one out");
    }
  }

  void encode_stream() {
    StreamEncoder encoder(*tokenizer_, options_);
    std::vector<int32_t> ids;
    bool any = false;
    if (flags_.json && writer_ == nullptr) output_.add("{\"ids\":[");
    const auto give = [&] {
      std::string text;
      if (writer_ != nullptr) {
        writer_->append(ids);
      } else {
        append_ids(ids, flags_.json ? "," : " ", &any, &text);
      }
      output_.add(text);
      tokens_ += static_cast<int64_t>(ids.size());
      ids.clear();
    };
    for (std::string_view block = input_->block(); !block.empty(); block = input_->block()) {
      bytes_ += static_cast<int64_t>(block.size());
      encoder.push(block, &ids);
      give();
    }
    encoder.finish(&ids);
    give();
    documents_ = 1;
    if (flags_.json) {
      output_.add(fmt::format("{}\"tokens\":{},\"bytes\":{}}}\n", writer_ == nullptr ? "]," : "{",
                              tokens_, bytes_));
    } else if (writer_ == nullptr) {
      output_.add("\n");
    }
  }

  // "file line 3" for messages.
  std::string where() const {
    return fmt::format("{} line {}", flags_.file == "-" ? "standard input" : flags_.file, lines_);
  }

  // The next line's object; nothing at the end. Empty lines are passed over.
  std::optional<Json> next_object() {
    for (;;) {
      const std::optional<std::string> line = input_->line();
      if (!line) return std::nullopt;
      ++lines_;
      if (line->find_first_not_of(" \t\r") == std::string::npos) continue;
      Json json = parse_json(*line, where(), {kMaxLine, 64});
      if (!json.is_object()) {
        fail(ErrorCode::kBadFile, "[{}] expected a JSON object, got {}", where(),
             printable_json(json));
      }
      return json;
    }
  }

  // A line with "messages": ids as training has them, and a mask of those that have a loss there.
  void encode_conversation(const Json& json) {
    if (has_member(json, "text")) {
      fail(ErrorCode::kBadFile, "[{}] expected \"text\" or \"messages\", got both", where());
    }
    const std::vector<ChatMessage> messages = parse_messages(json["messages"], where());
    std::string ids = "{\"ids\":[", mask;
    bool any = false;
    for (const ScoredIds& piece : conversations_->encode(messages, where())) {
      tokens_ += static_cast<int64_t>(piece.ids.size());
      if (writer_ != nullptr) {
        writer_->append(piece.ids);
        continue;
      }
      append_ids(piece.ids, ",", &any, &ids);
      for (size_t i = 0; i < piece.ids.size(); ++i) mask += piece.scored ? ",1" : ",0";
    }
    for (const ChatMessage& m : messages) bytes_ += static_cast<int64_t>(m.content.size());
    if (writer_ == nullptr) output_.add(ids + "],\"assistant_masks\":[" + mask.substr(1) + "]}\n");
  }

  void encode_lines() {
    const int32_t end = writer_ != nullptr ? tokenizer_->eos_id() : -1;
    while (const std::optional<Json> json = next_object()) {
      ++documents_;
      if (has_member(*json, "messages")) {
        encode_conversation(*json);
        continue;
      }
      const std::string text = get_string(*json, "text", where());
      std::vector<int32_t> ids = tokenizer_->encode_with(text, options_);
      bytes_ += static_cast<int64_t>(text.size());
      tokens_ += static_cast<int64_t>(ids.size());
      if (writer_ != nullptr) {
        if (end >= 0 && (ids.empty() || ids.back() != end)) ids.push_back(end);
        writer_->append(ids);
        continue;
      }
      std::string out = "{\"ids\":[";
      bool any = false;
      append_ids(ids, ",", &any, &out);
      output_.add(out + "]}\n");
    }
  }

  void check_id(int64_t id, const std::string& where) const {
    if (id >= 0 && id < tokenizer_->vocab_size()) return;
    fail(ErrorCode::kBadFile, "[{}] expected ids in 0..{}, got {}; use the tokenizer of these ids",
         where, tokenizer_->vocab_size() - 1, id);
  }

  void decode_lines() {
    while (const std::optional<Json> json = next_object()) {
      const Json& list = get_member(*json, "ids", where());
      if (!list.is_array()) {
        fail(ErrorCode::kBadFile, "[{}] expected \"ids\" to be a list of numbers, got {}", where(),
             printable_json(list));
      }
      std::vector<int32_t> ids;
      for (const Json& id : list) {
        const bool fits = id.is_number_unsigned() && id.get<uint64_t>() < uint64_t{1} << 31;
        if (!fits) {
          fail(ErrorCode::kBadFile, "[{}] expected ids in 0..{}, got {}", where(),
               tokenizer_->vocab_size() - 1, printable_json(id));
        }
        check_id(id.get<int64_t>(), where());
        ids.push_back(id.get<int32_t>());
      }
      const std::string text = tokenizer_->decode_text(ids, flags_.skip_special);
      tokens_ += static_cast<int64_t>(ids.size());
      bytes_ += static_cast<int64_t>(text.size());
      output_.add(Json{{"text", text}}.dump() + "\n");
    }
  }

  void decode_word(std::string_view word, StreamDecoder* decoder) {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    const std::string place = fmt::format(
        "{} number {}", flags_.file == "-" ? "standard input" : flags_.file, tokens_ + 1);
    if (error != std::errc() || end != word.data() + word.size()) {
      fail(ErrorCode::kBadFile, "[{}] expected an id, got '{}'; ids stand with spaces between them",
           place, printable(word));
    }
    check_id(id, place);
    ++tokens_;
    const std::string text = decoder->push(static_cast<int32_t>(id));
    bytes_ += static_cast<int64_t>(text.size());
    output_.add(text);
  }

  void decode_stream() {
    constexpr std::string_view kBetween = " \t\r\n,";
    StreamDecoder decoder(*tokenizer_, flags_.skip_special);
    std::string word;  // may go on in the next block
    for (std::string_view block = input_->block(); !block.empty(); block = input_->block()) {
      for (const char c : block) {
        if (kBetween.find(c) == std::string_view::npos) {
          word += c;
          if (word.size() <= 20) continue;  // no number is longer: let it be refused
        }
        if (!word.empty()) decode_word(word, &decoder);
        word.clear();
      }
    }
    if (!word.empty()) decode_word(word, &decoder);
    output_.add(decoder.finish());
  }

  void report(double seconds) const {
    if (!flags_.stats && ::isatty(STDERR_FILENO) == 0) return;
    const auto bytes = static_cast<double>(bytes_), tokens = static_cast<double>(tokens_);
    fmt::print(stderr, "{} tokens, {} bytes, {:.3f} bytes per token, {:.1f} MB/s\n", tokens_,
               bytes_, tokens > 0 ? bytes / tokens : 0, seconds > 0 ? bytes / seconds / 1e6 : 0);
  }

  const TokenizeFlags& flags_;
  std::unique_ptr<Tokenizer> tokenizer_;
  EncodeOptions options_;
  std::unique_ptr<ConversationEncoder> conversations_;
  std::unique_ptr<TokenFileWriter> writer_;
  std::unique_ptr<Input> input_;
  Output output_;
  int64_t tokens_ = 0, bytes_ = 0, documents_ = 0, lines_ = 0;
};

}  // namespace

CommandRun add_tokenize(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("tokenize", "Turn text into token ids, or back");
  auto flags = std::make_shared<TokenizeFlags>();
  add_text(*app, "--tokenizer", &flags->tokenizer, "bytes|DIR|FILE",
           "bytes, a tokenizer.json, or a folder with one (a model folder, say)")
      ->required();
  add_text(*app, "-f,--file", &flags->file, "FILE", "What to read; -: standard input")
      ->default_str("-");
  app->add_flag("--jsonl", flags->jsonl,
                "Lines {\"text\"} or {\"messages\"} in and lines {\"ids\"} out; with --decode the "
                "reverse");
  add_text(*app, "--chat-template", &flags->chat_template, "NAME|TEXT",
           "Of lines with messages: chatml, falcon-mamba, mistral, plain, zephyr, or Jinja text; "
           "default: the tokenizer's own, else plain");
  app->add_flag("--decode", flags->decode, "Ids in, text out");
  add_text(
      *app, "--out", &flags->out, "FILE",
      "Write a token file for training (FILE.bin, described by FILE.json) and no ids; with "
      "--jsonl each text is ended by the end token, if there is one; it has no mask of losses");
  add_choice(*app, "--dtype", &flags->dtype, {"auto", "uint16", "uint32"},
             "Numbers of the token file; auto: the smaller one that holds the vocabulary");
  app->add_flag("--json", flags->json, "One JSON object instead of the line of ids");
  app->add_flag("--no-special", flags->no_special,
                "Take the names of special tokens in the text as text");
  app->add_flag("--add-special", flags->add_special,
                "Also the ids that the tokenizer puts around a text");
  app->add_flag("--skip-special", flags->skip_special, "With --decode: leave special tokens out")
      ->needs(app->get_option("--decode"));
  app->add_flag("--stats", flags->stats, "Tokens, bytes and speed on standard error");
  add_examples(*app, {{"The ids of a text", "mamba-cpp tokenize --tokenizer MODEL -f text.txt"},
                      {"A token file for training",
                       "mamba-cpp tokenize --tokenizer DIR -f books.txt --out books.bin"}});
  return [flags] { return TokenizeCommand(*flags).run(); };
}

}  // namespace mamba::cli
