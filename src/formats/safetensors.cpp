// SPDX-License-Identifier: Apache-2.0
// Reading safetensors: 8 bytes of header length (little endian), a JSON header, then the tensors,
// which must cover the rest of the file without a gap or an overlap.
#include "formats/safetensors.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/json.h"

namespace mamba {
namespace {

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

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(std::make_unique<MappedFile>(path)) {
  where_ = path;
  parse(file_->data(), file_->size());
}

SafetensorsFile::SafetensorsFile(const void* bytes, size_t count, const std::string& where) {
  where_ = where;
  parse(static_cast<const uint8_t*>(bytes), count);
}

void SafetensorsFile::release(const TensorInfo& tensor) const {
  if (file_) file_->release(tensor.data, static_cast<size_t>(tensor.bytes));
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
  sort();
}

}  // namespace mamba
