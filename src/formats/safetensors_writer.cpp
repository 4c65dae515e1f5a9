// SPDX-License-Identifier: Apache-2.0
// Writing safetensors, single or sharded, in the canonical order of the reference implementation.
#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/json.h"
#include "formats/safetensors.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

// Name in the file, and the place in the reference implementation's order: greater comes first.
struct DtypeRank {
  const char* name;
  int rank;
};
DtypeRank rank_of(DType dtype) {
  switch (dtype) {
    case DType::kI64:
      return {"I64", 6};
    case DType::kF64:
      return {"F64", 5};
    case DType::kF32:
      return {"F32", 4};
    case DType::kI32:
      return {"I32", 3};
    case DType::kBF16:
      return {"BF16", 2};
    case DType::kF16:
      return {"F16", 1};
    case DType::kU8:
      return {"U8", 0};
    default:
      break;
  }
  return {"", 0};
}

// JSON text of names and metadata, which must be UTF-8.
std::string to_json(const Json& value) {
  try {
    return value.dump();
  } catch (const Json::exception&) {
    fail(ErrorCode::kInvalidArgument,
         "[safetensors] expected names and metadata in UTF-8, got {}; rename or drop it",
         printable_json(value));
  }
}

std::vector<const TensorData*> canonical_order(const std::vector<TensorData>& tensors) {
  std::vector<const TensorData*> order;
  for (const TensorData& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorData* a, const TensorData* b) {
    const int left = rank_of(a->dtype).rank, right = rank_of(b->dtype).rank;
    return left != right ? left > right : a->name < b->name;
  });
  return order;
}

// {"__metadata__":{...},"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},...}, padded by
// spaces so that the tensors, 8 bytes behind its begin, start at a multiple of `alignment`.
std::string make_header(const std::vector<const TensorData*>& order, const TensorMetadata& metadata,
                        int64_t alignment = 8) {
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + to_json(metadata);
  int64_t at = 0;
  for (const TensorData* tensor : order) {
    const int64_t end = at + count_bytes(*tensor);
    header += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                          header.size() > 1 ? "," : "", to_json(tensor->name),
                          rank_of(tensor->dtype).name, Json(tensor->shape).dump(), at, end);
    at = end;
  }
  header += "}";
  const auto a = static_cast<size_t>(alignment);
  header.append((a - (header.size() + 8) % a) % a, ' ');
  return header;
}

void check_names(const std::vector<TensorData>& tensors) {
  std::vector<std::string> names;
  for (const TensorData& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end() || std::binary_search(names.begin(), names.end(), "__metadata__")) {
    fail(ErrorCode::kInvalidArgument,
         "[safetensors] expected distinct tensor names other than __metadata__, got \"{}\"; rename "
         "it",
         twice != names.end() ? *twice : "__metadata__");
  }
}

void append_all(AtomicFile& file, const std::vector<TensorData>& tensors,
                const TensorMetadata& metadata, int64_t alignment = 8) {
  const std::vector<const TensorData*> order = canonical_order(tensors);
  const std::string header = make_header(order, metadata, alignment);
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  file.append(length, sizeof length);
  file.append(header);
  for (const TensorData* tensor : order) {
    for_each_block(*tensor, [&](const void* bytes, size_t count) { file.append(bytes, count); });
  }
}

}  // namespace

std::string safetensors_bytes(const std::vector<TensorData>& tensors,
                              const TensorMetadata& metadata) {
  check_names(tensors);
  const std::vector<const TensorData*> order = canonical_order(tensors);
  const std::string header = make_header(order, metadata);
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += header;
  for (const TensorData* tensor : order) {
    for_each_block(*tensor, [&](const void* block, size_t count) {
      bytes.append(static_cast<const char*>(block), count);
    });
  }
  return bytes;
}

void write_safetensors(const std::string& path, const std::vector<TensorData>& tensors,
                       const TensorMetadata& metadata, int64_t alignment, unsigned mode) {
  check_names(tensors);
  AtomicFile file(path, mode);
  append_all(file, tensors, metadata, alignment);
  file.commit();
}

void write_sharded_safetensors(const std::string& folder, const std::vector<TensorData>& tensors,
                               const TensorMetadata& metadata, int64_t max_shard_bytes) {
  MAMBA_CHECK(max_shard_bytes > 0);
  check_names(tensors);
  std::vector<std::vector<TensorData>> shards(1);
  int64_t total = 0, in_shard = 0;
  for (const TensorData& tensor : tensors) {
    const int64_t bytes = count_bytes(tensor);
    if (!shards.back().empty() && in_shard + bytes > max_shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(tensor);
    in_shard += bytes;
    total += bytes;
  }
  const fs::path base(folder);
  std::vector<std::string> keep;
  AtomicFiles files;
  if (shards.size() == 1) {
    keep = {"model.safetensors"};
    append_all(files.add((base / keep[0]).string()), tensors, metadata);
  } else {
    Json weight_map = Json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      keep.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
      append_all(files.add((base / keep[i]).string()), shards[i], metadata);
      for (const TensorData& tensor : shards[i]) weight_map[tensor.name] = keep[i];
    }
    Json index = Json::object();
    index["metadata"]["total_size"] = total;
    index["weight_map"] = weight_map;
    keep.push_back("model.safetensors.index.json");
    files.add((base / keep.back()).string()).append(index.dump(2) + "\n");
  }
  files.commit();
  // A single file beside an index would be read instead of the shards.
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(base)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name == "model.safetensors" || name == "model.safetensors.index.json" ||
                      (name.starts_with("model-") && name.ends_with(".safetensors"));
    if (ours && std::find(keep.begin(), keep.end(), name) == keep.end())
      stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path);
}

}  // namespace mamba
