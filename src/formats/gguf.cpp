// SPDX-License-Identifier: Apache-2.0
// Reading GGUF: "GGUF", version, counts, metadata, the list of tensors, then, from a multiple of
// the alignment on, their bytes.
#include "formats/gguf.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/check.h"
#include "base/json.h"
#include "formats/gguf_cursor.h"

namespace mamba {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[] = "GGUF";
constexpr size_t kMaxName = 256;             // of a tensor; ggml's own limit is 63
constexpr size_t kMaxKey = 65535;            // the format's
constexpr uint64_t kMaxTensors = 1'000'000;  // of a file
constexpr uint64_t kMaxValues = 100'000;     // of metadata
constexpr int64_t kMaxAlignment = 1 << 20;
constexpr int64_t kMaxShards = 10'000;

struct TensorType {
  uint32_t number;
  const char* name;
  int dtype;  // -1: not of this version
};
constexpr int known(DType dtype) { return static_cast<int>(dtype); }
constexpr TensorType kTensorTypes[] = {
    {0, "F32", known(DType::kF32)},
    {1, "F16", known(DType::kF16)},
    {2, "Q4_0", known(DType::kQ4_0)},
    {3, "Q4_1", known(DType::kQ4_1)},
    {6, "Q5_0", known(DType::kQ5_0)},
    {7, "Q5_1", known(DType::kQ5_1)},
    {8, "Q8_0", known(DType::kQ8_0)},
    {9, "Q8_1", -1},
    {10, "Q2_K", -1},
    {11, "Q3_K", -1},
    {12, "Q4_K", known(DType::kQ4_K)},
    {13, "Q5_K", known(DType::kQ5_K)},
    {14, "Q6_K", known(DType::kQ6_K)},
    {15, "Q8_K", -1},
    {16, "IQ2_XXS", -1},
    {17, "IQ2_XS", -1},
    {18, "IQ3_XXS", -1},
    {19, "IQ1_S", -1},
    {20, "IQ4_NL", known(DType::kIQ4_NL)},
    {21, "IQ3_S", -1},
    {22, "IQ2_S", -1},
    {23, "IQ4_XS", -1},
    {24, "I8", -1},
    {25, "I16", -1},
    {26, "I32", known(DType::kI32)},
    {27, "I64", known(DType::kI64)},
    {28, "F64", known(DType::kF64)},
    {29, "IQ1_M", -1},
    {30, "BF16", known(DType::kBF16)},
    {34, "TQ1_0", -1},
    {35, "TQ2_0", -1},
    {39, "MXFP4", -1},
};

DType dtype_of(uint32_t number, const std::string& tensor, const std::string& where) {
  const char* name = "of a number that no type has";
  for (const TensorType& type : kTensorTypes) {
    if (type.number != number) continue;
    if (type.dtype >= 0) return static_cast<DType>(type.dtype);
    name = type.name;
  }
  fail(ErrorCode::kUnsupported,
       "[{}] expected tensor \"{}\" as F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, "
       "Q6_K or IQ4_NL, got type {} ({}); take a file of another type, such as Q4_K_M",
       where, printable(tensor, 200), number, name);
}

// A tensor of the list, with its place in the data.
struct Entry {
  TensorInfo info;
  int64_t offset = 0;
};

std::vector<int64_t> read_shape(GgufCursor* cursor, const std::string& name,
                                const std::string& where) {
  const auto rank = cursor->number<uint32_t>("the rank of a tensor");
  if (rank > 4) {
    fail(ErrorCode::kBadFile,
         "[{}] expected at most 4 dimensions of tensor \"{}\", got {}; the file is damaged", where,
         printable(name, 200), rank);
  }
  std::vector<int64_t> shape(rank);
  int64_t count = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = cursor->number<uint64_t>("a size of a tensor");
    const bool fits = size >= 1 && size <= uint64_t{std::numeric_limits<int64_t>::max()} &&
                      !__builtin_mul_overflow(count, static_cast<int64_t>(size), &count);
    if (!fits) {
      fail(ErrorCode::kBadFile,
           "[{}] expected sizes of tensor \"{}\" from 1 on with a product below 2^63, got {} as "
           "number {}; the file is damaged",
           where, printable(name, 200), size, i + 1);
    }
    shape[rank - 1 - i] = static_cast<int64_t>(size);  // the file has the fastest one first
  }
  return shape;
}

Entry read_entry(GgufCursor* cursor, int64_t alignment, const std::string& where) {
  Entry entry;
  TensorInfo& info = entry.info;
  info.name = cursor->text(kMaxName, "the name of a tensor");
  info.shape = read_shape(cursor, info.name, where);
  info.dtype = dtype_of(cursor->number<uint32_t>("the type of a tensor"), info.name, where);
  const auto offset = cursor->number<uint64_t>("the offset of a tensor");
  int64_t elements = 1;
  for (const int64_t size : info.shape) elements *= size;
  const int64_t block = block_elements(info.dtype);
  const int64_t row = info.shape.empty() ? 1 : info.shape.back();
  if (row % block != 0 ||
      __builtin_mul_overflow(elements / block, block_bytes(info.dtype), &info.bytes)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected rows of a multiple of {} elements for tensor \"{}\" of type {}, got shape "
         "{}; the file is damaged",
         where, block, printable(info.name, 200), dtype_name(info.dtype), shape_text(info.shape));
  }
  if (offset % static_cast<uint64_t>(alignment) != 0 ||
      offset > uint64_t{std::numeric_limits<int64_t>::max()}) {
    fail(ErrorCode::kBadFile,
         "[{}] expected tensor \"{}\" at a multiple of {} bytes, got offset {}; the file is "
         "damaged",
         where, printable(info.name, 200), alignment, offset);
  }
  entry.offset = static_cast<int64_t>(offset);
  return entry;
}

// Every tensor within the data, and none over another.
void check_places(std::vector<Entry>* entries, int64_t data_bytes, const std::string& where) {
  std::sort(entries->begin(), entries->end(),
            [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
  int64_t end = 0;
  for (const Entry& entry : *entries) {
    if (entry.offset < end) {
      fail(ErrorCode::kBadFile,
           "[{}] expected tensor \"{}\" from byte {} of the data on, got {}: it overlaps another; "
           "the file is damaged",
           where, printable(entry.info.name, 200), end, entry.offset);
    }
    if (entry.info.bytes > data_bytes || entry.offset > data_bytes - entry.info.bytes) {
      fail(ErrorCode::kBadFile,
           "[{}] expected {} bytes of tensor \"{}\" from byte {} of the data on, got the end of "
           "the file at byte {} of it; the file is truncated, fetch it again",
           where, entry.info.bytes, printable(entry.info.name, 200), entry.offset, data_bytes);
    }
    end = entry.offset + entry.info.bytes;
  }
}

void check_version(uint32_t version, const std::string& where) {
  if (version == 2 || version == 3) return;
  const bool swapped = (version & 0xffffu) == 0;
  fail(ErrorCode::kUnsupported, "[{}] expected GGUF version 2 or 3, little endian, got {}; {}",
       where, swapped ? "big endian" : std::to_string(version),
       swapped ? "make the file for this kind of machine" : "write it again with a current tool");
}

void expect_first_shard(const std::string& path, int64_t number, int64_t count) {
  if (number != 0) {
    fail(ErrorCode::kBadFile,
         "[{}] expected the first of {} shards, with a name that ends in -00001-of-{:05}.gguf, "
         "got shard {}; name the first one",
         path, count, count, number + 1);
  }
  const std::string ending = fmt::format("-{:05}-of-{:05}.gguf", 1, count);
  if (path.ends_with(ending)) return;
  fail(ErrorCode::kBadFile,
       "[{}] expected a name that ends in {}, as this is the first of {} shards and the others are "
       "found by its name, got '{}'; give all of them their names NAME-0000I-of-{:05}.gguf back",
       path, ending, count, printable(fs::path(path).filename().string(), 200), count);
}

std::string shard_path(const std::string& first, int64_t number, int64_t count) {
  const std::string ending = fmt::format("-{:05}-of-{:05}.gguf", 1, count);
  return first.substr(0, first.size() - ending.size()) +
         fmt::format("-{:05}-of-{:05}.gguf", number, count);
}

}  // namespace

uint32_t gguf_tensor_type(DType dtype) {
  for (const TensorType& type : kTensorTypes) {
    if (type.dtype == static_cast<int>(dtype)) return type.number;
  }
  MAMBA_CHECK(dtype != DType::kU8);
  return 0;
}

GgufFile::GgufFile(const std::string& path) {
  where_ = path;
  open_shards(path);
}

GgufFile::GgufFile(const void* bytes, size_t count, const std::string& where) {
  where_ = where;
  parse(static_cast<const uint8_t*>(bytes), count);
  finish();
}

void GgufFile::finish() {
  sort();
  for (size_t i = 1; i < tensors_.size(); ++i) {
    if (tensors_[i].name != tensors_[i - 1].name) continue;
    fail(ErrorCode::kBadFile,
         "[{}] expected tensors of different names, got \"{}\" twice; the file is damaged", where_,
         printable(tensors_[i].name, 200));
  }
}

void GgufFile::release(const TensorInfo& tensor) const {
  for (const auto& file : files_) {
    file->release(tensor.data, static_cast<size_t>(tensor.bytes));
  }
}

void GgufFile::open_shards(const std::string& path) {
  const auto open = [&](const std::string& shard) {
    files_.push_back(std::make_unique<MappedFile>(shard));
    paths_.push_back(shard);
    parse(files_.back()->data(), files_.back()->size());
  };
  open(path);
  const int64_t count = get_int("split.count", 0, kMaxShards, 0);
  const int64_t number = get_int("split.no", 0, kMaxShards, 0);
  if (count > 1) {
    expect_first_shard(path, number, count);
    GgufMetadata first = std::move(values_);  // what counts in the end
    for (int64_t i = 2; i <= count; ++i) {
      const std::string shard = shard_path(path, i, count);
      std::error_code ignored;
      if (!fs::exists(shard, ignored)) {
        fail(ErrorCode::kBadFile,
             "[{}] expected {} shards beside each other, found no {}; fetch it", path, count,
             shard);
      }
      where_ = shard;
      open(shard);
      expect_shard(i, first, path);
    }
    where_ = path;
    values_ = std::move(first);
    const auto total = static_cast<int64_t>(tensors_.size());
    const int64_t expected = get_int("split.tensors.count", 0, INT32_MAX, total);
    if (expected != total) {
      fail(ErrorCode::kBadFile,
           "[{}] expected {} tensors in {} shards, got {}; the shards do not belong together", path,
           expected, count, total);
    }
  }
  finish();
}

void GgufFile::expect_shard(int64_t number, const GgufMetadata& first,
                            const std::string& path) const {
  const auto refuse = [&](const char* key, const auto& expected, const auto& got) {
    fail(ErrorCode::kBadFile,
         "[{}] expected {} {} of shard {} of {}, got {}; the shards do not belong together, fetch "
         "or write them again",
         where_, key, expected, number, path, got);
  };
  const int64_t place = get_int("split.no", 0, kMaxShards);
  if (place != number - 1) refuse("split.no", number - 1, place);
  for (const char* key : {"split.count", "split.tensors.count"}) {
    const auto expected = first.find(key);
    if (expected == first.end() || find_value(key) == nullptr) continue;
    const int64_t got = get_int(key, 0, INT32_MAX);
    if (got != expected->second.integer) refuse(key, expected->second.integer, got);
  }
  const auto id = first.find(kGgufSplitId);
  const GgufValue* own = find_value(kGgufSplitId);
  if (id != first.end() && own != nullptr && *own != id->second) {
    refuse(kGgufSplitId, printable(id->second.text, 40), printable(own->text, 40));
  }
}

void GgufFile::parse(const uint8_t* bytes, size_t count) {
  GgufCursor cursor(bytes, count, where_);
  if (count < 4 || std::memcmp(bytes, kMagic, 4) != 0) {
    fail(ErrorCode::kBadFile,
         "[{}] expected a GGUF file, which starts with \"GGUF\", got {} bytes that start with "
         "\"{}\"; is this a model?",
         where_, count,
         printable({reinterpret_cast<const char*>(bytes), std::min<size_t>(count, 4)}));
  }
  cursor.number<uint32_t>("the magic");
  const auto version = cursor.number<uint32_t>("the version");
  check_version(version, where_);
  version_ = static_cast<int>(version);
  const auto tensor_count = cursor.number<uint64_t>("the count of tensors");
  const auto value_count = cursor.number<uint64_t>("the count of metadata");
  // The least bytes of a tensor (name length, rank, type, offset) and of a value (key length, type
  // and a byte).
  if (tensor_count > std::min<uint64_t>(kMaxTensors, cursor.left() / 24) ||
      value_count > std::min<uint64_t>(kMaxValues, cursor.left() / 13)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected counts of tensors and metadata that fit into {} bytes, got {} and {}; the "
         "file is truncated or damaged, fetch it again",
         where_, count, tensor_count, value_count);
  }
  GgufMetadata values;
  for (uint64_t i = 0; i < value_count; ++i) {
    std::string key = cursor.text(kMaxKey, "a key of metadata");
    GgufValue value = cursor.value(key);
    if (!values.emplace(key, std::move(value)).second) {
      fail(ErrorCode::kBadFile, "[{}] expected metadata \"{}\" once, got it twice; damaged", where_,
           printable(key, 200));
    }
  }
  values_ = std::move(values);
  const int64_t alignment = get_int("general.alignment", 1, kMaxAlignment, kGgufAlignment);
  if ((alignment & (alignment - 1)) != 0) {
    fail(ErrorCode::kBadFile,
         "[{}] expected general.alignment as a power of two, got {}; the file is damaged", where_,
         alignment);
  }
  std::vector<Entry> entries;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    entries.push_back(read_entry(&cursor, alignment, where_));
  }
  const auto step = static_cast<size_t>(alignment);
  const size_t begin = std::min(count, (cursor.at() + step - 1) / step * step);
  check_places(&entries, static_cast<int64_t>(count - begin), where_);
  for (Entry& entry : entries) {
    entry.info.data = bytes + begin + entry.offset;
    tensors_.push_back(std::move(entry.info));
  }
}

bool is_gguf_file(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;
  if (path.ends_with(".gguf")) return true;
  const MappedFile file(path);
  return file.size() >= 4 && std::memcmp(file.data(), kMagic, 4) == 0;
}

}  // namespace mamba
