// SPDX-License-Identifier: Apache-2.0
// README.md of a folder that holds a model: the front matter that model hubs read, and the parts
// that all cards share. What was trained, converted or quantised adds its own text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba/config.h"

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

// The lines of a folder's README.md front matter that stay true of what is made from the model:
// license, language, and with `datasets` those too. Empty without a card.
std::string carried_facts(const std::string& folder, bool datasets = true);

// The name under which a card speaks of a path: the last part of it, of a checkpoint with its
// run's.
std::string card_name(const std::string& path);

// "1,234,567"
std::string with_commas(int64_t value);

}  // namespace mamba
