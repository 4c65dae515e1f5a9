// SPDX-License-Identifier: Apache-2.0
// Models to GGUF files: tensor by tensor from mapped files, blocks of a matrix on all threads.
#include "mamba/quantize.h"

#include <fmt/ranges.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "device/cpu_features.h"
#include "formats/gguf_model.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "formats/weight_files.h"
#include "model/check_tensors.h"
#include "model/importance.h"
#include "model/model_card.h"
#include "model/parameter_table.h"
#include "model/quantize_plan.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "tokenizer/files.h"
#include "tokenizer/gguf_tokenizer.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPart = 1 << 14;  // elements that a thread takes, a multiple of every block

void check_name(const std::string& out) {
  std::error_code ignored;
  if (!out.ends_with(".gguf")) {
    fail(ErrorCode::kInvalidArgument, "[quantize] expected an output that ends in .gguf, got '{}'",
         printable(out, 200));
  }
  if (fs::is_directory(out, ignored)) {
    fail(ErrorCode::kInvalidArgument, "[{}] expected a file to write, got a folder; name another",
         out);
  }
}

// That no file which is written is one that is read, nor, unless it may be replaced, there at all.
void check_files(const std::vector<std::string>& written, const std::vector<std::string>& read,
                 bool replace) {
  std::error_code ignored;
  for (const std::string& out : written) {
    if (!fs::exists(out, ignored)) continue;
    for (const std::string& in : read) {
      if (!fs::equivalent(in, out, ignored)) continue;
      fail(ErrorCode::kInvalidArgument,
           "[{}] expected a new file, got one of the command's own inputs ({}); name another", out,
           in);
    }
    if (replace) continue;
    fail(ErrorCode::kInvalidArgument,
         "[{}] expected a new file, got one that is there; name another, or replace it with "
         "--force",
         out);
  }
}

// One tensor on its way: from the model's files to the bytes of the new one.
class TensorJob {
 public:
  TensorJob(const std::string& file, const TensorInfo& from, const GgufPlace& place, DType to,
            const std::vector<float>* importance, int threads)
      : file_(file),
        from_(from),
        place_(place),
        to_(to),
        importance_(importance),
        threads_(threads) {}

  // Elements [begin, begin + count) at `out`; a multiple of the blocks.
  void fill(int64_t begin, int64_t count, void* out) {
    const int64_t parts = (count + kPart - 1) / kPart;
    std::vector<double> errors(static_cast<size_t>(parts)), squares(errors);
    std::atomic<Part> worst = Part::kGood;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t at = p * kPart, n = std::min(kPart, count - at);
      char* to = static_cast<char*>(out) + dtype_bytes(to_, at);
      const auto i = static_cast<size_t>(p);
      const Part part = convert_part(begin + at, n, to, &errors[i], &squares[i]);
      if (part != Part::kGood) worst = part;
    }
    if (worst != Part::kGood) refuse(worst);
    for (size_t i = 0; i < errors.size(); ++i) error_ += errors[i], square_ += squares[i];
  }
  double relative_error() const { return square_ > 0 ? std::sqrt(error_ / square_) : 0; }

 private:
  enum class Part : uint8_t { kGood, kTooLarge, kNotFinite };

  [[noreturn]] void refuse(Part why) const {
    if (why == Part::kNotFinite) {
      fail(ErrorCode::kBadFile,
           "[{}] expected finite weights, got NaN or an infinity in tensor \"{}\"; fetch or train "
           "the model again",
           file_, printable(is_gguf_file(file_) ? place_.name : from_.name, 200));
    }
    fail(ErrorCode::kUnsupported,
         "[quantize] expected values that {} can hold, got one that is too large in tensor \"{}\"; "
         "choose another type for it (--tensor-type)",
         dtype_name(to_), place_.name);
  }

  Part convert_part(int64_t begin, int64_t count, char* out, double* error, double* square) const {
    const auto n = static_cast<size_t>(count);
    std::vector<float> values(n);
    read_to_f32(from_, begin, count, values.data());
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
    if (!finite) return Part::kNotFinite;
    if (from_.dtype == to_ && !place_.is_A) {
      const char* data = static_cast<const char*>(from_.data) + dtype_bytes(to_, begin);
      std::memcpy(out, data, static_cast<size_t>(dtype_bytes(to_, count)));
      return Part::kGood;
    }
    if (place_.is_A) {
      for (float& v : values) v = static_cast<float>(-std::exp(static_cast<double>(v)));
    }
    if (!is_quantized(to_)) {
      return write_from_f32(values.data(), count, to_, out) ? Part::kGood : Part::kTooLarge;
    }
    std::vector<float> weights;
    if (importance_ != nullptr) {
      const size_t columns = importance_->size();
      for (size_t i = 0; i < n; ++i) {
        weights.push_back((*importance_)[(static_cast<size_t>(begin) + i) % columns]);
      }
    }
    if (!quantize(to_, values.data(), weights.empty() ? nullptr : weights.data(), count, out)) {
      return Part::kTooLarge;
    }
    std::vector<float> back(n);
    dequantize(to_, out, count, back.data());
    for (size_t i = 0; i < n; ++i) {
      const double v = static_cast<double>(values[i]), off = v - static_cast<double>(back[i]);
      *error += off * off;
      *square += v * v;
    }
    return Part::kGood;
  }

  const std::string& file_;  // of the model
  const TensorInfo& from_;
  GgufPlace place_;
  DType to_;
  const std::vector<float>* importance_;
  int threads_;
  double error_ = 0, square_ = 0;
};

class Quantization {
 public:
  Quantization(const std::string& in, const std::string& out, const QuantizeOptions& options)
      : in_(in), out_(out), options_(options) {
    check_name(out);
    result_.config = read_config(in, &result_.notices);
    metadata_ = gguf_config_metadata(with_conv_bias(result_.config));
    if (!options.imatrix.empty()) importance_ = read_importance(options.imatrix);
    threads_ = options.threads > 0 ? options.threads : physical_cores();
  }

  QuantizeResult run() {
    const WeightFiles weights(in_);
    check_tensors(weights, result_.config);
    const QuantizePlan plan(result_.config, options_);
    plan_tensors(weights, plan);
    plan.expect_all_used();
    if (!options_.imatrix.empty()) check_importance();
    notice_requantized();
    notice_width();
    add_metadata(plan);
    if (options_.dry_run) return std::move(result_);
    std::vector<std::string> read = weights.files();
    if (!options_.imatrix.empty()) read.push_back(options_.imatrix);
    check_files(gguf_paths(out_, tensors_, options_.max_shard_bytes), read, options_.replace);
    result_.files = write_gguf(out_, metadata_, tensors_, options_.max_shard_bytes);
    for (size_t i = 0; i < jobs_.size(); ++i) {
      result_.tensors[i].relative_error = jobs_[i].relative_error();
    }
    return std::move(result_);
  }

 private:
  // llama.cpp wants a bias of the convolution: one of zeros computes the same.
  static Config with_conv_bias(Config config) {
    config.conv_bias = true;
    return config;
  }

  void plan_tensors(const WeightFiles& weights, const QuantizePlan& plan) {
    const ParamTable table = parameter_table(result_.config);
    jobs_.reserve(table.specs().size());
    for (const ParamSpec& spec : table.specs()) {
      add_tensor(weights, plan, spec);
      if (!result_.config.conv_bias && spec.name.ends_with(".mixer.conv1d.weight")) {
        add_zeros(spec);
      }
    }
    for (TensorData& tensor : tensors_) total_ += count_elements(tensor);
  }

  void add_tensor(const WeightFiles& weights, const QuantizePlan& plan, const ParamSpec& spec) {
    const TensorInfo& from = weights.get(spec.name);
    if (from.dtype == DType::kI64 || from.dtype == DType::kI32 || from.dtype == DType::kU8) {
      fail(ErrorCode::kUnsupported,
           "[{}] expected tensor \"{}\" of a floating type or in blocks, got {}; convert the model",
           weights.where(), printable(weights.name_in_file(from.name), 200),
           dtype_name(from.dtype));
    }
    const GgufPlace place = gguf_place(result_.config, spec.name, spec.shape);
    const QuantizePlan::Choice choice = plan.choose(spec, place.name, from.dtype);
    const std::vector<float>* importance = find_importance(place.name, spec, choice.dtype);
    TensorJob& job = jobs_.emplace_back(in_, from, place, choice.dtype, importance, threads_);
    TensorData to{place.name, choice.dtype, place.shape};
    to.fill = [this, &job, &weights, &from, name = place.name](int64_t begin, int64_t count,
                                                               void* out) {
      job.fill(begin, count, out);
      if (begin + count == from.count()) weights.release(from);
      report(count, name);
    };
    add_result({place.name, place.shape, from.dtype, choice.dtype, from.bytes, count_bytes(to), 0,
                choice.note});
    tensors_.push_back(std::move(to));
  }

  // Null where the file has none, or where it changes nothing.
  const std::vector<float>* find_importance(const std::string& name, const ParamSpec& spec,
                                            DType to) {
    const auto found = importance_.of.find(name);
    if (found == importance_.of.end()) {
      // llama-imatrix leaves the head out, and an embedding that is no head multiplies nothing.
      const bool may_lack = name == "output.weight" || name == "token_embd.weight";
      if (is_quantized(to) && !may_lack) ++without_importance_;
      return nullptr;
    }
    ++known_;
    if (static_cast<int64_t>(found->second.size()) != spec.shape.back()) {
      fail(ErrorCode::kBadFile,
           "[{}] expected the importance of {} columns for \"{}\", got {}; it is of another model",
           options_.imatrix, spec.shape.back(), name, found->second.size());
    }
    if (!is_quantized(to)) return nullptr;
    ++with_importance_;
    return &found->second;
  }

  // Names that are only in the importance file or only in the model tell that it is of another.
  void check_importance() {
    const auto entries = static_cast<int64_t>(importance_.of.size());
    if (entries > 0 && known_ == 0) {
      fail(ErrorCode::kBadFile,
           "[{}] expected the importance of this model's matrices, got {} entries of which it has "
           "none (\"{}\"); make it of this model",
           options_.imatrix, entries, printable(importance_.of.begin()->first, 200));
    }
    if (entries > known_ || (without_importance_ > 0 && with_importance_ > 0)) {
      result_.notices.push_back(
          fmt::format("{} has {} entries that the model lacks, and none for {} of the {} matrices "
                      "that are quantised: is it of another model?",
                      options_.imatrix, entries - known_, without_importance_,
                      without_importance_ + with_importance_));
    }
    if (with_importance_ == 0) {
      result_.notices.push_back(
          "no matrix of the importance file is among those that are "
          "quantised: it changed nothing");
    }
  }

  void add_zeros(const ParamSpec& conv) {
    std::string name = gguf_place(result_.config, conv.name, conv.shape).name;
    name.replace(name.size() - 6, 6, "bias");  // from "weight"
    TensorData to{name, DType::kF32, {conv.shape[0]}};
    to.fill = [this, name](int64_t, int64_t count, void* out) {
      std::memset(out, 0, static_cast<size_t>(4 * count));
      report(count, name);
    };
    tensors_.push_back(std::move(to));
  }

  void add_result(QuantizedTensor tensor) {
    result_.bytes_before += tensor.bytes_before;
    result_.bytes_after += tensor.bytes_after;
    elements_of_[tensor.to] += tensor.bytes_after;
    result_.tensors.push_back(std::move(tensor));
  }

  // Rounding what was rounded before adds both errors up.
  void notice_requantized() {
    std::set<std::string> types;
    for (const QuantizedTensor& t : result_.tensors) {
      if (is_quantized(t.from) && is_quantized(t.to) && t.from != t.to) {
        types.insert(dtype_name(t.from));
      }
    }
    if (types.empty() || options_.allow_requantize) return;
    result_.notices.push_back(fmt::format(
        "matrices in {} are quantised for a second time and both errors add up; take the model "
        "that the file was made of if you have it (--allow-requantize: no such note)",
        fmt::join(types, ", ")));
  }

  // llama.cpp refuses such a file: "only an expansion factor of 2 is supported for now".
  void notice_width() {
    const Config& c = result_.config;
    if (c.mixer != "mamba1" || c.d_inner == 2 * c.d_model) return;
    result_.notices.push_back(fmt::format(
        "llama.cpp loads a Mamba-1 of an inner width twice its width alone, {} here and not {}: "
        "this file is for programs that take others",
        2 * c.d_model, c.d_inner));
  }

  void report(int64_t count, const std::string& tensor) {
    done_ += count;
    if (options_.progress && !options_.progress(done_, total_, tensor)) {
      fail(ErrorCode::kCancelled, "interrupted");
    }
  }

  void add_metadata(const QuantizePlan& plan) {
    const auto most =
        std::max_element(elements_of_.begin(), elements_of_.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    metadata_["general.name"] = GgufValue::string(card_name(in_));
    for (const auto& [key, value] : license_metadata(in_)) {
      metadata_[key] = GgufValue::string(value);
    }
    metadata_["general.file_type"] = GgufValue::u32(plan.file_type(most->first));
    metadata_["general.quantization_version"] = GgufValue::u32(2);
    if (!options_.imatrix.empty()) {
      metadata_["quantize.imatrix.file"] = GgufValue::string(card_name(options_.imatrix));
      metadata_["quantize.imatrix.dataset"] = GgufValue::string(importance_.dataset);
      metadata_["quantize.imatrix.entries_count"] = GgufValue::i32(with_importance_);
      metadata_["quantize.imatrix.chunks_count"] = GgufValue::i32(importance_.chunks);
    }
    if (options_.with_tokenizer) {
      add_tokenizer();
    } else {
      metadata_["tokenizer.ggml.model"] = GgufValue::string("none");
    }
  }

  void add_tokenizer() {
    std::error_code ignored;
    if (is_gguf_file(in_)) {  // as it is, and what else the file says
      const GgufFile file(in_);
      for (const auto& [key, value] : file.values()) {
        const bool of_file =
            key.starts_with("split.") || key.starts_with("quantize.") || key == "general.alignment";
        if (!of_file && !metadata_.contains(key)) metadata_[key] = value;
      }
      metadata_["general.name"] =
          GgufValue::string(file.get_string("general.name", card_name(in_)));
      return;
    }
    const bool json = fs::exists(fs::path(in_) / "tokenizer.json", ignored) ||
                      fs::exists(fs::path(in_) / "vocab.json", ignored);
    if (json || says_bytes(in_)) return add_tokenizer_metadata(in_, result_.config, &metadata_);
    if (result_.config.vocab_size == 256) {
      return add_tokenizer_metadata("bytes", result_.config, &metadata_);
    }
    metadata_["tokenizer.ggml.model"] = GgufValue::string("none");
    result_.notices.push_back(
        "the model has no tokenizer that this version reads: the file has none");
  }

  std::string in_, out_;
  const QuantizeOptions& options_;
  QuantizeResult result_;
  GgufMetadata metadata_;
  Importance importance_;
  int threads_ = 1;
  std::vector<TensorJob> jobs_;
  std::vector<TensorData> tensors_;
  std::map<DType, int64_t> elements_of_;                  // bytes of each type
  int64_t known_ = 0;                                     // tensors that have importance
  int64_t with_importance_ = 0, without_importance_ = 0;  // of the matrices that are quantised
  int64_t done_ = 0, total_ = 0;
};

}  // namespace

QuantizeResult quantize_model(const std::string& in, const std::string& out,
                              const QuantizeOptions& options) {
  return Quantization(in, out, options).run();
}

}  // namespace mamba
