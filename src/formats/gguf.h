// SPDX-License-Identifier: Apache-2.0
// GGUF files (versions 2 and 3, little endian), single or in shards: metadata and tensors, under
// the names that the file has. What they mean for a model is in gguf_model.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "formats/tensor_table.h"

namespace mamba {

// Types of metadata by their numbers in the file.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
const char* gguf_type_name(GgufType type);

// One value. Which member holds it: `integer` (u64 in two's complement, bool as 0 or 1), `real`,
// `text`; of arrays, whose elements have type `item`, the lists in plural.
struct GgufValue {
  GgufType type = GgufType::kU32;
  GgufType item = GgufType::kU32;
  int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<int64_t> integers;
  std::vector<double> reals;
  std::vector<std::string> texts;
  std::vector<GgufValue> arrays;

  static GgufValue u32(int64_t value) { return whole(GgufType::kU32, value); }
  static GgufValue u16(int64_t value) { return whole(GgufType::kU16, value); }
  static GgufValue i32(int64_t value) { return whole(GgufType::kI32, value); }
  static GgufValue boolean(bool value) { return whole(GgufType::kBool, value ? 1 : 0); }
  static GgufValue f32(double value);
  static GgufValue string(std::string value);
  static GgufValue strings(std::vector<std::string> values);
  static GgufValue i32_list(std::vector<int64_t> values);

  bool is_integer() const;
  bool operator==(const GgufValue&) const = default;

 private:
  static GgufValue whole(GgufType type, int64_t value);
};

// By key. Order in a file means nothing.
using GgufMetadata = std::map<std::string, GgufValue, std::less<>>;

// All getters throw bad_file naming file and key.
class GgufFile : public TensorTable {
 public:
  // Of shards ("-00001-of-0000N") the first, which opens the others. Throws bad_file, or
  // unsupported for another version, byte order or type of tensor.
  explicit GgufFile(const std::string& path);
  // From memory that outlives this object; `where` stands for the path in messages.
  GgufFile(const void* bytes, size_t count, const std::string& where);
  void release(const TensorInfo& tensor) const override;

  const GgufMetadata& values() const { return values_; }
  const GgufValue* find_value(std::string_view key) const;  // null if absent
  int64_t get_int(std::string_view key, int64_t low, int64_t high) const;
  int64_t get_int(std::string_view key, int64_t low, int64_t high, int64_t otherwise) const;
  double get_number(std::string_view key, double low, double high) const;
  double get_number(std::string_view key, double low, double high, double otherwise) const;
  bool get_bool(std::string_view key, bool otherwise) const;
  const std::string& get_string(std::string_view key) const;
  std::string get_string(std::string_view key, const std::string& otherwise) const;
  const std::vector<std::string>& get_strings(std::string_view key) const;
  // Empty if absent.
  const std::vector<int64_t>& get_ints(std::string_view key) const;

  const std::vector<std::string>& paths() const { return paths_; }  // of all shards
  int version() const { return version_; }

 private:
  void finish();
  void open_shards(const std::string& path);
  // Metadata to values_, tensors behind those of other shards.
  void parse(const uint8_t* bytes, size_t count);
  // That the shard whose metadata values_ holds is this one of the file at `path`, beginning at 1.
  void expect_shard(int64_t number, const GgufMetadata& first, const std::string& path) const;
  const GgufValue& require(std::string_view key, const char* what) const;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::string> paths_;
  GgufMetadata values_;
  int version_ = 0;
};

// True if a readable file at `path` starts like one.
bool is_gguf_file(const std::string& path);

// The number of a type of tensor in GGUF files, and its general.file_type for a model that is of
// this type but for small tensors. Internal error for types that GGUF files do not have.
uint32_t gguf_tensor_type(DType dtype);

// Of shards that this program wrote: equal in all of one writing.
inline constexpr const char* kGgufSplitId = "split.mamba_cpp.id";

// What GGUF tools round the offsets of tensors to, unless general.alignment says otherwise.
inline constexpr int64_t kGgufAlignment = 32;

}  // namespace mamba
