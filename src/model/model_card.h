// SPDX-License-Identifier: Apache-2.0
// README.md of a folder that holds a model: the front matter that model hubs read, and the parts
// that all cards share. What was trained, converted or quantised adds its own text.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mamba/config.h"
#include "mamba/dtype.h"

namespace mamba {

// The YAML block. Empty fields are left out.
struct CardFacts {
  std::string base_model;           // the model it was made from
  std::string base_model_relation;  // "quantized", "finetune" or "adapter"
  std::vector<std::string> tags;    // after "mamba" and the model type
  std::string carried;              // lines of another card's block, see carried_facts
  std::vector<std::string> datasets;
  std::string evaluation;  // lines below "model-index", see card_evaluation
};
std::string card_front_matter(const Config& config, const CardFacts& facts);

// What was measured on held-out data, as the hub's model-index has it. `name` is the model's.
struct CardMetric {
  std::string type, name;  // "perplexity", "bits per byte"
  double value = 0;
};
std::string card_evaluation(const std::string& name, const std::string& dataset,
                            const std::vector<CardMetric>& metrics);

// "# mamba1 language model, 129,135,360 parameters" and a sentence of its sizes.
std::string card_heading(const Config& config, int64_t parameters);

// A table of the files in a folder with their sizes, but for README.md.
std::string card_file_table(const std::string& folder);

// What is made from a model: other weights (trained further), fewer bits of the same ones, or
// nothing but another form of them.
enum class Descent : uint8_t { kTrained, kNarrowed, kSame };
// Whether a type holds fewer bits of a number than another one.
bool is_narrower(DType type, DType than);

// The lines of the front matter of a model's card that stay true of what is made from it: license
// and language, unless it was trained what it was trained on, and results of the same weights. The
// card is README.md of a folder; beside a file X.gguf it is X.md, or else README.md. Where it names
// no license, that of the file's metadata counts. Empty without all of them.
std::string carried_facts(const std::string& model, Descent descent);

// What carried_facts says of the license, by keys of GGUF: "general.license", and its name and
// link.
std::map<std::string, std::string> license_metadata(const std::string& model);

// The name under which a card speaks of a path: the last part of it, of a checkpoint with its
// run's.
std::string card_name(const std::string& path);

// "1,234,567"
std::string with_commas(int64_t value);

}  // namespace mamba
