// SPDX-License-Identifier: Apache-2.0
// The table, the JSON and the card of mamba-cpp quantize and convert --to gguf.
#include "cli/quantize_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/check.h"
#include "base/mapped_file.h"
#include "formats/tensor_table.h"
#include "mamba/version.h"
#include "model/model_card.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

struct OfType {
  int64_t tensors = 0, bytes = 0;
};

std::map<DType, OfType> by_type(const QuantizeResult& r) {
  std::map<DType, OfType> types;
  for (const QuantizedTensor& t : r.tensors) {
    types[t.to].tensors += 1;
    types[t.to].bytes += t.bytes_after;
  }
  return types;
}

double bits_per_weight(const QuantizeResult& r) {
  return 8.0 * static_cast<double>(r.bytes_after) / static_cast<double>(parameter_count(r.config));
}

std::string type_words(const QuantizeReport& r) {
  return r.type.empty() ? "the types of the model" : r.type;
}

}  // namespace

std::string quantize_table(const QuantizeReport& report) {
  const QuantizeResult& r = report.result;
  size_t width = 6;
  for (const QuantizedTensor& t : r.tensors) width = std::max(width, t.name.size());
  std::string text = fmt::format("{:<{}}  {:<15} {:<6} {:<6} {:>10}  {}\n", "tensor", width,
                                 "shape", "from", "to", "MiB", report.dry_run ? "" : "error");
  for (const QuantizedTensor& t : r.tensors) {
    text += fmt::format(
        "{:<{}}  {:<15} {:<6} {:<6} {:>10.3f}  {:<8}{}\n", t.name, width, shape_text(t.shape),
        dtype_name(t.from), dtype_name(t.to), mib(t.bytes_after),
        t.relative_error > 0 ? fmt::format("{:.2f} %", 100 * t.relative_error) : "", t.note);
    while (text.size() > 1 && text[text.size() - 2] == ' ') text.erase(text.size() - 2, 1);
  }
  text += "\n";
  for (const auto& [type, sum] : by_type(r)) {
    text += fmt::format("{:<6} {:>5} {:<7} {:>10.3f} MiB\n", dtype_name(type), sum.tensors,
                        sum.tensors == 1 ? "tensor" : "tensors", mib(sum.bytes));
  }
  text +=
      fmt::format("all    {:>5} tensors {:>10.3f} MiB, {:.2f} bits a weight, before {:.3f} MiB\n",
                  r.tensors.size(), mib(r.bytes_after), bits_per_weight(r), mib(r.bytes_before));
  for (const std::string& file : r.files) text += fmt::format("written {}\n", file);
  if (report.quality) {
    const DivergenceResult& q = *report.quality;
    text += fmt::format(
        "perplexity {:.6f}, before {:.6f} ({:+.3f} %); KL {:.6f} +- {:.6f} nats a token; same top "
        "{:.3f} %\n",
        q.perplexity_model, q.perplexity_base, 100 * (q.perplexity_model / q.perplexity_base - 1),
        q.kl_mean, q.kl_error, 100 * q.same_top);
  }
  return text;
}

OrderedJson quantize_json(const QuantizeReport& report) {
  const QuantizeResult& r = report.result;
  OrderedJson tensors = OrderedJson::array();
  for (const QuantizedTensor& t : r.tensors) {
    OrderedJson json = {{"name", t.name},
                        {"shape", t.shape},
                        {"from", dtype_name(t.from)},
                        {"to", dtype_name(t.to)},
                        {"bytes_before", t.bytes_before},
                        {"bytes", t.bytes_after}};
    if (!report.dry_run) json["relative_error"] = t.relative_error;
    if (!t.note.empty()) json["note"] = t.note;
    tensors.push_back(std::move(json));
  }
  OrderedJson json = {{"in", report.in},
                      {"out", report.out},
                      {"type", report.type},
                      {"dry_run", report.dry_run},
                      {"parameters", parameter_count(r.config)},
                      {"bytes_before", r.bytes_before},
                      {"bytes", r.bytes_after},
                      {"bits_per_weight", bits_per_weight(r)},
                      {"files", r.files},
                      {"notices", r.notices},
                      {"tensors", std::move(tensors)}};
  if (report.quality) {
    const DivergenceResult& q = *report.quality;
    json["quality"] = {{"file", report.eval_text},
                       {"perplexity_base", q.perplexity_base},
                       {"perplexity", q.perplexity_model},
                       {"kl_mean", q.kl_mean},
                       {"kl_standard_error", q.kl_error},
                       {"same_top", q.same_top},
                       {"scored", q.scored}};
  }
  return json;
}

std::string quantize_card(const QuantizeReport& report) {
  const QuantizeResult& r = report.result;
  CardFacts facts;
  facts.base_model = card_name(report.in);
  const bool narrower = std::any_of(r.tensors.begin(), r.tensors.end(), [](const auto& tensor) {
    return is_narrower(tensor.to, tensor.from);
  });
  if (narrower) facts.base_model_relation = "quantized";
  facts.tags = {"gguf"};
  facts.carried = carried_facts(report.in, narrower ? Descent::kNarrowed : Descent::kSame);
  std::string types;
  for (const auto& [type, sum] : by_type(r)) {
    types += fmt::format("{}{} tensor{} in {}", types.empty() ? "" : ", ", sum.tensors,
                         sum.tensors == 1 ? "" : "s", dtype_name(type));
  }
  std::string text =
      card_front_matter(r.config, facts) + card_heading(r.config, parameter_count(r.config)) +
      fmt::format(
          "\n\nWritten by mamba-cpp {} from `{}` as {}: {}, {:.2f} bits a "
          "weight{}.\n\n| file | bytes |\n|---|---:|\n",
          MAMBA_VERSION, card_name(report.in), type_words(report), types, bits_per_weight(r),
          report.imatrix.empty() ? "" : ", errors weighted by `" + card_name(report.imatrix) + "`");
  for (const std::string& file : r.files) {
    text += fmt::format("| `{}` | {} |\n", card_name(file),
                        with_commas(static_cast<int64_t>(std::filesystem::file_size(file))));
  }
  if (!report.quality) return text;
  const DivergenceResult& q = *report.quality;
  return text + fmt::format(
                    "\nOver {} tokens of `{}`, against `{}`:\n\n"
                    "| | before | this file |\n|---|---:|---:|\n"
                    "| perplexity | {:.5f} | {:.5f} ({:+.3f} %) |\n"
                    "| KL divergence, nats a token | | {:.6f} +- {:.6f} |\n"
                    "| same most likely token | | {:.2f} % |\n",
                    with_commas(q.scored), card_name(report.eval_text), card_name(report.in),
                    q.perplexity_base, q.perplexity_model,
                    100 * (q.perplexity_model / q.perplexity_base - 1), q.kl_mean, q.kl_error,
                    100 * q.same_top);
}

std::string quantize_card_path(const std::string& out) {
  return std::filesystem::path(out).replace_extension(".md").string();
}

void expect_card_place(const std::string& out) {
  const std::string path = quantize_card_path(out);
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.starts_with("---\n") && text.find("library_name: mamba-cpp") != text.npos) return;
  fail(ErrorCode::kInvalidArgument,
       "[{}] expected no file, or a model card of this program, where the card of {} goes, got "
       "another one; move it away or name another output",
       path, out);
}

}  // namespace mamba::cli
