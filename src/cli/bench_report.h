// SPDX-License-Identifier: Apache-2.0
// Rows of `mamba-cpp bench` as a Markdown table, CSV, JSON, JSON lines or SQL, with llama-bench's
// columns and field names and a few more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mamba::cli {

struct BenchRow {
  std::string model_filename, model_type;
  int64_t model_size = 0, model_n_params = 0;  // bytes of the weights in memory
  bool random_weights = false;
  std::string backend, isa, dtype;
  int64_t n_threads = 0, n_batch = 0, n_ubatch = 0;
  std::string test;
  int64_t n_prompt = 0, n_gen = 0, n_depth = 0, n_train = 0, n_sequences = 1;
  int64_t tokens = 0;           // of one repetition
  std::vector<double> seconds;  // of each repetition
  double load_seconds = 0;      // 0 with random weights
  int64_t state_bytes = 0;      // of one sequence
  int64_t peak_rss = 0;
};

class BenchReport {
 public:
  // md, csv, json, jsonl or sql; "none" prints nothing.
  explicit BenchReport(std::string format) : format_(std::move(format)) {}
  // What is to be printed for a row, in the order of calls; begin() first, end() last.
  std::string begin() const;
  std::string row(const BenchRow& row);
  // `error`: an object that takes the place of the rows that did not come; "": there is none.
  std::string end(const std::string& error = "");

 private:
  std::string format_;
  int64_t rows_ = 0;
  std::vector<BenchRow> models_;  // the last row of each model, dtype and number of threads
};

}  // namespace mamba::cli
