// SPDX-License-Identifier: Apache-2.0
// GGUF metadata by key, with errors that name it.
#include <cmath>

#include "base/check.h"
#include "base/json.h"
#include "formats/gguf.h"

namespace mamba {
namespace {

// A value for messages: "u32 5", "string \"x\"", "array of 3 string".
std::string shown(const GgufValue& v) {
  const char* type = gguf_type_name(v.type);
  if (v.type == GgufType::kString) return fmt::format("string \"{}\"", printable(v.text));
  if (v.type == GgufType::kF32 || v.type == GgufType::kF64)
    return fmt::format("{} {}", type, v.real);
  if (v.type != GgufType::kArray) return fmt::format("{} {}", type, v.integer);
  const size_t count = v.integers.size() + v.reals.size() + v.texts.size() + v.arrays.size();
  return fmt::format("array of {} {}", count, gguf_type_name(v.item));
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

GgufValue GgufValue::whole(GgufType type, int64_t value) {
  GgufValue v;
  v.type = type;
  v.integer = value;
  return v;
}

GgufValue GgufValue::f32(double value) {
  GgufValue v;
  v.type = GgufType::kF32;
  v.real = static_cast<double>(static_cast<float>(value));
  return v;
}

GgufValue GgufValue::string(std::string value) {
  GgufValue v;
  v.type = GgufType::kString;
  v.text = std::move(value);
  return v;
}

GgufValue GgufValue::strings(std::vector<std::string> values) {
  GgufValue v;
  v.type = GgufType::kArray;
  v.item = GgufType::kString;
  v.texts = std::move(values);
  return v;
}

GgufValue GgufValue::i32_list(std::vector<int64_t> values) {
  GgufValue v;
  v.type = GgufType::kArray;
  v.item = GgufType::kI32;
  v.integers = std::move(values);
  return v;
}

bool GgufValue::is_integer() const {
  return type != GgufType::kF32 && type != GgufType::kF64 && type != GgufType::kString &&
         type != GgufType::kArray && type != GgufType::kBool;
}

const GgufValue* GgufFile::find_value(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

const GgufValue& GgufFile::require(std::string_view key, const char* what) const {
  const GgufValue* value = find_value(key);
  if (value != nullptr) return *value;
  fail(ErrorCode::kBadFile,
       "[{}] expected metadata \"{}\" ({}), found none; is this a file of a mamba model?", where_,
       printable(key, 200), what);
}

int64_t GgufFile::get_int(std::string_view key, int64_t low, int64_t high) const {
  const GgufValue& v = require(key, "a whole number");
  const bool wraps = v.type == GgufType::kU64 && v.integer < 0;
  if (!v.is_integer() || wraps || v.integer < low || v.integer > high) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as a whole number in {}..{}, got {}; the file is damaged "
         "or of another kind of model",
         where_, printable(key, 200), low, high, shown(v));
  }
  return v.integer;
}

int64_t GgufFile::get_int(std::string_view key, int64_t low, int64_t high,
                          int64_t otherwise) const {
  return find_value(key) == nullptr ? otherwise : get_int(key, low, high);
}

double GgufFile::get_number(std::string_view key, double low, double high) const {
  const GgufValue& v = require(key, "a number");
  const bool real = v.type == GgufType::kF32 || v.type == GgufType::kF64;
  const double number = real ? v.real : static_cast<double>(v.integer);
  if ((!real && !v.is_integer()) || !(number >= low && number <= high)) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as a number in {}..{}, got {}; the file is damaged", where_,
         printable(key, 200), low, high, shown(v));
  }
  return number;
}

double GgufFile::get_number(std::string_view key, double low, double high, double otherwise) const {
  return find_value(key) == nullptr ? otherwise : get_number(key, low, high);
}

bool GgufFile::get_bool(std::string_view key, bool otherwise) const {
  const GgufValue* v = find_value(key);
  if (v == nullptr) return otherwise;
  if (v->type != GgufType::kBool) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as a bool, got {}; the file is damaged", where_,
         printable(key, 200), shown(*v));
  }
  return v->integer != 0;
}

const std::string& GgufFile::get_string(std::string_view key) const {
  const GgufValue& v = require(key, "a string");
  if (v.type != GgufType::kString) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as a string, got {}; the file is damaged", where_,
         printable(key, 200), shown(v));
  }
  return v.text;
}

std::string GgufFile::get_string(std::string_view key, const std::string& otherwise) const {
  return find_value(key) == nullptr ? otherwise : get_string(key);
}

const std::vector<std::string>& GgufFile::get_strings(std::string_view key) const {
  const GgufValue& v = require(key, "an array of strings");
  if (v.type != GgufType::kArray || v.item != GgufType::kString) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as an array of strings, got {}; the file is damaged",
         where_, printable(key, 200), shown(v));
  }
  return v.texts;
}

const std::vector<int64_t>& GgufFile::get_ints(std::string_view key) const {
  static const std::vector<int64_t> kNone;
  const GgufValue* v = find_value(key);
  if (v == nullptr) return kNone;
  const bool whole = v->type == GgufType::kArray && v->item != GgufType::kString &&
                     v->item != GgufType::kArray && v->item != GgufType::kF32 &&
                     v->item != GgufType::kF64;
  if (!whole) {
    fail(ErrorCode::kBadFile,
         "[{}] expected metadata \"{}\" as an array of whole numbers, got {}; the file is damaged",
         where_, printable(key, 200), shown(*v));
  }
  return v->integers;
}

}  // namespace mamba
