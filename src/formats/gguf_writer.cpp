// SPDX-License-Identifier: Apache-2.0
// The layout that gguf.cpp reads.
#include "formats/gguf_writer.h"

#include <algorithm>
#include <set>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/hash.h"

namespace mamba {
namespace {

constexpr const char* kEnding = ".gguf";

class Bytes {
 public:
  template <class T>
  void number(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(const std::string& value) {
    number<uint64_t>(value.size());
    out_ += value;
  }
  void whole(GgufType type, int64_t value) {
    switch (type) {
      case GgufType::kU8:
      case GgufType::kI8:
      case GgufType::kBool:
        return number(static_cast<int8_t>(value));
      case GgufType::kU16:
      case GgufType::kI16:
        return number(static_cast<int16_t>(value));
      case GgufType::kU32:
      case GgufType::kI32:
        return number(static_cast<int32_t>(value));
      default:
        return number(value);
    }
  }
  void real(GgufType type, double value) {
    if (type == GgufType::kF32) return number(static_cast<float>(value));
    number(value);
  }
  void array(const GgufValue& v) {
    number(static_cast<uint32_t>(v.item));
    number<uint64_t>(v.integers.size() + v.reals.size() + v.texts.size() + v.arrays.size());
    for (const int64_t value : v.integers) whole(v.item, value);
    for (const double value : v.reals) real(v.item, value);
    for (const std::string& value : v.texts) text(value);
    for (const GgufValue& value : v.arrays) array(value);
  }
  void value(const GgufValue& v) {
    number(static_cast<uint32_t>(v.type));
    if (v.type == GgufType::kString) return text(v.text);
    if (v.type == GgufType::kArray) return array(v);
    if (v.type == GgufType::kF32 || v.type == GgufType::kF64) return real(v.type, v.real);
    whole(v.type, v.integer);
  }
  std::string& out() { return out_; }

 private:
  std::string out_;
};

int64_t alignment_of(const GgufMetadata& metadata) {
  const auto found = metadata.find("general.alignment");
  return found == metadata.end() ? kGgufAlignment : found->second.integer;
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Everything before the data, padded to where it starts.
std::string make_header(const GgufMetadata& metadata, const std::vector<TensorData>& tensors,
                        int64_t alignment) {
  Bytes bytes;
  bytes.out() = "GGUF";
  bytes.number<uint32_t>(3);
  bytes.number<uint64_t>(tensors.size());
  bytes.number<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    bytes.text(key);
    bytes.value(value);
  }
  int64_t offset = 0;
  for (const TensorData& tensor : tensors) {
    MAMBA_CHECK(tensor.shape.size() <= 4);
    MAMBA_CHECK(tensor.shape.empty() || tensor.shape.back() % block_elements(tensor.dtype) == 0);
    bytes.text(tensor.name);
    bytes.number(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i > 0; --i) bytes.number(tensor.shape[i - 1]);
    bytes.number(gguf_tensor_type(tensor.dtype));
    bytes.number(offset);
    offset += round_up(count_bytes(tensor), alignment);
  }
  const auto size = static_cast<int64_t>(bytes.out().size());
  bytes.out().append(static_cast<size_t>(round_up(size, alignment) - size), '\0');
  return std::move(bytes.out());
}

// sink(bytes, count) for the whole file.
template <class Sink>
void write_all(const GgufMetadata& metadata, const std::vector<TensorData>& tensors, Sink sink) {
  const int64_t alignment = alignment_of(metadata);
  MAMBA_CHECK(alignment >= 1);
  const std::string header = make_header(metadata, tensors, alignment);
  sink(header.data(), header.size());
  const std::string zeros(static_cast<size_t>(alignment), '\0');
  for (const TensorData& tensor : tensors) {
    for_each_block(tensor, sink);
    const int64_t bytes = count_bytes(tensor);
    sink(zeros.data(), static_cast<size_t>(round_up(bytes, alignment) - bytes));
  }
}

void append_file(AtomicFile& file, const GgufMetadata& metadata,
                 const std::vector<TensorData>& tensors) {
  write_all(metadata, tensors, [&](const void* bytes, size_t count) { file.append(bytes, count); });
}

std::vector<std::vector<TensorData>> split(const std::vector<TensorData>& tensors,
                                           int64_t max_shard_bytes) {
  std::vector<std::vector<TensorData>> shards(1);
  int64_t in_shard = 0;
  for (const TensorData& tensor : tensors) {
    const int64_t bytes = count_bytes(tensor);
    if (max_shard_bytes > 0 && !shards.back().empty() && in_shard + bytes > max_shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(tensor);
    in_shard += bytes;
  }
  return shards;
}

std::vector<std::string> paths_of(const std::string& path, size_t shards) {
  MAMBA_CHECK(path.ends_with(kEnding));
  if (shards == 1) return {path};
  const std::string stem = path.substr(0, path.size() - std::string_view(kEnding).size());
  std::vector<std::string> paths;
  for (size_t i = 1; i <= shards; ++i) {
    paths.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, shards));
  }
  return paths;
}

// Equal for the shards of one file, other for those of files that differ in anything but the values
// of their weights.
std::string split_id(const GgufMetadata& metadata, const std::vector<TensorData>& tensors) {
  const std::string header = make_header(metadata, tensors, alignment_of(metadata));
  return fmt::format("{:016x}", hash_bytes(header.data(), static_cast<int64_t>(header.size()), 0));
}

void check_names(const std::vector<TensorData>& tensors) {
  std::set<std::string> names;
  for (const TensorData& tensor : tensors) {
    const bool fits = tensor.name.size() < 64;  // ggml's limit
    if (fits && names.insert(tensor.name).second) continue;
    fail(ErrorCode::kInvalidArgument,
         "[gguf] expected different tensor names of at most 63 bytes, got \"{}\"; rename it",
         tensor.name);
  }
}

}  // namespace

std::string gguf_bytes(const GgufMetadata& metadata, const std::vector<TensorData>& tensors) {
  check_names(tensors);
  std::string out;
  write_all(metadata, tensors, [&](const void* bytes, size_t count) {
    out.append(static_cast<const char*>(bytes), count);
  });
  return out;
}

std::vector<std::string> gguf_paths(const std::string& path, const std::vector<TensorData>& tensors,
                                    int64_t max_shard_bytes) {
  return paths_of(path, split(tensors, max_shard_bytes).size());
}

std::vector<std::string> write_gguf(const std::string& path, const GgufMetadata& metadata,
                                    const std::vector<TensorData>& tensors,
                                    int64_t max_shard_bytes) {
  check_names(tensors);
  const std::vector<std::vector<TensorData>> shards = split(tensors, max_shard_bytes);
  const std::vector<std::string> paths = paths_of(path, shards.size());
  AtomicFiles files;
  if (shards.size() == 1) {
    append_file(files.add(path), metadata, tensors);
    files.commit();
    return paths;
  }
  const std::string id = split_id(metadata, tensors);
  for (size_t i = 0; i < shards.size(); ++i) {
    GgufMetadata own;
    if (i == 0) own = metadata;
    own["split.no"] = GgufValue::u16(static_cast<int64_t>(i));
    own["split.count"] = GgufValue::u16(static_cast<int64_t>(shards.size()));
    own["split.tensors.count"] = GgufValue::i32(static_cast<int64_t>(tensors.size()));
    own[kGgufSplitId] = GgufValue::string(id);
    if (metadata.count("general.alignment") != 0) {
      own["general.alignment"] = metadata.at("general.alignment");
    }
    append_file(files.add(paths[i]), own, shards[i]);
  }
  files.commit();
  return paths;
}

}  // namespace mamba
