// SPDX-License-Identifier: Apache-2.0
// The parts of a model card.
#include "model/model_card.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxCarried = 200;  // lines

// Quoted for YAML: a folder may be called anything.
std::string quoted(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

}  // namespace

std::string with_commas(int64_t value) {
  std::string digits = std::to_string(value);
  const int64_t first = value < 0 ? 1 : 0;
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > first; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

std::string card_name(const std::string& path) {
  fs::path p = fs::path(path).lexically_normal();
  if (p.filename().empty()) p = p.parent_path();  // "books/"
  std::error_code ignored;
  if (p.empty() || p == "." || p.filename() == "..") p = fs::weakly_canonical(path, ignored);
  const std::string name = p.filename().string();
  const std::string run = p.parent_path().filename().string();
  return name.starts_with("checkpoint-") && !run.empty() ? run + "/" + name : name;
}

std::string card_front_matter(const Config& config, const CardFacts& facts) {
  std::string text = "---\n" + facts.carried +
                     "library_name: mamba-cpp\npipeline_tag: text-generation\ntags:\n- mamba\n";
  if (config.model_type != "mamba") text += "- " + config.model_type + "\n";
  for (const std::string& tag : facts.tags) text += "- " + tag + "\n";
  if (!facts.base_model.empty()) text += "base_model: " + quoted(facts.base_model) + "\n";
  if (!facts.base_model_relation.empty()) {
    text += "base_model_relation: " + facts.base_model_relation + "\n";
  }
  if (!facts.datasets.empty()) text += "datasets:\n";
  for (const std::string& dataset : facts.datasets) text += "- " + quoted(dataset) + "\n";
  return text + facts.evaluation + "---\n";
}

std::string card_evaluation(const std::string& name, const std::string& dataset,
                            const std::vector<CardMetric>& metrics) {
  std::string text = fmt::format(
      "model-index:\n- name: {}\n  results:\n  - task:\n      type: text-generation\n    "
      "dataset:\n      name: {}\n      type: text\n    metrics:\n",
      quoted(name), quoted(dataset));
  for (const CardMetric& metric : metrics) {
    text += fmt::format("    - type: {}\n      name: {}\n      value: {:.6g}\n", metric.type,
                        quoted(metric.name), metric.value);
  }
  return text;
}

std::string card_heading(const Config& c, int64_t parameters) {
  return fmt::format(
      "# {} language model, {} parameters\n\nWidth {}, {} layers, state size {}, vocabulary {}.",
      c.mixer, with_commas(parameters), c.d_model, c.n_layer, c.d_state, c.vocab_size);
}

std::string card_file_table(const std::string& folder) {
  std::vector<std::pair<std::string, int64_t>> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "README.md") continue;
    files.emplace_back(name, static_cast<int64_t>(entry.file_size()));
  }
  std::sort(files.begin(), files.end());
  std::string text = "| file | bytes |\n|---|---:|\n";
  for (const auto& [name, bytes] : files) {
    text += fmt::format("| `{}` | {} |\n", name, with_commas(bytes));
  }
  return text;
}

std::string carried_facts(const std::string& folder, bool datasets) {
  std::ifstream in(fs::path(folder) / "README.md");
  std::string line, carried;
  if (!std::getline(in, line) || line != "---") return "";
  bool keep = false;
  for (size_t lines = 0; std::getline(in, line) && line != "---"; ++lines) {
    if (lines >= kMaxCarried) return "";
    const bool continues = line.empty() || line[0] == ' ' || line[0] == '-' || line[0] == '#';
    if (!continues) {
      const std::string key = line.substr(0, line.find(':'));
      keep = key == "license" || key == "license_name" || key == "license_link" ||
             key == "language" || (datasets && key == "datasets");
    }
    if (keep) carried += line + "\n";
  }
  return in ? carried : "";  // a block without an end is none
}

}  // namespace mamba
