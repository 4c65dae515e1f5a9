// SPDX-License-Identifier: Apache-2.0
// mamba-cpp inspect: configuration, tensors, exact size and memory of a model folder, a config file
// or a preset. Weights are checked against the configuration, not loaded.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/check.h"
#include "base/json.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/style.h"
#include "formats/config_fields.h"
#include "formats/hf_config.h"
#include "formats/weight_files.h"
#include "model/panel_cache.h"
#include "model/parameter_table.h"
#include "model/size_estimate.h"

namespace mamba::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int kBadFileExit = 3;

struct InspectFlags {
  std::string path;
  int64_t batch_size = 1, seq_len = 2048;
  bool json = false;
};

struct TensorLine {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

// The tensors that this configuration has, in order.
std::vector<TensorLine> expected_tensors(const Config& config) {
  std::vector<TensorLine> all;
  const ParamTable parameters = parameter_table(config);
  for (const ParamSpec& spec : parameters.specs()) {
    all.push_back({spec.name, DType::kF32, spec.shape});
  }
  return all;
}

// The tensors of the files; bad_file naming the first of all that do not fit the configuration.
std::vector<TensorLine> stored_tensors(const std::string& path, const Config& config) {
  const WeightFiles file(path);
  std::vector<TensorLine> tensors;
  std::vector<std::string> problems;
  for (const TensorLine& t : expected_tensors(config)) {
    const TensorInfo* stored = file.find(t.name);
    if (stored == nullptr) {
      problems.push_back(fmt::format("'{}' is missing", file.name_in_file(t.name)));
    } else if (stored->shape != t.shape) {
      problems.push_back(fmt::format("'{}' has shape {} instead of {}", file.name_in_file(t.name),
                                     shape_text(file.shape_in_file(t.name, stored->shape)),
                                     shape_text(file.shape_in_file(t.name, t.shape))));
    } else {
      tensors.push_back({t.name, stored->dtype, stored->shape});
    }
  }
  for (const TensorInfo& t : file.tensors()) {
    const bool known = std::any_of(tensors.begin(), tensors.end(),
                                   [&](const TensorLine& line) { return line.name == t.name; });
    const bool tied_head = config.tie_embeddings && t.name == "lm_head.weight";
    if (tied_head) tensors.push_back({t.name, t.dtype, t.shape});
    if (known || tied_head || !problems.empty()) continue;
    problems.push_back(fmt::format("'{}' {} belongs to no layer", file.name_in_file(t.name),
                                   shape_text(file.shape_in_file(t.name, t.shape))));
  }
  if (problems.empty()) return tensors;
  fail(ErrorCode::kBadFile,
       "[inspect] expected the tensors of this configuration, got {} that differ: {}{} ({}); "
       "{} and weights do not belong together",
       problems.size(), problems[0], problems.size() > 1 ? ", ..." : "", file.where(),
       file.config_name());
}

struct FileLine {
  std::string name;
  int64_t bytes = 0;
};

// The files that may have weights, whatever is in them, in order of name.
std::vector<FileLine> weight_file_sizes(const std::string& path) {
  namespace fs = std::filesystem;
  std::vector<FileLine> files;
  std::error_code ignored;
  const auto add = [&](const fs::path& file) {
    const std::uintmax_t bytes = fs::file_size(file, ignored);
    if (!ignored) files.push_back({file.filename().string(), static_cast<int64_t>(bytes)});
  };
  if (fs::is_regular_file(path, ignored)) add(path);
  for (fs::directory_iterator at(path, ignored); !ignored && at != fs::directory_iterator();
       at.increment(ignored)) {
    const std::string ending = at->path().extension().string();
    if (ending == ".safetensors" || ending == ".bin" || ending == ".gguf") add(at->path());
  }
  std::sort(files.begin(), files.end(),
            [](const FileLine& a, const FileLine& b) { return a.name < b.name; });
  return files;
}

std::vector<FileLine> cache_sizes(const std::string& path) {
  std::vector<FileLine> files;
  std::error_code ignored;
  for (const std::string& file : panel_files(path, user_cache_folder())) {
    const std::uintmax_t bytes = std::filesystem::file_size(file, ignored);
    if (!ignored) files.push_back({file, static_cast<int64_t>(bytes)});
  }
  return files;
}

struct Inspection {
  std::vector<std::string> warnings;
  Config config;
  bool weights = false;
  std::vector<FileLine> files;      // of weights
  std::vector<FileLine> caches;     // of prepared weights, by path
  std::vector<TensorLine> tensors;  // as stored; those of the configuration without good weights
  std::optional<Error> problem;     // why the weights cannot be read
  int64_t parameters = 0;
  SizeEstimate sizes;
  int64_t inference_stored = 0;  // bytes with matrices in the types of a file in blocks; else 0
};

// The memory of inference where matrices stay in the blocks that the files have them in.
int64_t stored_inference(const Inspection& r) {
  int64_t matrices = 0;
  bool blocks = false;
  const ParamTable table = parameter_table(r.config);
  for (const ParamSpec& spec : table.specs()) {
    if (!spec.matrix) continue;
    const auto stored = std::find_if(r.tensors.begin(), r.tensors.end(),
                                     [&](const TensorLine& t) { return t.name == spec.name; });
    const DType type = stored == r.tensors.end() ? DType::kF32 : stored->dtype;
    matrices += dtype_bytes(type, spec.count);
    blocks = blocks || is_quantized(type);
  }
  return blocks ? r.sizes.inference(0) + matrices : 0;
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / 1048576.0; }

OrderedJson to_json(const InspectFlags& flags, const Inspection& r) {
  OrderedJson config, tensors = OrderedJson::array(), files = OrderedJson::array();
  OrderedJson caches = OrderedJson::array();
  for (const ConfigField& field : config_fields()) {
    if (is_read(field, r.config)) config[field.name] = field_to_json(field, r.config);
  }
  for (const TensorLine& t : r.tensors) {
    tensors.push_back({{"name", t.name}, {"dtype", dtype_name(t.dtype)}, {"shape", t.shape}});
  }
  for (const FileLine& f : r.files) files.push_back({{"name", f.name}, {"bytes", f.bytes}});
  for (const FileLine& f : r.caches) caches.push_back({{"path", f.name}, {"bytes", f.bytes}});
  const MemoryPlan& t = r.sizes.training;
  OrderedJson json = {
      {"path", flags.path},
      {"model_type", r.config.model_type},
      {"config", config},
      {"parameters", r.parameters},
      {"weights", r.weights && !r.problem},
      {"files", files},
      {"prepared_weights", caches},
      {"tensors", tensors},
      {"state_bytes_per_sequence", r.sizes.state_bytes()},
      {"memory",
       {{"inference_f32_bytes", r.sizes.inference(4)},
        {"inference_bf16_bytes", r.sizes.inference(2)},
        {"training",
         {{"batch_size", flags.batch_size},
          {"seq_len", flags.seq_len},
          {"parameter_bytes", t.parameters},
          {"gradient_bytes", t.gradients},
          {"optimizer_bytes", t.optimizer},
          {"activation_bytes", t.activations},
          {"scratch_bytes", t.scratch},
          {"total_bytes", t.total()}}}}},
      {"warnings", r.warnings},
  };
  if (r.inference_stored > 0) json["memory"]["inference_stored_bytes"] = r.inference_stored;
  if (r.problem) {
    json["error"] = {{"message", r.problem->what()},
                     {"type", error_code_name(r.problem->code())},
                     {"code", kBadFileExit}};
  }
  return json;
}

std::string to_text(const InspectFlags& flags, const Inspection& r) {
  std::string text = fmt::format("{} ({})\n\n", flags.path, r.config.model_type);
  for (const ConfigField& field : config_fields()) {
    if (!is_read(field, r.config)) continue;
    text += fmt::format("  {:<24} {}\n", field.name, field_to_json(field, r.config).dump());
  }
  size_t width = 0;
  for (const TensorLine& t : r.tensors) width = std::max(width, t.name.size());
  if (!r.files.empty()) text += "\nfiles\n";
  for (const FileLine& f : r.files) {
    text += fmt::format("  {:<24} {} bytes\n", printable(f.name), f.bytes);
  }
  if (!r.caches.empty()) text += "\nprepared weights, made anew when they are missing\n";
  for (const FileLine& f : r.caches) {
    text += fmt::format("  {} {} bytes\n", printable(f.name, 200), f.bytes);
  }
  text += fmt::format("\ntensors ({})\n", r.problem   ? "of the configuration"
                                          : r.weights ? "as stored"
                                                      : "no weights here");
  for (const TensorLine& t : r.tensors) {
    text += fmt::format("  {:<{}}  {:<4}  {}\n", t.name, width, dtype_name(t.dtype),
                        shape_text(t.shape));
  }
  text += fmt::format("\nparameters           {}\nstate                {} bytes a sequence\n",
                      r.parameters, r.sizes.state_bytes());
  if (r.inference_stored > 0) {
    text += fmt::format("memory, inference    {:.1f} MiB in the types of the file\n",
                        mib(r.inference_stored));
  }
  text += fmt::format("memory, inference    {:.1f} MiB in f32, {:.1f} MiB in bf16\n",
                      mib(r.sizes.inference(4)), mib(r.sizes.inference(2)));
  text += fmt::format("memory, training     {:.1f} MiB a step of {} x {} tokens\n",
                      mib(r.sizes.training.total()), flags.batch_size, flags.seq_len);
  for (const std::string& w : r.warnings) text += "warning: " + w + "\n";
  return text;
}

// Broken weights are told behind all that the configuration says.
void read_tensors(const std::string& path, Inspection* r) {
  try {
    r->tensors = r->weights ? stored_tensors(path, r->config) : expected_tensors(r->config);
  } catch (const Error& error) {
    const ErrorCode code = error.code();
    if (code != ErrorCode::kBadFile && code != ErrorCode::kUnsupported) throw;
    r->problem = error;
    r->tensors = expected_tensors(r->config);
  }
}

int run_inspect(const InspectFlags& flags) {
  Inspection r;
  r.config = load_config(flags.path, &r.warnings);
  r.config.validate();
  r.weights = has_weights(flags.path);
  if (r.weights) r.files = weight_file_sizes(flags.path);
  read_tensors(flags.path, &r);
  if (r.weights && !r.problem) r.caches = cache_sizes(flags.path);
  r.parameters = parameter_count(r.config);
  r.sizes =
      estimate_sizes(r.config, *Device::create(), Product::kF32, flags.batch_size, flags.seq_len);
  if (r.weights && !r.problem) r.inference_stored = stored_inference(r);
  write_output(flags.json ? json_text(to_json(flags, r)) : to_text(flags, r));
  if (!r.problem) return 0;
  // The object above has it with --json: that must stay one object.
  fmt::print(stderr, "{} {}\n", styled(Style::kError, "error:", is_colored(STDERR_FILENO)),
             r.problem->what());
  return kBadFileExit;
}

}  // namespace

CommandRun add_inspect(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("inspect", "Show what a model is and what it needs");
  auto flags = std::make_shared<InspectFlags>();
  InspectFlags* f = flags.get();
  add_text(*app, "path", &f->path, "PATH",
           "Model folder (weights or not), .gguf, config file or preset")
      ->required();
  add_int(*app, "--batch-size", &f->batch_size, 1, 65536,
          "Of the training step whose memory is shown");
  add_int(*app, "--seq-len", &f->seq_len, 1, 16777216,
          "Of the training step whose memory is shown");
  app->add_flag("--json", f->json, "Print JSON");
  add_examples(*app, {{"What training a size of the paper would take",
                       "mamba-cpp inspect mamba-130m --batch-size 8 --seq-len 1024"},
                      {"A model folder, for programs", "mamba-cpp inspect MODEL --json"}});
  return [flags] { return run_inspect(*flags); };
}

}  // namespace mamba::cli
