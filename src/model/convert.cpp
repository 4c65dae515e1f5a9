// SPDX-License-Identifier: Apache-2.0
// Converting model folders: what goes where, tensor by tensor from mapped files.
#include "mamba/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "formats/config_fields.h"
#include "formats/gguf.h"
#include "formats/hf_config.h"
#include "formats/mamba_c_file.h"
#include "formats/safetensors.h"
#include "formats/torch_zip.h"
#include "formats/weight_files.h"
#include "mamba/version.h"
#include "model/check_tensors.h"
#include "model/model_card.h"
#include "model/network.h"
#include "model/parameter_table.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShardBytes = 5'000'000'000;
constexpr const char* kEmbedding = "backbone.embeddings.weight";
constexpr const char* kStateSpacesEmbedding = "backbone.embedding.weight";
constexpr const char* kHead = "lm_head.weight";

// What a folder has beside configuration, weights and card.
constexpr const char* kCompanions[] = {"generation_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "merges.txt",
                                       "tokenizer.model",
                                       "tokenizer.model.v3",
                                       "chat_template.jinja",
                                       "chat_template.json",
                                       "LICENSE",
                                       "LICENSE.txt",
                                       "NOTICE"};

// Keys of config.json that say how the file came about or how transformers is to run, or again what
// others say.
constexpr const char* kOfNoUse[] = {"architectures",
                                    "transformers_version",
                                    "torch_dtype",
                                    "dtype",
                                    "_name_or_path",
                                    "mamba_cpp",
                                    "d_model",
                                    "d_inner",
                                    "n_layer",
                                    "rms_norm",
                                    "ssm_cfg",
                                    "fused_add_norm",
                                    "pad_vocab_size_multiple",
                                    "norm_before_gate",
                                    "intermediate_size",
                                    "time_step_scale",
                                    "time_step_init_scheme",
                                    "use_mambapy",
                                    "use_falcon_mambapy",
                                    "use_associative_scan",
                                    "return_dict",
                                    "output_hidden_states",
                                    "output_attentions",
                                    "chunk_size_feed_forward",
                                    "is_encoder_decoder"};

enum class Source { kTransformers, kStateSpaces, kMambaC, kGguf };

Source source_of(const std::string& in) {
  if (is_gguf_file(in)) return Source::kGguf;
  if (is_mamba_c_file(in)) return Source::kMambaC;
  std::error_code ignored;
  if (!fs::is_directory(in, ignored)) {
    fail(ErrorCode::kBadFile,
         "[convert] expected a model folder, a .gguf file or a model.bin of mamba.c, got {}; name "
         "one",
         fs::exists(in, ignored) ? "another file: " + in : "nothing at " + in);
  }
  return is_state_spaces_config(in + "/config.json") ? Source::kStateSpaces : Source::kTransformers;
}

// Of the files that are a model's own, in either form and with either kind of weights.
bool belongs_to_model(const std::string& name) {
  if (name == "config.json" || name == "README.md") return true;
  for (const char* companion : kCompanions) {
    if (name == companion) return true;
  }
  for (const char* stem : {"model", "pytorch_model"}) {
    const std::string rest = name.starts_with(stem) ? name.substr(std::strlen(stem)) : "";
    for (const char* ending :
         {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"}) {
      // "", or the number of a shard: "-00001-of-00002"
      if (rest.ends_with(ending) && (rest == ending || rest.starts_with("-0"))) return true;
    }
  }
  return false;
}

bool is_model_folder(const std::string& folder) {
  if (has_weights(folder)) return true;
  try {
    read_config(folder);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// A folder is replaced whole, so it must hold a model and nothing else.
void check_output(const std::string& in, const std::string& out, bool replace) {
  std::error_code ignored;
  if (!fs::exists(out, ignored)) return;
  if (fs::equivalent(out, ".", ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected another folder than the current one, in whose place a finished one cannot "
         "be moved; name a new one",
         out);
  }
  if (!fs::is_directory(out, ignored)) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a folder to write, got a file; name another",
         out);
  }
  if (fs::is_empty(out, ignored)) return;
  if (fs::equivalent(in, out, ignored)) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected another folder than the model's own; name a new one", out);
  }
  if (!replace) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a new or empty folder, got one with files; name another, or replace it "
         "with --force",
         out);
  }
  std::string others;
  for (const fs::directory_entry& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file(ignored) && belongs_to_model(name)) continue;
    others += (others.empty() ? "" : ", ") + printable(name, 100);
  }
  if (!others.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a folder with the files of a model alone to replace, got also {}; move "
         "that away or name another folder",
         out, printable(others, 300));
  }
  if (!is_model_folder(out)) {
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a model folder (weights, or the config.json of a model) to replace, got "
         "another; remove it by hand or name another folder",
         out);
  }
}

bool is_half(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

DType target_dtype(const ParamSpec& spec, DType stored, const ConvertOptions& options) {
  if (!options.dtype) return is_quantized(stored) ? DType::kF32 : stored;
  if (*options.dtype == DType::kF32 || spec.matrix) return *options.dtype;
  return is_half(stored) ? stored : DType::kF32;
}

// Elements [begin, begin + count) of `from` as `dtype`.
void convert_block(const TensorInfo& from, DType dtype, int64_t begin, int64_t count, void* out) {
  if (from.dtype == dtype) {
    const int64_t size = dtype_size(dtype);
    std::memcpy(out, static_cast<const char*>(from.data) + begin * size,
                static_cast<size_t>(count * size));
    return;
  }
  std::vector<float> values(static_cast<size_t>(count));
  read_to_f32(from, begin, count, values.data());
  bool good = write_from_f32(values.data(), count, dtype, out);
  if (from.dtype == DType::kF64) {
    good =
        good && std::all_of(values.begin(), values.end(), [](float v) { return !std::isinf(v); });
  }
  if (good) return;
  fail(
      ErrorCode::kUnsupported,
      "[convert] expected values within the range of {}, got a larger one in tensor \"{}\"; choose "
      "another --dtype",
      dtype_name(dtype), printable(from.name, 200));
}

// Counts bytes as the writers ask for them.
struct Progress {
  const ConvertOptions& options;
  int64_t done = 0, total = 0;
  void add(int64_t bytes) {
    done += bytes;
    if (options.on_progress) options.on_progress(done, total);
  }
};

class Conversion {
 public:
  Conversion(const std::string& in, const std::string& out, const ConvertOptions& options)
      : in_(in), out_(out), options_(options), source_(source_of(in)) {
    check_output(in, out, options.replace);
    result_.config = read_config(in, &result_.notices);
    if (source_ == Source::kTransformers) original_ = read_json_file(in + "/config.json");
    config_text_ = config_text();
  }

  ConvertResult run() {
    const WeightFiles weights(in_);
    check_tensors(weights, result_.config);
    const std::vector<TensorData> tensors = plan(weights);
    write_folder_atomic(out_, [&](const std::string& folder) {
      write_weights(tensors, folder);
      write_file_atomic(folder + "/config.json", config_text_);
      copy_companions(folder);
      write_file_atomic(folder + "/README.md", card(folder));
    });
    return std::move(result_);
  }

 private:
  bool to_state_spaces() const { return options_.form == ModelForm::kStateSpaces; }

  std::string config_text() {
    const Config& c = result_.config;
    if (to_state_spaces()) {
      if (c.model_type == "falcon_mamba") {
        fail(ErrorCode::kUnsupported,
             "[convert] expected a model that the state-spaces form can express, got model_type "
             "falcon_mamba, whose norms on B, C and dt it lacks; keep the transformers form");
      }
      const std::string text = write_state_spaces_config(c);
      note_lost_keys(text);
      return text;
    }
    // A folder that has the extension of this program already may keep it.
    const std::string beyond = beyond_transformers(c);
    const bool keeps = source_ == Source::kTransformers || source_ == Source::kGguf;
    if (!keeps && !beyond.empty()) {
      fail(ErrorCode::kUnsupported,
           "[convert] expected a model that transformers can express, got {}, which it lacks; keep "
           "the state-spaces form",
           beyond);
    }
    // How a model is initialised is no matter of one that has weights, and transformers would take
    // `true` for an order to change them: what no file said is not written.
    Config stored = c;
    if (source_ != Source::kTransformers) stored.rescale_prenorm_residual = false;
    return with_unread_keys(write_config(stored));
  }

  // From one folder of transformers to another the keys that nothing here reads go along; a type
  // of the weights that they name is the new one.
  std::string with_unread_keys(const std::string& text) const {
    if (source_ != Source::kTransformers) return text;
    Json json = parse_json(text, "config.json");
    for (const auto& [key, value] : original_.items()) {
      if (!json.contains(key) && key != "mamba_cpp") json[key] = value;
    }
    for (const char* key : {"torch_dtype", "dtype"}) {
      if (!json.contains(key) || !options_.dtype) continue;
      json[key] = *options_.dtype == DType::kF32    ? "float32"
                  : *options_.dtype == DType::kBF16 ? "bfloat16"
                                                    : "float16";
    }
    return json.dump(2) + "\n";
  }

  // mamba_ssm takes no keys but its own, so some have no place there.
  void note_lost_keys(const std::string& text) {
    if (source_ != Source::kTransformers) return;
    const Config back = parse_config(text, "config.json");
    const Json kept = parse_json(write_config(back), "config.json");
    std::string lost;
    for (const auto& [key, value] : original_.items()) {
      const bool of_start =
          key == "initializer_range" && result_.config.embedding_std != back.embedding_std;
      const bool noise = value.is_null() || std::find(std::begin(kOfNoUse), std::end(kOfNoUse),
                                                      key) != std::end(kOfNoUse);
      if (!of_start && (noise || kept.contains(key))) continue;
      lost +=
          fmt::format("{}{} {}", lost.empty() ? "" : ", ", printable(key), printable_json(value));
    }
    if (lost.empty()) return;
    result_.notices.push_back(fmt::format(
        "the state-spaces form has no keys for {}: a conversion back will be without them",
        printable(lost, 300)));
  }

  std::vector<TensorData> plan(const WeightFiles& weights) {
    std::vector<TensorData> tensors;
    const ParamTable parameters = parameter_table(result_.config);
    for (const ParamSpec& spec : parameters.specs()) {
      const TensorInfo& from = weights.get(spec.name);
      TensorData to;
      to.name = to_state_spaces() && spec.name == kEmbedding ? kStateSpacesEmbedding : spec.name;
      to.dtype = target_dtype(spec, from.dtype, options_);
      narrower_ = narrower_ || is_narrower(to.dtype, from.dtype);
      to.shape = spec.shape;
      to.fill = [this, &weights, &from, dtype = to.dtype](int64_t begin, int64_t count, void* out) {
        convert_block(from, dtype, begin, count, out);
        if (begin + count == from.count()) weights.release(from);
        progress_.add(count * dtype_size(dtype));
      };
      result_.bytes += count_bytes(to);
      dtypes_[dtype_name(to.dtype)] += 1;
      tensors.push_back(std::move(to));
    }
    result_.tensors = static_cast<int64_t>(tensors.size());
    return tensors;
  }

  void write_weights(const std::vector<TensorData>& tensors, const std::string& folder) {
    const bool tied = result_.config.tie_embeddings;
    const bool torch = to_state_spaces() && !options_.safetensors;
    progress_.total = result_.bytes * (torch ? 2 : 1);  // torch: checksums first
    if (torch) {
      std::map<std::string, std::string> aliases;
      if (tied) aliases[kHead] = kStateSpacesEmbedding;
      return write_torch_file(folder + "/pytorch_model.bin", "pytorch_model", tensors, aliases);
    }
    TensorMetadata metadata = {{"format", "pt"}};
    // As the hub's conversions say which names share a tensor.
    if (to_state_spaces() && tied) metadata[kHead] = kStateSpacesEmbedding;
    write_sharded_safetensors(folder, tensors, metadata, kShardBytes);
  }

  void copy_companions(const std::string& folder) {
    std::error_code ignored;
    if (source_ == Source::kMambaC) {
      result_.notices.push_back(
          "a tokenizer.bin of mamba.c is not read: put the tokenizer.json of the model's tokenizer "
          "into the new folder");
      return;
    }
    for (const char* name : kCompanions) {
      const std::string path = in_ + "/" + name;
      if (!fs::is_regular_file(path, ignored)) continue;
      const MappedFile file(path);
      write_file_atomic(folder + "/" + name,
                        {reinterpret_cast<const char*>(file.data()), file.size()});
    }
    if (source_ == Source::kGguf) write_tokenizer_files(GgufFile(in_), folder);
    const Config& c = result_.config;
    const bool has_ids = c.bos_token_id >= 0 || c.eos_token_id >= 0 || c.pad_token_id >= 0;
    if (!to_state_spaces() && source_ == Source::kStateSpaces && !has_ids) {
      result_.notices.push_back(
          "the ids of special tokens are not known: set eos_token_id in config.json if generation "
          "is to stop at one");
    }
    if (!to_state_spaces() || !has_ids || fs::exists(folder + "/generation_config.json")) return;
    // The ids, for which config.json has no keys there.
    Json ids = Json::object();
    const auto add = [&](const char* key, int64_t id) {
      if (id >= 0) ids[key] = id;
    };
    add("bos_token_id", c.bos_token_id);
    add("eos_token_id", c.eos_token_id);
    add("pad_token_id", c.pad_token_id);
    if (!c.more_eos_token_ids.empty()) ids["eos_token_id"] = c.all_eos_token_ids();
    write_file_atomic(folder + "/generation_config.json", ids.dump(2) + "\n");
  }

  std::string card(const std::string& folder) const {
    CardFacts facts;
    facts.base_model = card_name(in_);
    if (narrower_) facts.base_model_relation = "quantized";  // the hub's word for fewer bits
    facts.carried = carried_facts(in_, narrower_ ? Descent::kNarrowed : Descent::kSame);
    std::string types;
    for (const auto& [name, count] : dtypes_) {
      types += fmt::format("{}{} tensors in {}", types.empty() ? "" : ", ", count, name);
    }
    constexpr const char* kForms[] = {"transformers", "state-spaces", "mamba.c", "GGUF"};
    return card_front_matter(result_.config, facts) +
           card_heading(result_.config, parameter_count(result_.config)) +
           fmt::format(
               "\n\nConverted with mamba-cpp {} from `{}` ({} form) into the {} form: {}.\n\n",
               MAMBA_VERSION, in_, kForms[static_cast<size_t>(source_)],
               to_state_spaces() ? "state-spaces" : "transformers", types) +
           card_file_table(folder);
  }

  std::string in_, out_;
  const ConvertOptions& options_;
  Source source_;
  ConvertResult result_;
  Json original_;  // config.json of the transformers form
  std::string config_text_;
  std::map<std::string, int64_t> dtypes_;  // tensors of each
  bool narrower_ = false;                  // a tensor has fewer bits than before
  Progress progress_{options_};
};

// Logits (length, V) of the model on a fixed sequence.
std::vector<float> fixed_logits(const std::string& folder, const ModelOptions& options,
                                int64_t length, int64_t* vocab, bool* blocks) {
  Model model = Model::load(folder, options);
  const Network& network = model.network();
  for (size_t i = 0; i < network.table().specs().size(); ++i) {
    *blocks = *blocks || is_quantized(network.held_type(static_cast<int>(i)));
  }
  *vocab = model.config().vocab_size;
  std::vector<int32_t> ids(static_cast<size_t>(length));
  uint64_t state = 1;
  for (int32_t& id : ids) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(*vocab));
  }
  std::vector<float> logits(static_cast<size_t>(length * *vocab));
  State fresh = model.new_state(1);
  model.forward(ids.data(), length, fresh, Logits::kAll, logits.data());
  return logits;
}

}  // namespace

ConvertResult convert_model(const std::string& in, const std::string& out,
                            const ConvertOptions& options) {
  if (options.dtype && *options.dtype != DType::kF32 && !is_half(*options.dtype)) {
    fail(ErrorCode::kInvalidArgument, "[convert] expected dtype f32, bf16 or f16, got {}",
         dtype_name(*options.dtype));
  }
  return Conversion(in, out, options).run();
}

ModelComparison compare_models(const std::string& a, const std::string& b,
                               const ModelOptions& options, int64_t length) {
  MAMBA_CHECK(length >= 1);
  int64_t V = 0, other = 0;
  bool blocks = false;
  const std::vector<float> first = fixed_logits(a, options, length, &V, &blocks);
  const std::vector<float> second = fixed_logits(b, options, length, &other, &blocks);
  if (V != other) {
    fail(ErrorCode::kBadFile, "[verify] expected models of one vocabulary, got {} and {} ids", V,
         other);
  }
  ModelComparison c;
  c.has_blocks = blocks;
  c.positions = length;
  c.logits = length * V;
  for (int64_t t = 0; t < length; ++t) {
    const float* x = first.data() + t * V;
    const float* y = second.data() + t * V;
    const auto bad = [&](const float* row) {
      return std::count_if(row, row + V, [](float value) { return !std::isfinite(value); });
    };
    const int64_t bad_first = bad(x), bad_second = bad(y);
    c.not_finite[0] += bad_first;
    c.not_finite[1] += bad_second;
    if (bad_first + bad_second > 0) {
      c.max_error = std::numeric_limits<double>::infinity();
      continue;
    }
    c.same_greedy += std::max_element(x, x + V) - x == std::max_element(y, y + V) - y;
    for (int64_t v = 0; v < V; ++v) {
      c.max_error = std::max(c.max_error, std::fabs(static_cast<double>(x[v]) - y[v]));
      c.max_logit = std::max(c.max_logit, std::fabs(static_cast<double>(x[v])));
    }
  }
  return c;
}

}  // namespace mamba
