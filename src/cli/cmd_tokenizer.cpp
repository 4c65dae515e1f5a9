// SPDX-License-Identifier: Apache-2.0
// mamba-cpp tokenizer train: learns a byte-level BPE vocabulary and writes it as a tokenizer.json.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/line_reader.h"
#include "tokenizer/bpe_trainer.h"
#include "tokenizer/conversation.h"
#include "train/data_files.h"
#include "train/data_jsonl.h"

namespace mamba::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct TrainFlags {
  std::vector<std::string> data;
  std::string out;
  std::vector<std::string> special{"<|endoftext|>"};
  int64_t vocab_size = 0, min_frequency = 2, limit_bytes = 0;
  bool no_special = false, json = false;
};

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

class TokenizerTrain {
 public:
  explicit TokenizerTrain(const TrainFlags& flags) : flags_(flags), trainer_(options_of(flags)) {}

  int run() {
    check_folder();
    catch_interrupt();
    const auto start = Clock::now();
    std::vector<std::string> notices;
    const std::vector<std::string> files = list_data_files(flags_.data, "--data", &notices, false);
    for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
    for (const std::string& path : files) {
      if (left() <= 0) break;
      data_kind_of(path) == DataKind::kJsonl ? read_jsonl(path) : read(path);
    }
    const std::string text = trainer_.train([this](int64_t size) {
      show(fmt::format("{} of {} tokens", size, flags_.vocab_size));
      return !interrupted();
    });
    write(text);
    report(std::chrono::duration<double>(Clock::now() - start).count());
    return 0;
  }

 private:
  static BpeTrainOptions options_of(const TrainFlags& flags) {
    BpeTrainOptions options;
    options.vocab_size = flags.vocab_size;
    options.min_frequency = flags.min_frequency;
    if (!flags.no_special) options.special = flags.special;
    return options;
  }

  // A vocabulary is tied to the models that were trained with it: none is written over another.
  void check_folder() const {
    std::error_code ignored;
    for (const char* name : {"tokenizer.json", "vocab.json"}) {
      if (!fs::exists(fs::path(flags_.out) / name, ignored)) continue;
      fail(ErrorCode::kInvalidArgument,
           "[--out] expected a folder without a tokenizer, got '{}', which has a {}; name another",
           flags_.out, name);
    }
    if (fs::exists(flags_.out, ignored) && !fs::is_directory(flags_.out, ignored)) {
      fail(ErrorCode::kInvalidArgument, "[--out] expected a folder, got the file '{}'", flags_.out);
    }
  }

  int64_t left() const {
    return flags_.limit_bytes == 0 ? std::numeric_limits<int64_t>::max()
                                   : flags_.limit_bytes - read_bytes_;
  }

  void read(const std::string& path) {
    const std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "rb"));
    std::error_code ignored;
    if (file == nullptr || fs::is_directory(path, ignored)) fail_to_read(path);
    std::string block(size_t{1} << 20, '\0');
    for (;;) {
      const auto wanted =
          static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(block.size()), left()));
      const size_t got = read_block(file.get(), block.data(), wanted);
      if (got < wanted && std::ferror(file.get())) fail_to_read(path);
      trainer_.add(std::string_view(block).substr(0, got));
      read_bytes_ += static_cast<int64_t>(got);
      if (got < block.size()) break;
      show(fmt::format("{} MB read", read_bytes_ / 1'000'000));
    }
    trainer_.end_text();
  }

  // The texts of lines as train reads them; a text that the limit cuts is the last one.
  void read_jsonl(const std::string& path) {
    const auto add = [&](std::string_view text) {
      text = text.substr(0, static_cast<size_t>(std::max<int64_t>(left(), 0)));
      trainer_.add(text);
      trainer_.end_text();
      read_bytes_ += static_cast<int64_t>(text.size());
    };
    LineReader lines(path);
    for (std::string line; left() > 0 && lines.next(&line);) {
      std::string_view text = line;
      if (lines.number() == 1 && text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
      const JsonlDocument document = parse_jsonl_line(text, lines.where());
      for (const TextPiece& piece : document.pieces) add(piece.text);
      for (const ChatMessage& message : document.messages) add(message.content);
      if (lines.number() % 10'000 == 0) show(fmt::format("{} MB read", read_bytes_ / 1'000'000));
    }
  }

  [[noreturn]] static void fail_to_read(const std::string& path) {
    fail(ErrorCode::kBadFile, "[--data] expected a readable file, got '{}' ({}); check the path",
         path, std::strerror(errno));
  }

  void write(const std::string& text) const {
    std::error_code error;
    fs::create_directories(flags_.out, error);
    if (error) {
      fail(ErrorCode::kIo, "[--out] expected a folder that can be made, got '{}' ({})", flags_.out,
           error.message());
    }
    nlohmann::ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                     {"clean_up_tokenization_spaces", false}};
    if (!flags_.no_special) {
      for (const char* key : {"bos_token", "eos_token"}) config[key] = flags_.special.front();
    }
    write_file_atomic((fs::path(flags_.out) / "tokenizer_config.json").string(),
                      config.dump(2) + "\n");
    write_file_atomic((fs::path(flags_.out) / "tokenizer.json").string(), text);
  }

  void report(double seconds) const {
    show("");
    if (flags_.json) {
      const nlohmann::ordered_json json = {{"vocab_size", trainer_.vocab_size()},
                                           {"bytes", read_bytes_},
                                           {"distinct_words", trainer_.distinct_words()},
                                           {"seconds", seconds},
                                           {"out", flags_.out}};
      write_output(json_text(json));
      return;
    }
    fmt::print(stderr, "{} tokens from {:.1f} MB ({} different words) in {:.1f} s: {}\n",
               trainer_.vocab_size(), static_cast<double>(read_bytes_) / 1e6,
               trainer_.distinct_words(), seconds, flags_.out);
    if (trainer_.vocab_size() < flags_.vocab_size) {
      fmt::print(stderr, "note: no pair is left that occurs {} times\n", flags_.min_frequency);
    }
  }

  void show(const std::string& text) const {
    if (::isatty(STDERR_FILENO) != 0) fmt::print(stderr, "\r{}\033[K", text);
  }

  const TrainFlags& flags_;
  BpeTrainer trainer_;
  int64_t read_bytes_ = 0;
};

}  // namespace

CommandRun add_tokenizer(CLI::App& parent) {
  CLI::App* group = parent.add_subcommand("tokenizer", "Make a tokenizer");
  group->require_subcommand(1);
  CLI::App* app = group->add_subcommand(
      "train", "Learn a byte-level BPE vocabulary (tokenizer.json) from text");
  auto flags = std::make_shared<TrainFlags>();
  add_int(*app, "--vocab-size", &flags->vocab_size, 1, int64_t{1} << 20,
          "Tokens to end with: the special ones, 256 bytes, and one for each merge")
      ->default_str("")
      ->required();
  app->add_option(
         "--data", flags->data,
         "Text or JSONL (text, prompt and response, or messages), or folders of them, to learn "
         "from")
      ->type_name("FILE|DIR...")
      ->required();
  add_text(*app, "--out", &flags->out, "DIR", "Folder for tokenizer.json; made if it is not there")
      ->required();
  CLI::Option* special =
      app->add_option("--special", flags->special,
                      "Special tokens, ids 0, 1, ...; the first one ends a text (<|endoftext|>)")
          ->type_name("TOKEN...");
  app->add_flag("--no-special", flags->no_special, "No special tokens")->excludes(special);
  add_int(*app, "--min-frequency", &flags->min_frequency, 1, int64_t{1} << 40,
          "Merge only pairs that occur as often");
  add_int(*app, "--limit-bytes", &flags->limit_bytes, 0, std::numeric_limits<int64_t>::max(),
          "Read no more of the text; 0: all of it");
  app->add_flag("--json", flags->json, "What was done as JSON on standard output");
  add_examples(*app, {{"A vocabulary of 4096 tokens from a folder of books",
                       "mamba-cpp tokenizer train --data books --vocab-size 4096 --out bpe4096"}});
  return [flags] { return TokenizerTrain(*flags).run(); };
}

}  // namespace mamba::cli
