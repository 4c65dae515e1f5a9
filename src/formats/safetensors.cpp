// SPDX-License-Identifier: Apache-2.0
// Reading safetensors: 8 bytes of header length (little endian), a JSON header, then the tensors,
// which must cover the rest of the file without a gap or an overlap.
#include "formats/safetensors.h"

#include <string.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <numeric>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxRank = 32;

struct FileDtype {
  const char* name;
  DType dtype;
};
constexpr FileDtype kDtypes[] = {{"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16},
                                 {"F64", DType::kF64}, {"I64", DType::kI64},   {"I32", DType::kI32},
                                 {"U8", DType::kU8},   {"BOOL", DType::kU8}};
// The rest of the format's list: valid files, but nothing here computes with them.
constexpr const char* kForeignDtypes[] = {
    "I8",      "I16",     "U16",     "U32",     "U64",     "C64",         "F4",
    "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"};

DType parse_dtype(const std::string& text, const std::string& tensor, const std::string& where) {
  for (const FileDtype& entry : kDtypes) {
    if (text == entry.name) return entry.dtype;
  }
  constexpr const char* kAllowed = "F64, F32, BF16, F16, I64, I32, U8 or BOOL";
  for (const char* name : kForeignDtypes) {
    if (text != name) continue;
    fail(ErrorCode::kUnsupported,
         "[{}] expected tensor \"{}\" as {}, got {}, which is not supported; convert the model",
         where, printable(tensor, 200), kAllowed, name);
  }
  fail(ErrorCode::kBadFile,
       "[{}] expected tensor \"{}\" as {}, got dtype \"{}\"; convert the model", where,
       printable(tensor, 200), kAllowed, printable(text));
}

// One entry of the header, with its place in the data section.
struct Entry {
  TensorInfo info;
  int64_t begin = 0;
  int64_t end = 0;
};

// The two offsets or a shape: an array of integers from 0 to 2^63 - 1.
std::vector<int64_t> parse_sizes(const Json& value, size_t max_count, const char* what,
                                 const std::string& tensor, const std::string& where) {
  bool good = value.is_array() && value.size() <= max_count;
  std::vector<int64_t> sizes;
  for (size_t i = 0; good && i < value.size(); ++i) {
    good = value[i].is_number_unsigned() &&
           value[i].get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
    if (good) sizes.push_back(value[i].get<int64_t>());
  }
  if (!good) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} of tensor \"{}\" as at most {} non-negative integers, got {}; the file "
         "is "
         "damaged",
         where, what, printable(tensor, 200), max_count, printable_json(value));
  }
  return sizes;
}

Entry parse_entry(const std::string& name, const Json& value, int64_t data_bytes,
                  const std::string& where) {
  const std::string shown = printable(name, 200);
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (has_member(value, key)) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected \"{}\" of tensor \"{}\", found none in {}; the file is damaged", where, key,
         shown, printable_json(value));
  }
  if (value.size() != 3) {
    fail(ErrorCode::kBadFile,
         "[{}] expected only dtype, shape and data_offsets of tensor \"{}\", got {}; the file is "
         "damaged",
         where, shown, printable_json(value, 200));
  }
  Entry entry;
  entry.info.name = name;
  entry.info.dtype = parse_dtype(get_string(value, "dtype", where), name, where);
  entry.info.shape = parse_sizes(value["shape"], kMaxRank, "the shape", name, where);
  const auto offsets = parse_sizes(value["data_offsets"], 2, "data_offsets", name, where);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    fail(ErrorCode::kBadFile,
         "[{}] expected data_offsets of tensor \"{}\" as [begin, end] within {} bytes of data, got "
         "{}; "
         "the file is truncated or damaged",
         where, shown, data_bytes, printable_json(value["data_offsets"]));
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  entry.info.bytes = entry.end - entry.begin;
  int64_t expected = dtype_size(entry.info.dtype);
  bool overflow = false;
  for (const int64_t size : entry.info.shape) {
    overflow = overflow || __builtin_mul_overflow(expected, size, &expected);
  }
  if (overflow || expected != entry.info.bytes) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} bytes for tensor \"{}\" of {} {}, got {}; the file is damaged", where,
         overflow ? "more than 2^63" : std::to_string(expected), shown,
         dtype_name(entry.info.dtype), shape_text(entry.info.shape), entry.info.bytes);
  }
  return entry;
}

void read_metadata(const Json& value, const std::string& where,
                   std::map<std::string, std::string>& out) {
  bool good = value.is_object();
  for (auto it = value.begin(); good && it != value.end(); ++it) {
    good = it->is_string();
    if (good) out[it.key()] = it->get<std::string>();
  }
  if (!good) {
    fail(ErrorCode::kBadFile,
         "[{}] expected __metadata__ to map strings to strings, got {}; the file is damaged", where,
         printable_json(value));
  }
}

// The tensors, in the order of their offsets, must follow each other from 0 to the end.
void check_coverage(std::vector<Entry>& entries, int64_t data_bytes, const std::string& where) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  int64_t at = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != at) {
      fail(ErrorCode::kBadFile,
           "[{}] expected tensor \"{}\" to start at byte {} of the data, got {} ({}); the file is "
           "damaged",
           where, printable(entry.info.name, 200), at, entry.begin,
           entry.begin < at ? "it overlaps the tensor before it" : "there is a hole before it");
    }
    at = entry.end;
  }
  if (at != data_bytes) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} bytes of data as the header says, got {}; the file is damaged", where,
         at, data_bytes);
  }
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// Up to three names of the table that look most like `name`.
std::string near_names(std::string_view name, const std::vector<TensorInfo>& tensors) {
  std::vector<std::pair<size_t, std::string>> ranked;
  for (const TensorInfo& t : tensors) {
    // Bounds the work for hostile names; real ones are shorter than this.
    ranked.emplace_back(edit_distance(name.substr(0, 200), std::string_view(t.name).substr(0, 200)),
                        t.name);
  }
  const size_t count = std::min<size_t>(3, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(count),
                    ranked.end());
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    out += (i == 0 ? "" : ", ") + printable(ranked[i].second, 200);
  }
  return out.empty() ? "no tensors at all" : out;
}

// F16: 1 sign, 5 exponent (bias 15), 10 mantissa bits.
float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// out[i] = convert(element i of type T), for data of any alignment.
template <class T, class Out, class Convert>
void convert_all(const TensorInfo& tensor, Out* out, Convert convert) {
  const char* from = static_cast<const char*>(tensor.data);
  const int64_t count = tensor.count();
  for (int64_t i = 0; i < count; ++i) {
    T value;
    memcpy(&value, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = convert(value);
  }
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

void read_to_f32(const TensorInfo& tensor, float* out) {
  switch (tensor.dtype) {
    case DType::kF32:
      if (tensor.bytes > 0) memcpy(out, tensor.data, static_cast<size_t>(tensor.bytes));
      return;
    case DType::kBF16:
      return convert_all<bf16>(tensor, out, [](bf16 v) { return to_f32(v); });
    case DType::kF16:
      return convert_all<uint16_t>(tensor, out, f16_to_f32);
    case DType::kF64:
      return convert_all<double>(tensor, out, [](double v) { return static_cast<float>(v); });
    default:
      fail(ErrorCode::kUnsupported,
           "[safetensors] expected tensor \"{}\" as f32, bf16, f16 or f64, got {}; convert the "
           "model",
           printable(tensor.name, 200), dtype_name(tensor.dtype));
  }
}

std::vector<int64_t> read_to_i64(const TensorInfo& tensor) {
  std::vector<int64_t> out(static_cast<size_t>(tensor.count()));
  const auto widen = [](auto v) { return static_cast<int64_t>(v); };
  switch (tensor.dtype) {
    case DType::kI64:
      convert_all<int64_t>(tensor, out.data(), widen);
      break;
    case DType::kI32:
      convert_all<int32_t>(tensor, out.data(), widen);
      break;
    case DType::kU8:
      convert_all<uint8_t>(tensor, out.data(), widen);
      break;
    default:
      fail(ErrorCode::kUnsupported,
           "[safetensors] expected tensor \"{}\" as i64, i32 or u8, got {}; convert the file",
           printable(tensor.name, 200), dtype_name(tensor.dtype));
  }
  return out;
}

const TensorInfo* TensorTable::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& t, std::string_view key) { return t.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorInfo& TensorTable::get(std::string_view name) const {
  const TensorInfo* found = find(name);
  if (found == nullptr) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a tensor \"{}\", found none; the nearest of {} names: {}; does config.json "
         "belong to these weights?",
         where_, printable(name, 200), tensors_.size(), near_names(name, tensors_));
  }
  return *found;
}

const TensorInfo& TensorTable::get(std::string_view name, const std::vector<int64_t>& shape) const {
  const TensorInfo& tensor = get(name);
  if (tensor.shape != shape) {
    fail(ErrorCode::kBadFile,
         "[{}] expected tensor \"{}\" of shape {}, got {}; does config.json belong to these "
         "weights?",
         where_, printable(name, 200), shape_text(shape), shape_text(tensor.shape));
  }
  return tensor;
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(std::make_unique<MappedFile>(path)) {
  where_ = path;
  parse(file_->data(), file_->size());
}

SafetensorsFile::SafetensorsFile(const void* bytes, size_t count, const std::string& where) {
  where_ = where;
  parse(static_cast<const uint8_t*>(bytes), count);
}

void SafetensorsFile::parse(const uint8_t* bytes, size_t count) {
  if (count < 8) {
    fail(ErrorCode::kBadFile,
         "[{}] expected at least 8 bytes of header length, got {} bytes in all; the file is "
         "truncated",
         where_, count);
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | bytes[i];
  if (header_bytes > kMaxHeader || header_bytes > count - 8) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a header of at most {} bytes (file {}, limit {}), its first 8 bytes say "
         "{}; the "
         "file is truncated or no safetensors file",
         where_, std::min<uint64_t>(kMaxHeader, count - 8), count, kMaxHeader, header_bytes);
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes) + 8, header_bytes);
  if (!header.starts_with('{')) {
    fail(ErrorCode::kBadFile,
         "[{}] expected the header to start with '{{' at byte 8, got \"{}\"; this is no "
         "safetensors file",
         where_, printable(header.substr(0, 8)));
  }
  // Depth 3 is {name: {shape: [...]}}; positions in errors count from the start of the header.
  const Json json = parse_json(header, where_ + " header", {kMaxHeader, 3});
  const int64_t data_bytes = static_cast<int64_t>(count - 8 - header_bytes);
  std::vector<Entry> entries;
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, value, data_bytes, where_));
      continue;
    }
    read_metadata(value, where_, metadata_);
  }
  check_coverage(entries, data_bytes, where_);
  const uint8_t* data = bytes + 8 + header_bytes;
  for (Entry& entry : entries) {
    entry.info.data = entry.info.bytes > 0 ? data + entry.begin : nullptr;
    tensors_.push_back(std::move(entry.info));
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

ShardedSafetensors::ShardedSafetensors(const std::string& folder) {
  where_ = folder;
  const std::string single = (fs::path(folder) / "model.safetensors").string();
  const std::string index = single + ".index.json";
  std::error_code ignored;
  if (fs::is_regular_file(folder, ignored) || fs::exists(single, ignored)) {
    files_.push_back(fs::is_regular_file(folder, ignored) ? folder : single);
    shards_.push_back(std::make_unique<SafetensorsFile>(files_[0]));
    tensors_ = shards_[0]->tensors();
    metadata_ = shards_[0]->metadata();
    where_ = files_[0];
    return;
  }
  if (!fs::exists(index, ignored)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected model.safetensors or model.safetensors.index.json, found neither; name a "
         "model "
         "folder or a .safetensors file",
         folder);
  }
  read_index(folder, index);
}

void ShardedSafetensors::read_index(const std::string& folder, const std::string& index_path) {
  const Json index = read_json_file(index_path, {kMaxHeader, 8});
  const Json& weight_map = get_member(index, "weight_map", index_path);
  if (!weight_map.is_object()) {
    fail(ErrorCode::kBadFile, "[{}] expected weight_map to be an object, got {}; correct the index",
         index_path, printable_json(weight_map));
  }
  std::map<std::string, std::string> owner;  // tensor -> file
  std::map<std::string, bool> names;         // files
  for (const auto& [tensor, file] : weight_map.items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // A plain name: the index must not reach outside of its folder.
    if (name.find('/') != std::string::npos || name.find('\\') != std::string::npos ||
        name.find('\0') != std::string::npos || !name.ends_with(".safetensors") ||
        name.starts_with(".")) {
      fail(
          ErrorCode::kBadFile,
          "[{}] expected the file of tensor \"{}\" as a plain name ending in .safetensors, got {}; "
          "correct the index",
          index_path, printable(tensor, 200), printable_json(file));
    }
    owner[tensor] = name;
    names[name] = true;
  }
  for (const auto& [name, unused] : names) {
    const std::string path = (fs::path(folder) / name).string();
    if (!fs::exists(path)) {
      fail(ErrorCode::kBadFile,
           "[{}] expected the shard {}, which {} lists; found no such file; fetch it", folder, name,
           index_path);
    }
    files_.push_back(path);
    shards_.push_back(std::make_unique<SafetensorsFile>(path));
    for (const TensorInfo& tensor : shards_.back()->tensors()) {
      const auto found = owner.find(tensor.name);
      if (found == owner.end() || found->second != name) {
        fail(ErrorCode::kBadFile,
             "[{}] expected tensor \"{}\" {} as {} says, found it in {}; the shards do not belong "
             "together",
             folder, printable(tensor.name, 200),
             found == owner.end() ? "nowhere" : "only in " + found->second, index_path, name);
      }
      tensors_.push_back(tensor);
    }
    metadata_.insert(shards_.back()->metadata().begin(), shards_.back()->metadata().end());
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  for (const auto& [tensor, name] : owner) {
    if (find(tensor) == nullptr) {
      fail(ErrorCode::kBadFile,
           "[{}] expected tensor \"{}\" in the shard {} as {} says, found none there; fetch the "
           "shards "
           "again",
           folder, printable(tensor, 200), name, index_path);
    }
  }
}

}  // namespace mamba
