// SPDX-License-Identifier: Apache-2.0
// mamba-cpp bench -m MODEL: llama-bench's tests, and those that it has not: several sequences
// together, training steps, the time of loading, memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/args.h"

namespace mamba::cli {

struct SpeedFlags {
  std::vector<std::string> models;
  std::string prompt = "512", gen = "128", prompt_gen, depth = "0";
  std::string batch, ubatch, threads = "0", sequences = "1", train;
  std::string dtypes = "f32", state_dtype = "f32", isa = "auto", output = "md";
  std::string device = "cpu";
  std::string output_err = "none";
  int64_t repetitions = 5, delay = 0;
  bool no_warm_up = false, json = false, progress = false, verbose = false;
  bool dtype_given = false, pin = false;
  RunOptions caching;  // the flags of add_cache_options and add_backend
};

void add_speed_options(CLI::App& app, SpeedFlags* flags);
// `dtypes`: the words that --dtype may list.
int run_speed(const SpeedFlags& flags, const std::vector<std::string>& dtypes);

// Names of models between commas, unless there is a file or folder of the whole name.
std::vector<std::string> model_list(const std::vector<std::string>& texts);
// Words of --dtype between commas.
std::vector<std::string> dtype_list(const std::string& text,
                                    const std::vector<std::string>& allowed);
// "8x256,2x512" as pairs of numbers in 1..high, and "512,128,1024,64".
std::vector<std::pair<int64_t, int64_t>> parse_products(const std::string& flag,
                                                        const std::string& text, int64_t high);
std::vector<std::pair<int64_t, int64_t>> parse_pairs(const std::string& flag,
                                                     const std::string& text, int64_t high);

}  // namespace mamba::cli
