// SPDX-License-Identifier: Apache-2.0
// Collecting, writing and reading importance matrices.
#include "model/importance.h"

#include <cmath>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"
#include "formats/gguf_model.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "mamba/quantize.h"
#include "model/model_io.h"

namespace mamba {
namespace {

constexpr const char* kSums = ".in_sum2";
constexpr const char* kCounts = ".counts";

std::vector<float> values_of(const TensorInfo& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.count()));
  read_to_f32(tensor, values.data());
  return values;
}

// Sums over counts; columns of a tensor that no token reached stay out.
void add_tensor(const GgufFile& file, const TensorInfo& tensor, Importance* out) {
  const std::string name = tensor.name.substr(0, tensor.name.size() - std::string(kSums).size());
  const TensorInfo& counts = file.get(name + kCounts);
  if (tensor.dtype != DType::kF32 || counts.dtype != DType::kF32 || counts.count() != 1) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected sums and one count of \"{}\" in f32, got {} {} and {} {}; make the "
         "importance matrix of this model again",
         file.where(), printable(name, 200), dtype_name(tensor.dtype), shape_text(tensor.shape),
         dtype_name(counts.dtype), shape_text(counts.shape));
  }
  const float count = values_of(counts)[0];
  if (!(count > 0)) return;
  std::vector<float> means = values_of(tensor);
  for (float& v : means) {
    v /= count;
    if (v >= 0 && std::isfinite(v)) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected sums of squares of \"{}\" from 0 on, got {}; the file is damaged",
         file.where(), printable(name, 200), v);
  }
  out->of[name] = std::move(means);
}

// A file that is there is replaced only if it is an importance matrix too.
void check_output(const std::string& out) {
  if (!out.ends_with(".gguf")) {
    fail(ErrorCode::kInvalidArgument, "[imatrix] expected an output that ends in .gguf, got '{}'",
         printable(out, 200));
  }
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(out, ignored)) return;
  try {
    if (GgufFile(out).get_string("general.type", "model") == "imatrix") return;
  } catch (const Error&) {  // something else
  }
  fail(ErrorCode::kInvalidArgument,
       "[{}] expected a new file or an importance matrix to replace, got another file; name "
       "another",
       out);
}

}  // namespace

Importance read_importance(const std::string& path) {
  std::error_code ignored;  // what is no file, GgufFile tells best
  if (std::filesystem::is_regular_file(path, ignored) && !is_gguf_file(path)) {
    fail(ErrorCode::kUnsupported,
         "[{}] expected an importance matrix in GGUF form, got another file; make it with "
         "mamba-cpp imatrix, or llama-imatrix --output-format gguf",
         path);
  }
  const GgufFile file(path);
  const std::string type = file.get_string("general.type", "model");
  if (type != "imatrix") {
    fail(ErrorCode::kBadFile,
         "[{}] expected a file of general.type \"imatrix\", got \"{}\"; make it with mamba-cpp "
         "imatrix",
         path, printable(type));
  }
  Importance out;
  out.chunks = file.get_int("imatrix.chunk_count", 0, INT64_MAX, 0);
  if (file.find_value("imatrix.datasets") != nullptr) {
    const std::vector<std::string>& names = file.get_strings("imatrix.datasets");
    if (!names.empty()) out.dataset = names[0];
  }
  for (const TensorInfo& tensor : file.tensors()) {
    if (tensor.name.ends_with(kSums)) add_tensor(file, tensor, &out);
  }
  return out;
}

void write_importance(const std::string& path, const Config& config, const ParamTable& table,
                      const std::vector<ActivationSums::Sums>& sums, int64_t chunks, int64_t chunk,
                      const std::string& dataset) {
  GgufMetadata m;
  m["general.type"] = GgufValue::string("imatrix");
  m["imatrix.datasets"] = GgufValue::strings({dataset});
  m["imatrix.chunk_count"] = GgufValue::u32(chunks);
  m["imatrix.chunk_size"] = GgufValue::u32(chunk);
  std::vector<std::vector<float>> storage;
  storage.reserve(2 * sums.size());
  std::vector<TensorData> tensors;
  for (size_t i = 0; i < sums.size(); ++i) {
    const ParamSpec& spec = table.specs()[i];
    if (sums[i].rows == 0) continue;
    const std::string name = gguf_place(config, spec.name, spec.shape).name;
    std::vector<float>& values = storage.emplace_back();
    for (const double v : sums[i].squares) values.push_back(static_cast<float>(v));
    std::vector<float>& count = storage.emplace_back(1, static_cast<float>(sums[i].rows));
    tensors.push_back(
        {name + kSums, DType::kF32, {1, static_cast<int64_t>(values.size())}, values.data()});
    tensors.push_back({name + kCounts, DType::kF32, {1, 1}, count.data()});
  }
  write_gguf(path, m, tensors);
}

int64_t collect_importance(const std::string& in, const std::string& out,
                           const std::function<int64_t(int32_t* ids, int64_t count)>& read,
                           const ModelOptions& model, const ImportanceOptions& options) {
  MAMBA_CHECK(options.chunk >= 1);
  check_output(out);
  const Config config = read_config(in);
  gguf_config_metadata(config);  // refuses models that GGUF cannot express, before the work
  Network network(config, Device::create({model.device, model.threads}), Product::kF32);
  load_weights(network, in, false);
  const ActivationSums watch(network);
  std::vector<int32_t> ids(static_cast<size_t>(options.chunk));
  int64_t chunks = 0;
  for (; options.max_chunks == 0 || chunks < options.max_chunks; ++chunks) {
    int64_t have = 0;
    while (have < options.chunk) {
      const int64_t more = read(ids.data() + have, options.chunk - have);
      if (more == 0) break;
      have += more;
    }
    if (have < options.chunk) break;
    State state = network.new_state(1);
    Batch batch;
    batch.B = 1;
    batch.L = options.chunk;
    batch.ids = ids.data();
    batch.targets = ids.data();  // so that the head runs at every position
    network.forward(batch, &state, Logits::kNone, Buf(), Buf());
    if (options.progress && !options.progress(chunks + 1)) {
      fail(ErrorCode::kCancelled, "interrupted");
    }
  }
  if (chunks == 0) {
    fail(ErrorCode::kBadFile,
         "[imatrix] expected a text of at least {} tokens, got fewer; give a longer one or a "
         "smaller --chunk",
         options.chunk);
  }
  write_importance(out, config, network.table(), watch.sums(), chunks, options.chunk,
                   options.dataset);
  return chunks;
}

}  // namespace mamba
