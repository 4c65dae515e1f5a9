// SPDX-License-Identifier: Apache-2.0
// The parts of a model card.
#include "model/model_card.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>

#include "formats/gguf.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxCarried = 1000;  // lines
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// Quoted for YAML: a folder may be called anything.
std::string quoted(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

std::string card_of(const std::string& model) {
  const fs::path path(model);
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return (path / "README.md").string();
  const fs::path own = fs::path(path).replace_extension(".md");
  return (fs::exists(own, ignored) ? own : path.parent_path() / "README.md").string();
}

bool stays_true(const std::string& key, Descent descent) {
  constexpr const char* kAlways[] = {"license", "license_name", "license_link", "language"};
  constexpr const char* kOfTraining[] = {"datasets", "co2_eq_emissions"};
  constexpr const char* kOfWeights[] = {"model-index", "metrics"};
  const auto has = [&](const auto& keys) {
    return std::find(std::begin(keys), std::end(keys), key) != std::end(keys);
  };
  return has(kAlways) || (descent != Descent::kTrained && has(kOfTraining)) ||
         (descent == Descent::kSame && has(kOfWeights));
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

bool is_narrower(DType type, DType than) {
  return block_bytes(type) * block_elements(than) < block_bytes(than) * block_elements(type);
}

namespace {

struct LicenseKey {
  const char *card, *gguf;
};
constexpr LicenseKey kLicenseKeys[] = {{"license", "general.license"},
                                       {"license_name", "general.license.name"},
                                       {"license_link", "general.license.link"}};

// Plain words as they are, others in quotes.
std::string yaml_word(const std::string& value) {
  const bool plain = std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
  });
  return plain ? value : quoted(value);
}

// The value of "key: value", without quotes and a comment.
std::string yaml_value(const std::string& line) {
  size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
  if (begin == std::string::npos) return "";
  const char quote = line[begin];
  if (quote == '"' || quote == '\'') {
    const size_t end = line.find(quote, begin + 1);
    return end == std::string::npos ? "" : line.substr(begin + 1, end - begin - 1);
  }
  std::string value = line.substr(begin, line.find(" #", begin) - begin);
  while (value.ends_with(' ')) value.pop_back();
  return value;
}

bool has_key(const std::string& block, const std::string& key) {
  return block.starts_with(key + ":") || block.find("\n" + key + ":") != std::string::npos;
}

// The license that the metadata of a GGUF file name, as lines of a card.
std::string license_of_file(const std::string& model) {
  if (!is_gguf_file(model)) return "";
  const GgufFile file(model);
  std::string lines;
  for (const LicenseKey& key : kLicenseKeys) {
    const GgufValue* value = file.find_value(key.gguf);
    if (value == nullptr || value->type != GgufType::kString || value->text.empty()) continue;
    lines += fmt::format("{}: {}\n", key.card, yaml_word(value->text));
  }
  return lines;
}

std::string facts_of_card(const std::string& model, Descent descent) {
  std::ifstream in(card_of(model), std::ios::binary);
  std::string line, carried;
  // Editors of other systems begin a file with a mark, and end lines with a carriage return.
  const auto next = [&] {
    if (!std::getline(in, line)) return false;
    if (line.ends_with('\r')) line.pop_back();
    return true;
  };
  if (!next()) return "";
  if (line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
  if (line != "---") return "";
  bool keep = false;
  for (size_t lines = 0; next() && line != "---"; ++lines) {
    if (lines >= kMaxCarried) return "";
    const bool continues = line.empty() || line[0] == ' ' || line[0] == '-' || line[0] == '#';
    if (!continues) keep = stays_true(line.substr(0, line.find(':')), descent);
    if (keep) carried += line + "\n";
  }
  return in ? carried : "";  // a block without an end is none
}

}  // namespace

std::string carried_facts(const std::string& model, Descent descent) {
  const std::string facts = facts_of_card(model, descent);
  return has_key(facts, "license") ? facts : license_of_file(model) + facts;
}

std::map<std::string, std::string> license_metadata(const std::string& model) {
  std::map<std::string, std::string> found;
  std::istringstream lines(carried_facts(model, Descent::kTrained));
  for (std::string line; std::getline(lines, line);) {
    for (const LicenseKey& key : kLicenseKeys) {
      const std::string value = has_key(line, key.card) ? yaml_value(line) : "";
      if (!value.empty()) found[key.gguf] = value;
    }
  }
  return found;
}

}  // namespace mamba
