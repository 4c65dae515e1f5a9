// SPDX-License-Identifier: Apache-2.0
// A training run small enough to be repeated many times: a tiny model and a text that it can learn.
#pragma once

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "formats/hf_config.h"
#include "mamba/train.h"
#include "model/cases.h"
#include "support/expect_error.h"

namespace mamba::test {

inline std::string file_content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// Words that follow each other by a simple rule.
inline std::string sample_text(int64_t bytes) {
  const char* words[] = {"the ",   "model ", "reads ", "one ",
                         "token ", "and ",   "keeps ", "a state. "};
  std::string text;
  for (int64_t i = 0; static_cast<int64_t>(text.size()) < bytes; ++i) {
    text += words[(i * 5 + i / 7) % 8];
  }
  return text.substr(0, static_cast<size_t>(bytes));
}

// A folder with "text", "valid" and "config.json", and options of a run of 30 steps over them.
class SmallRun {
 public:
  explicit SmallRun(const std::string& mixer = "mamba1") {
    Config config = mixer == "mamba1" ? small_mamba1() : small_mamba2();
    config.vocab_size = 256;
    config.d_model = 16;
    write_text(folder_ / "config.json", write_config(config));
    write_text(folder_ / "text", sample_text(6000));
    write_text(folder_ / "valid", sample_text(900));
    options.model_config = folder_ / "config.json";
    options.data = {folder_ / "text"};
    options.valid = {folder_ / "valid"};
    options.output_dir = out("out");
    options.max_steps = 30;
    options.batch_size = 4;
    options.seq_len = 24;
    options.learning_rate = 1e-2;
    options.warmup_steps = 3;
    options.eval_steps = 10;
    options.eval_batches = 2;
    options.logging_steps = 1;
    options.save_steps = 5;
    options.save_total_limit = 0;
    options.threads = 1;
    options.seed = 11;
  }

  std::string out(const std::string& name) const { return folder_ / name; }
  const ScratchFolder& folder() const { return folder_; }
  TrainOptions options;

 private:
  ScratchFolder folder_;
};

// The lines of metrics.jsonl without what depends on the clock.
inline std::vector<std::string> timeless_metrics(const std::string& output_dir) {
  std::vector<std::string> lines;
  std::ifstream in(output_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    Json json = Json::parse(line);
    json.erase("seconds");
    json.erase("tokens_per_second");
    lines.push_back(json.dump());
  }
  return lines;
}

}  // namespace mamba::test
