// SPDX-License-Identifier: Apache-2.0
// What was quantised, as a table, as JSON and as a model card.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "mamba/evaluate.h"
#include "mamba/quantize.h"

namespace mamba::cli {

struct QuantizeReport {
  std::string in, out, type, imatrix, eval_text;
  bool dry_run = false;
  QuantizeResult result;
  std::optional<DivergenceResult> quality;  // of the new file from the model it was made of
};

std::string quantize_table(const QuantizeReport& report);
nlohmann::ordered_json quantize_json(const QuantizeReport& report);
// README text for the file; beside NAME.gguf it is NAME.md.
std::string quantize_card(const QuantizeReport& report);
std::string quantize_card_path(const std::string& out);
// Throws invalid_argument where something else than a model card lies there.
void expect_card_place(const std::string& out);

}  // namespace mamba::cli
