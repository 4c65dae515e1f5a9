// SPDX-License-Identifier: Apache-2.0
// The layout of mamba.c's model.bin (its export.py, version 1).
#include "formats/mamba_c_file.h"

#include <string.h>

#include <cmath>
#include <filesystem>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

constexpr uint32_t kMagic = 0x4d616d62;  // "Mamb", written as a little-endian number
constexpr size_t kHeaderBytes = 256;

int32_t header_number(const uint8_t* bytes, size_t index) {
  int32_t value;
  memcpy(&value, bytes + 4 * index, 4);
  return value;
}

// One tensor of every layer; they follow each other in the file.
struct Part {
  const char* name;
  std::vector<int64_t> shape;
};

std::vector<Part> layer_parts(const Config& c) {
  const int64_t D = c.d_model, E = c.d_inner, N = c.d_state, R = c.dt_rank;
  return {{"mixer.in_proj.weight", {2 * E, D}},
          {"mixer.conv1d.weight", {E, 1, c.d_conv}},
          {"mixer.conv1d.bias", {E}},
          {"mixer.x_proj.weight", {R + 2 * N, E}},
          {"mixer.dt_proj.weight", {E, R}},
          {"mixer.dt_proj.bias", {E}},
          {"mixer.A_log", {E, N}},
          {"mixer.D", {E}},
          {"mixer.out_proj.weight", {D, E}},
          {"norm.weight", {D}}};
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

}  // namespace

MambaCFile::MambaCFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  where_ = path;
  parse(file_->data(), file_->size());
}

MambaCFile::MambaCFile(const void* bytes, size_t count, const std::string& where) {
  where_ = where;
  parse(static_cast<const uint8_t*>(bytes), count);
}

void MambaCFile::read_header(const uint8_t* bytes, size_t count) {
  if (count < kHeaderBytes || static_cast<uint32_t>(header_number(bytes, 0)) != kMagic) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a model.bin of mamba.c (a header of {} bytes that starts with \"bmaM\"), "
         "got {} bytes that start with \"{}\"; is this a model?",
         where_, kHeaderBytes, count,
         printable({reinterpret_cast<const char*>(bytes), std::min<size_t>(count, 8)}));
  }
  if (header_number(bytes, 1) != 1) {
    fail(ErrorCode::kUnsupported, "[{}] expected version 1 of mamba.c's model.bin, got {}", where_,
         header_number(bytes, 1));
  }
  constexpr const char* kNames[] = {"n_layers", "vocab_size", "d_model", "d_inner",
                                    "dt_rank",  "d_state",    "d_conv"};
  int64_t values[7];
  for (size_t i = 0; i < 7; ++i) {
    values[i] = header_number(bytes, 2 + i);
    if (values[i] < 1) {
      fail(ErrorCode::kBadFile, "[{}] expected {} of at least 1 in the header, got {}; damaged",
           where_, kNames[i], values[i]);
    }
  }
  Config& c = config_;
  c.n_layer = values[0];
  c.vocab_size = (values[1] + 7) / 8 * 8;  // the file has the rows of the padded vocabulary
  c.d_model = values[2];
  c.d_inner = c.d_ssm = values[3];
  c.dt_rank = values[4];
  c.d_state = values[5];
  c.d_conv = values[6];
  c.tie_embeddings = header_number(bytes, 9) != 0;
  try {
    c.validate();
  } catch (const Error& error) {  // here the file is at fault, not the caller
    throw Error(ErrorCode::kBadFile, fmt::format("[{}] {}", where_, error.what()));
  }
}

void MambaCFile::release(const TensorInfo& tensor) const {
  if (file_) file_->release(tensor.data, static_cast<size_t>(tensor.bytes));
}

void MambaCFile::parse(const uint8_t* bytes, size_t count) {
  read_header(bytes, count);
  const Config& c = config_;
  const std::vector<Part> parts = layer_parts(c);
  // validate() keeps the whole model below 2^40 elements.
  const int64_t table = c.vocab_size * c.d_model;
  int64_t elements = (c.tie_embeddings ? 1 : 2) * table + c.d_model;
  for (const Part& part : parts) elements += c.n_layer * product(part.shape);
  const int64_t expected = static_cast<int64_t>(kHeaderBytes) + 4 * elements;
  if (static_cast<int64_t>(count) != expected) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} bytes as the header says, got {}; the file is truncated or damaged",
         where_, expected, count);
  }
  const uint8_t* at = bytes + kHeaderBytes;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
    const int64_t size = 4 * product(shape);
    tensors_.push_back({name, DType::kF32, shape, at, size});
    at += size;
  };
  add("backbone.embeddings.weight", {c.vocab_size, c.d_model});
  for (const Part& part : parts) {
    const bool is_A = std::string_view(part.name) == "mixer.A_log";
    if (is_A) A_log_.resize(static_cast<size_t>(c.n_layer * product(part.shape)));
    for (int64_t layer = 0; layer < c.n_layer; ++layer) {
      add(fmt::format("backbone.layers.{}.{}", layer, part.name), part.shape);
      if (!is_A) continue;
      TensorInfo& tensor = tensors_.back();
      float* out = A_log_.data() + layer * product(part.shape);
      read_to_f32(tensor, out);
      for (int64_t i = 0; i < tensor.count(); ++i) {
        if (!(out[i] < 0) || std::isinf(out[i])) {
          fail(ErrorCode::kBadFile,
               "[{}] expected A of layer {} to be negative, got {} at element {}; damaged", where_,
               layer, out[i], i);
        }
        out[i] = static_cast<float>(std::log(-static_cast<double>(out[i])));
      }
      tensor.data = out;
    }
  }
  add("backbone.norm_f.weight", {c.d_model});
  if (!c.tie_embeddings) add("lm_head.weight", {c.vocab_size, c.d_model});
  sort();
}

bool is_mamba_c_file(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  const MappedFile file(path);
  return file.size() >= 4 && static_cast<uint32_t>(header_number(file.data(), 0)) == kMagic;
}

}  // namespace mamba
